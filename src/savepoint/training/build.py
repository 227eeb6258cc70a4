"""Build the objects of a run, `TrainState` and `Parts`, from a checked config."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from savepoint import parallel, registry, system, trust, weights
from savepoint.checkpoint import Checkpoint
from savepoint.config import Settings, by_name, match
from savepoint.data import NoData, Stream
from savepoint.errors import ConfigError
from savepoint.training import combinations, optimizers, schedules, sharding
from savepoint.training.averaging import make_average
from savepoint.training.datasets import check_sizes, make_batches
from savepoint.training.optimization import NoSchedule, Optimization, Scaler
from savepoint.training.rehearsal import rehearse
from savepoint.training.state import Parts, TrainState, fits

AUTOCAST = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def assemble(
    config: dict[str, Any], settings: Settings, *, source: Path, checkpoint: Checkpoint | None = None
) -> tuple[TrainState, Parts]:
    """Build everything that a run needs, as it is before the first update. `state.restore` then loads a checkpoint.

    config, settings: a config and its settings, from `trust.check_config`.
    source: the directory that holds the `project` package.
    checkpoint: if given, it is compared with the model before memory is allocated for the model.
    Raises: ConfigError that names the key, CheckpointError if the checkpoint's tensors do not fit.
    """
    make = functools.partial(trust.make, source=source)
    if checkpoint is not None:
        _compare(config["model"], checkpoint, source)
    device = pick_device(settings.trainer.device)
    # This puts the device in use before the seed is set: CUDA then makes the device's generator, with a random seed.
    torch.empty(0, device=device)
    system.rng.seed(settings.seed)
    with registry.collecting() as registered:
        # A model that is cut moves to the device part by part: the whole of it may be too large for one device.
        model = weights.make_model(config, source=source).to("cpu" if sharding.wanted(settings) else device)
        _freeze(model, settings)
        task = make(config["task"], path="task")
        make_split = functools.partial(make_batches, config, settings, source=source, device=device, divided=True)
        train, val = make_split("train"), make_split("val")
    stream = train if isinstance(train, Stream) else None
    state = TrainState(model, {}, registered=registered, averaged=make_average(model, settings), stream=stream)
    check_sizes(settings, train, val)
    _check_task(task, train)
    autocast = AUTOCAST[settings.amp.dtype]
    parts = Parts(settings=settings, task=task, forward=model, train=train, val=val, device=device, autocast=autocast)
    own, seen = hasattr(task, "update"), None
    if sharding.wanted(settings):
        sharding.check(model, task, settings, device)
        seen = rehearse(state, parts, source=source)  # while the model can be copied
        for each in (model, *([state.averaged.module] if state.averaged else [])):
            sharding.cut(each, settings, device)
    state.optimizers = _optimizations(config, settings, model, device, batches=len(train), make=make, own_update=own)
    seen = seen or rehearse(state, parts, source=source)
    _check_monitors(settings, task, seen.measured)
    return state, dataclasses.replace(
        parts,
        forward=compiled(model, task, settings),
        searches=any(optimizers.searches(one.optimizer) for one in state.optimizers.values()),
        example=seen.example,
        every_parameter=seen.every_parameter,
    )


def _optimizations(
    config: dict[str, Any],
    settings: Settings,
    model: nn.Module,
    device: torch.device,
    *,
    batches: int,
    make: Callable[..., Any],
    own_update: bool,
) -> dict[str, Optimization]:
    """Build each optimizer with its schedule and its scaler. own_update: whether the task makes updates itself."""
    amp, nodes, found = settings.amp, by_name(config["scheduler"]), {}
    scale = functools.partial(
        Scaler,
        device.type,
        init_scale=amp.init_scale,
        growth_factor=amp.growth_factor,
        backoff_factor=amp.backoff_factor,
        growth_interval=amp.growth_interval,
        enabled=amp.dtype == "float16",
    )
    shared = scale()
    built = optimizers.build_all(config["optimizer"], model, make=make)
    for name, optimizer in built.items():
        if optimizers.searches(optimizer) and (own_update or len(built) > 1):
            kind = type(optimizer).__name__
            raise ConfigError(
                f"{_join('optimizer', name)}: {kind} evaluates the loss itself, several times in each update. It has "
                "to be the only optimizer, and the task may have no update of its own."
            )
        node, path = nodes.get("", {"_target_": None}), "scheduler"
        if name in nodes:
            node, path = nodes[name], _join("scheduler", name)
        named: dict[str, str] = {"name": name, "path": path}
        combinations.check(node, settings, model=model, optimizer=optimizer, device=device, **named)
        schedule, length = schedules.build(node, settings, optimizer, batches=batches, make=make, **named)
        # An update of the task's own steps each optimizer on losses of its own, so each has a scale of its own.
        scaler = scale() if own_update else shared
        found[name] = Optimization(optimizer, schedule or NoSchedule(), scaler, schedule_length=length)
    return found


def _freeze(model: nn.Module, settings: Settings) -> None:
    """Freeze the parameters that `init.freeze` names. Raises: ConfigError if none would be left to train."""
    if settings.init.freeze is None:
        return
    named = dict(model.named_parameters())
    for name in match(settings.init.freeze, list(named), path="init.freeze"):
        named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError("init.freeze: it leaves no parameter to train.")


def _join(group: str, name: str) -> str:
    return f"{group}.{name}" if name else group


def compiled(model: nn.Module, task: Any, settings: Settings) -> Any:
    """Compile the model if `trainer.compile` asks for it. Returns: what the task calls.

    A task with an update of its own may call the direct children of the model one by one, so each is compiled alone.
    """
    if not settings.trainer.compile:
        return model
    import torch._inductor.config as compiler

    options: dict[str, Any] = {}
    # Otherwise the compiler times some kernels on a GPU, and another process may choose differently.
    if hasattr(compiler, "deterministic"):
        options = {"deterministic": settings.trainer.deterministic}
    elif settings.trainer.deterministic and any(each.device.type != "cpu" for each in model.parameters()):
        raise ConfigError(
            f"trainer.compile: the compiler of torch {torch.__version__} chooses kernels by their speed, so a resumed "
            "run may get other bits. Use torch 2.13 or newer, or accept that with trainer.deterministic=false."
        )
    if not hasattr(task, "update"):
        # The plain model is the one that is saved: a compiled wrapper would prefix every name with `_orig_mod.`.
        return torch.compile(model, options=options)
    for child in model.children():
        child.compile(options=options)
    return model


def pick_device(name: str) -> torch.device:
    """Return the device of a name. `auto` is the accelerator if there is one, otherwise the CPU.

    Raises: ConfigError for a device that this machine lacks.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = accelerator.type if accelerator is not None else "cpu"
    device = torch.device(name)
    if parallel.count() > 1 and device.type != "cpu":
        if device.index is not None:
            raise ConfigError(f"trainer.device={name}: each rank takes a GPU of its own. Use trainer.device=auto.")
        device = torch.device(device.type, parallel.local_rank())
    if device.type == "cpu":
        return device
    there = torch.accelerator.device_count() if accelerator is not None and accelerator.type == device.type else 0
    if (device.index or 0) >= there:
        has = f"{there} {device.type} device(s)" if there else f"no {device.type} device that torch can use"
        raise ConfigError(f"trainer.device={name}: this machine has {has}. Use trainer.device=auto or cpu.")
    return device


def _compare(node: Any, checkpoint: Checkpoint, source: Path) -> None:
    """Refuse a checkpoint of another model. A model on the meta device has names and shapes, and takes no memory."""
    try:
        with system.rng.isolated(), registry.collecting(), torch.device("meta"):
            model = trust.make(node, path="model", source=source)
    except ConfigError:
        return  # a model that reads values while it is built is compared when it is restored
    fits(model, checkpoint)


def _check_task(task: Any, train: Any) -> None:
    if isinstance(train, NoData) and not hasattr(task, "update"):
        raise ConfigError(
            f"data.dataset=null: {type(task).__name__} has no update of its own, and without data nothing else trains."
        )
    called = callable(task) or (hasattr(task, "update") and hasattr(task, "evaluate"))
    if not called or not isinstance(getattr(task, "metrics", None), tuple | list):
        raise ConfigError(f"task: {type(task).__name__} is no task. It needs __call__, compute and metrics: see docs/.")


def _check_monitors(settings: Settings, task: Any, evaluated: set[str] | None) -> None:
    """Check that every monitored metric is one that is logged.

    evaluated: the names that an evaluation of the task's own measures; None if it has none, or they are not known.
    """
    trained = ["loss", *task.metrics]
    splits = ("val/", "val/ema_") if settings.trainer.ema_decay is not None else ("val/",)
    names = [f"train/{name}" for name in trained]
    names += [f"{split}{name}" for split in splits for name in (trained if evaluated is None else sorted(evaluated))]
    monitors = {"checkpoint.monitor": settings.checkpoint.monitor}
    monitors |= {f"{_join('scheduler', name)}.monitor": each.monitor for name, each in settings.schedulers.items()}
    faults = [
        f"{key}={value}: nothing logs that. Logged are {', '.join(names)}."
        for key, value in monitors.items()
        if value is not None and value not in names
    ]
    if settings.trainer.patience is not None and settings.checkpoint.monitor is None:
        faults.append(
            "trainer.patience: there is no checkpoint.monitor to wait for. Set it, or set trainer.patience to null."
        )
    if faults:
        raise ConfigError("\n".join(faults))
