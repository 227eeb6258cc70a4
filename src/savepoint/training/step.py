"""One optimizer update; one evaluation pass."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import data, system
from savepoint.training.own_update import own_update
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome


def update(state: TrainState, parts: Parts, window: list[Any]) -> None:
    """Make one update, whose gradient is the mean over all samples of a window of batches.

    Every optimizer steps on the gradient of the task's one loss. A task with `update` decides itself what its
    optimizers step on.

    window: `trainer.accumulate` batches, fewer at the end of an epoch. They may differ in size.
    """
    for one in state.optimizers.values():
        one.note_rates()
    if hasattr(parts.task, "update"):
        samples = own_update(state, parts, window)
    elif parts.searches:
        samples = _search(state, parts, window)
    else:
        samples = _differentiate(state, parts, window, state.sums)
        for one in state.optimizers.values():
            one.scaler.step(one.optimizer)
        one.scaler.update()  # the optimizers of one loss share a scaler
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)
    # Here, before any checkpoint is taken, because gradients are never saved. With names, the model may have some that
    # no optimizer knows of: those of frozen parameters, or of a task's own backward passes.
    (state.optimizers[""].optimizer if "" in state.optimizers else state.model).zero_grad()
    state.samples += samples
    state.batch += len(window)
    state.step += 1  # even if the scaler skipped the update: schedules follow the data, not the overflows


def _differentiate(state: TrainState, parts: Parts, window: list[Any], sums: dict[str, Tensor]) -> int:
    """Leave the window's clipped gradient in the parameters and add to `sums`. Returns: the number of samples."""
    unit, total, scaler = 0, 0, next(iter(state.optimizers.values())).scaler
    for batch in window:
        outcome = _forward(parts, parts.forward, batch)
        unit = unit or outcome.samples
        total += outcome.samples
        # Weighted relative to the first batch. The division by the window's size follows below, once it is known.
        loss = outcome.loss if outcome.samples == unit else outcome.loss * (outcome.samples / unit)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        outcome.add_to(sums)
    if total != unit:
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, unit / total)
    if parts.settings.trainer.clip_grad_norm is not None:
        for one in state.optimizers.values():
            scaler.unscale_(one.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), parts.settings.trainer.clip_grad_norm)
    return total


def _search(state: TrainState, parts: Parts, window: list[Any]) -> int:
    """Make an update with an optimizer that evaluates the window as often as it likes, such as LBFGS.

    Every evaluation draws the same random numbers, so that the search is over one function. The first evaluation counts
    for the metrics. Returns: the number of samples in the window.
    """
    drawn, samples = system.rng.capture(), 0
    (optimizer,) = (one.optimizer for one in state.optimizers.values())

    def closure() -> Tensor:
        nonlocal samples
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        if samples:
            system.rng.restore(drawn)
        total = _differentiate(state, parts, window, sums)
        loss = sums["loss"] / total
        if not samples:
            samples = total
            for name, value in sums.items():
                state.sums[name] = state.sums[name] + value if name in state.sums else value
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch makes the tensor a float
    return samples


def evaluate(state: TrainState, parts: Parts, stop: system.signals.Stop) -> dict[str, float] | None:
    """Measure loss and metrics over the validation set, as means over its samples.

    Returns: values by name, with those of averaged weights under `ema_loss` and so on; None if `stop.signal` was set
    meanwhile.
    """
    measured = _evaluate(state.model, parts.forward, state.epoch, parts, stop)
    if measured is None or state.averaged is None:
        return measured
    average = state.averaged.module
    averaged = _evaluate(average, average, state.epoch, parts, stop)
    return None if averaged is None else measured | {f"ema_{name}": value for name, value in averaged.items()}


def _evaluate(
    model: nn.Module, forward: Callable[..., Any], epoch: int, parts: Parts, stop: system.signals.Stop
) -> dict[str, float] | None:
    """Measure one model. Every generator and every module's mode is afterwards as before, so training is unaffected."""
    sums: dict[str, Tensor] = {}
    samples = 0
    with system.rng.isolated(), _evaluating(model), torch.no_grad():
        for batch in parts.val.epoch(epoch):
            if stop.signal is not None:
                return None
            outcome = _forward(parts, forward, batch)
            samples += outcome.samples
            outcome.add_to(sums)
    return summarise(parts, sums, samples)


def summarise(parts: Parts, sums: dict[str, Tensor], samples: int) -> dict[str, float]:
    """Compute `loss` and the task's metrics from an epoch's sums. Waits for the device."""
    host = {name: value.cpu() for name, value in sums.items()}
    loss = float(host.pop("loss")) / samples
    # Python's own floats, because a metric library may return NumPy scalars or tensors, which JSON cannot hold.
    return {"loss": loss} | {name: float(value) for name, value in parts.task.compute(host, samples).items()}


def _forward(parts: Parts, forward: Callable[..., Any], batch: Any) -> Outcome:
    batch = data.to_device(batch, parts.device)
    with parts.autocasting():
        return parts.task(forward, batch)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one, since a model may keep some of its layers in evaluation mode
            module.training = mode
