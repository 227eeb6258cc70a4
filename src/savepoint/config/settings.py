"""Declare the closed groups of a config as frozen dataclasses: their keys, types, ranges and defaults.

It uses the standard library only, because `train.py` reads settings before it imports torch.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SEEDS = 2**64  # a seed is at least 0 and below this; torch.manual_seed would take negative ones too

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?")

Check = Callable[[typing.Any], str | None]


def at_least(least: int) -> Check:
    return lambda value: f"must be at least {least}" if value < least else None


def above(bound: float) -> Check:
    return lambda value: f"must be greater than {bound:g}" if value <= bound else None


def between(low: float, high: float) -> Check:
    return lambda value: f"must be between {low:g} and {high:g}, both excluded" if not low < value < high else None


def one_of(*choices: str) -> Check:
    return lambda value: f"must be one of {', '.join(choices)}" if value not in choices else None


def not_empty(value: str) -> str | None:
    return "must not be empty" if not value.strip() else None


def _registrable(value: str) -> str | None:
    return None if re.fullmatch(r"[\w .-]*\w[\w .-]*", value) else "must be letters, digits, blanks and .-_"


def _a_module(value: str) -> str | None:
    known = "mlflow, aim, clearml, none, or the name of a module in trackers/ of your package"
    return None if re.fullmatch(r"[a-z][a-z0-9_]*", value) else f"must be {known}"


def a_device(value: str) -> str | None:
    return None if _DEVICE.fullmatch(value) else "must be auto, cpu, mps, cuda or cuda:<index>"


def setting(default: typing.Any = dataclasses.MISSING, check: Check | None = None) -> typing.Any:
    """Declare a field whose value, unless it is None, has to pass `check`."""
    return field(default=default, metadata={"check": check} if check else {})


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How a run trains, how it evaluates and when it ends. conf/trainer/default.yaml explains each key."""

    max_epochs: int | None = setting(20, at_least(1))
    max_steps: int | None = setting(None, at_least(1))
    patience: int | None = setting(None, at_least(1))
    evaluate_every_n_steps: int | None = setting(None, at_least(1))
    evaluate_first: bool = False
    test: bool = False
    figures_every_n_epochs: int | None = setting(None, at_least(1))
    accumulate: int = setting(1, at_least(1))
    clip_grad_norm: float | None = setting(None, above(0))
    ema_decay: float | None = setting(None, between(0, 1))
    device: str = setting("auto", a_device)
    processes: int | None = setting(None, at_least(1))
    parallel: str | None = setting(None, one_of("ddp", "fsdp"))
    timeout_seconds: float = setting(600.0, above(0))
    compile: bool = False
    deterministic: bool = True
    threads: int | None = setting(None, at_least(1))
    log_every_n_steps: int | None = setting(50, at_least(1))
    log_grad_norm: bool = False
    on_nonfinite: str = setting("warn", one_of("warn", "stop"))
    detect_anomaly: bool = False
    profile: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When a run saves, and which checkpoints it keeps. conf/checkpoint/default.yaml explains each key."""

    every_n_epochs: int | None = setting(1, at_least(1))
    every_n_steps: int | None = setting(None, at_least(1))
    every_n_minutes: float | None = setting(None, above(0))
    keep_last: int = setting(2, at_least(1))
    keep_best: int = setting(1, at_least(0))
    keep_every_n_epochs: int | None = setting(None, at_least(1))
    monitor: str | None = setting("val/loss", not_empty)
    mode: str = setting("min", one_of("min", "max"))
    async_save: bool = True
    upload: bool = True


@dataclass(frozen=True, kw_only=True)
class AmpSettings:
    """The precision that a run computes in, and the arguments of torch.amp.GradScaler for float16."""

    dtype: str | None = setting(None, one_of("bfloat16", "float16"))
    init_scale: float = setting(65536.0, above(0))
    growth_factor: float = setting(2.0, above(1))
    backoff_factor: float = setting(0.5, between(0, 1))
    growth_interval: int = setting(2000, at_least(1))


@dataclass(frozen=True, kw_only=True)
class FsdpSettings:
    """How `trainer.parallel=fsdp` cuts a model among the ranks. conf/config.yaml explains each key."""

    classes: str | list[str] | None = None
    min_parameters: int = setting(1_000_000, at_least(1))
    param_dtype: str | None = setting(None, one_of("bfloat16"))
    reduce_dtype: str | None = setting(None, one_of("bfloat16", "float32"))
    reshard_after_forward: bool = True
    checkpoint_activations: bool = False
    cpu_offload: bool = False


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where a run can be watched: the kind of tracker, its experiment and its address."""

    kind: str = setting(check=_a_module)
    experiment: str = setting("savepoint", not_empty)
    uri: str | None = setting(None, not_empty)
    register_as: str | None = setting(None, _registrable)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The keys of `data` but `dataset`, `sampler` and `collate`, whose keys are arguments of the classes they name."""

    batch_size: int = setting(check=at_least(1))
    num_workers: int = setting(0, at_least(0))
    shuffle: bool = True
    drop_last: bool = False
    limit_batches: int | None = setting(None, at_least(1))
    prefetch: int = setting(2, at_least(1))
    persistent_workers: bool = True
    pin_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """When a scheduler steps. The other keys of the group are arguments of the class that it names."""

    interval: str = setting("epoch", one_of("epoch", "step"))
    monitor: str | None = setting(None, not_empty)


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """Which weights of `init_from` are loaded, and which parameters are not trained. See docs/weights.md."""

    include: str | list[str] | None = None
    exclude: str | list[str] | None = None
    rename: dict[str, str] | None = None
    strict: bool = True
    freeze: str | list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The closed groups of a config, and its keys outside of any group."""

    trainer: TrainerSettings
    checkpoint: CheckpointSettings
    amp: AmpSettings
    fsdp: FsdpSettings
    tracker: TrackerSettings
    data: DataSettings
    init: InitSettings
    schedulers: Mapping[str, SchedulerSettings]  # by name; that of a config with one scheduler for all is under ""
    seed: int = setting(check=lambda value: None if 0 <= value < SEEDS else "must be at least 0 and below 2**64")
    name: str | None = setting(None, not_empty)
    init_from: str | None = setting(None, not_empty)

    def schedule(self, optimizer: str) -> SchedulerSettings:
        """Return the settings of the scheduler of an optimizer, by its name."""
        return self.schedulers.get(optimizer) or self.schedulers.get("") or SchedulerSettings()


GROUPS = {
    "trainer": TrainerSettings,
    "checkpoint": CheckpointSettings,
    "amp": AmpSettings,
    "fsdp": FsdpSettings,
    "tracker": TrackerSettings,
    "data": DataSettings,
    "init": InitSettings,
}


def by_name(node: Mapping[str, typing.Any]) -> Mapping[str, typing.Any]:
    """Return the parts of the group `optimizer` or `scheduler` by name. A group that is one class has it under "".

    >>> by_name({"_target_": "torch.optim.Adam", "lr": 0.1}), by_name({"a": {"_target_": "torch.optim.Adam"}})
    ({'': {'_target_': 'torch.optim.Adam', 'lr': 0.1}}, {'a': {'_target_': 'torch.optim.Adam'}})
    """
    several = node and "_target_" not in node and all(isinstance(each, Mapping) for each in node.values())
    return node if several else {"": node}
