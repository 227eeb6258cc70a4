"""Evaluate a checkpoint apart from training, on any split, such as the test split, which training never sees."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from savepoint import checkpoint, parallel, registry, runs, system, trust, weights
from savepoint.checkpoint import Checkpoint
from savepoint.config import Settings
from savepoint.data import to_device
from savepoint.errors import ConfigError, UserError
from savepoint.runs import Evaluation, Job
from savepoint.training import build, evaluation, optional
from savepoint.training.averaging import make_average
from savepoint.training.datasets import make_batches, make_dataset
from savepoint.training.loop import finished
from savepoint.training.optimization import naming
from savepoint.training.state import Parts, TrainState, check_entries

TEST = "test"
log = logging.getLogger("savepoint")


def score(
    config: dict[str, Any],
    settings: Settings,
    loaded: Checkpoint,
    *,
    split: str,
    source: Path,
    stop: system.signals.Stop,
) -> dict[str, float] | None:
    """Measure on a split what the task measures in validation, with a checkpoint's weights.

    config, settings: a config and its settings, from `trust.check_config`. split: `val` or `test`.
    source: the directory that holds the `project` package.
    Returns: values by name; None if `stop.signal` was set meanwhile.
    Raises: ConfigError if something cannot be built, for example because the data set has no such split;
    CheckpointError if the checkpoint does not fit.
    """
    with weights.tracing(loaded.provenance.get("weights")):
        state, parts = _assemble(config, settings, split=split, source=source)
    _restore(state, loaded)
    weights.begin_epoch(state.model, loaded.state)
    return evaluation.evaluate(state, parts, stop)


def _assemble(config: dict[str, Any], settings: Settings, *, split: str, source: Path) -> tuple[TrainState, Parts]:
    """Build the model, the task and one split of the data, without what only training needs."""
    device = build.pick_device(settings.trainer.device)
    system.rng.seed(settings.seed)
    with registry.collecting() as registered:
        model = weights.make_model(config, source=source).to(device)
        task = trust.make(config["task"], path="task", source=source)
        batches = make_batches(config, settings, split, source=source, device=device)
    state = TrainState(model, {}, registered=registered, averaged=make_average(model, settings))
    return state, Parts(
        settings=settings,
        task=task,
        forward=build.compiled(model, task, settings),
        train=batches,
        val=batches,
        device=device,
        autocast=build.AUTOCAST[settings.amp.dtype],
    )


def _restore(state: TrainState, loaded: Checkpoint) -> None:
    """Restore what an evaluation depends on, without what only training needs. Raises: CheckpointError."""
    check_entries(loaded)
    weights.restore_model(state.model, loaded)
    saved = loaded.state
    there = saved.get("registered", {})
    known = {name: each for name, each in state.registered.items() if isinstance(there, dict) and name in there}
    optional.load_registered(known, loaded)
    optional.restore_average(state.averaged, loaded)
    state.epoch, state.step, state.batch = saved["epoch"], saved["step"], saved["batch"]
    with naming(loaded, "rng"):
        system.rng.restore(saved["rng"])


def score_test(job: Job, state: TrainState, parts: Parts, stop: system.signals.Stop) -> None:
    """Evaluate the best checkpoint on the test split after training is finished, if `trainer.test` asks for it.

    Of several ranks, rank 0 does that.
    Without a `checkpoint.monitor`, or if none of the kept checkpoints was measured, the last checkpoint is evaluated.
    """
    if not job.settings.trainer.test or not finished(state, parts) or not parallel.leads():
        return
    root, kept = job.run.checkpoints, job.settings.checkpoint
    ranked = [] if kept.monitor is None else checkpoint.best(root, monitor=kept.monitor, mode=kept.mode)
    name = (ranked or checkpoint.names(root)[::-1])[0]
    known = (
        each.values
        for each in runs.read_evaluations(job.run.directory)
        if (each.checkpoint, each.split, each.overrides) == (name, TEST, [])
    )
    values = next(known, None)
    if values is None:
        loaded = checkpoint.load(root / name)
        values = score(job.config, job.settings, loaded, split=TEST, source=job.repository / "src", stop=stop)
        if values is None:
            return
        at = {key: loaded.state[key] for key in ("epoch", "step")}
        done = Evaluation(checkpoint=name, **at, split=TEST, overrides=[], values=values)
        runs.record_evaluation(job.run.directory, done)
        job.tracker.wake()
    log.info("test %s: %s", name, trust.printable("  ".join(f"{key} {value:.4g}" for key, value in values.items())))


def example_call(
    config: dict[str, Any], settings: Settings, model: nn.Module, *, source: Path, whole: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with which the task calls the model on validation data, so that the model can be traced.

    model: on the CPU, in evaluation mode. whole: whether to take a whole batch, in place of two samples.
    Returns: positional arguments and keywords of the first call.
    Raises: ConfigError if something cannot be built, or there are no data; UserError if the task calls no model.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((arguments, keywords))

    with system.rng.isolated(), registry.collecting(), torch.no_grad():
        task = trust.make(config["task"], path="task", source=source)
        batches = make_batches(config, settings, "val", source=source, device=torch.device("cpu"))
        if len(batches) == 0:
            raise ConfigError("data.dataset: there is no validation sample to trace the model with.")
        batch = to_device(batches.glance(whole=whole), torch.device("cpu"))
        handle = model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            task(model, batch) if callable(task) else task.evaluate(model, iter([batch]))
        finally:
            handle.remove()
    if not calls:
        raise UserError(f"task: {type(task).__name__} does not call the model itself, so there is no call to trace.")
    return calls[0]


def check_test_split(config: dict[str, Any], settings: Settings, *, source: Path) -> None:
    """Check before training that the data set has a test split. None of its samples is loaded.

    Raises: ConfigError if it has none.
    """
    with system.rng.isolated(), registry.collecting():
        try:
            if config["data"]["dataset"] is None:
                raise ConfigError("data.dataset is null.")
            dataset = make_dataset(config["data"]["dataset"], TEST, source=source)
            if hasattr(dataset, "__len__") and len(dataset) == 0:
                raise ConfigError("data.dataset: its test split is empty.")
        except ConfigError as error:
            raise ConfigError(f"trainer.test=true: there is nothing to test on. {error}") from error
