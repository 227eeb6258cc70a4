"""One optimizer update; one evaluation pass."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import system
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome

ALIGNMENT = 64  # bytes: that of torch's CPU allocator


def update(state: TrainState, parts: Parts, window: list[Any]) -> None:
    """Train on one window of batches: one update, whose gradient is the mean over all samples of the window.

    window: `trainer.accumulate` batches, fewer at the end of an epoch; they may be of different sizes.
    """
    if parts.searches:
        samples = _search(state, parts, window)
    else:
        samples = _differentiate(state, parts, window, state.sums)
        state.learning_rates = [float(group["lr"]) for group in state.optimizer.param_groups]
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)
    # Before any checkpoint: gradients are never state.
    state.optimizer.zero_grad()
    state.samples += samples
    state.batch += len(window)
    state.step += 1  # also where the scaler skipped the update: schedules follow the data, not the overflows


def _differentiate(state: TrainState, parts: Parts, window: list[Any], sums: dict[str, Tensor]) -> int:
    """Leave the window's gradient, clipped, in the parameters; add to `sums`. Returns: its number of samples."""
    unit = total = 0
    for batch in window:
        outcome = _forward(parts, parts.forward, batch)
        unit = unit or outcome.samples
        total += outcome.samples
        # Weighted relative to the first batch and put right below: the window's size is known only after its last one.
        loss = outcome.loss if outcome.samples == unit else outcome.loss * (outcome.samples / unit)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        _add(sums, outcome)
    if total != unit:
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, unit / total)
    if parts.settings.trainer.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), parts.settings.trainer.clip_grad_norm)
    return total


def _search(state: TrainState, parts: Parts, window: list[Any]) -> int:
    """An update of an optimizer that evaluates the window as often as it likes. The first time counts for the metrics.

    Each evaluation draws the same random numbers: a search needs one function, not another at every point.
    Returns: the window's number of samples.
    """
    drawn, samples = system.rng.capture(), 0

    def closure() -> Tensor:
        nonlocal samples
        state.optimizer.zero_grad()
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

    state.learning_rates = [float(group["lr"]) for group in state.optimizer.param_groups]
    state.optimizer.step(closure)  # type: ignore[arg-type]  # a tensor, which torch makes a float
    return samples


def evaluate(state: TrainState, parts: Parts, stop: system.signals.Stop) -> dict[str, float] | None:
    """Loss and metrics over the validation set, as means over its samples; None if a stop was asked for meanwhile.

    Those of the averaged weights, where there are any, are under `ema_loss` and so on.
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
    """Leaves every generator and every module's mode as it found them: evaluating must not change what is trained."""
    sums: dict[str, Tensor] = {}
    samples = 0
    with system.rng.isolated(), _evaluating(model), torch.no_grad():
        for batch in parts.val.epoch(epoch):
            if stop.signal is not None:
                return None
            outcome = _forward(parts, forward, batch)
            samples += outcome.samples
            _add(sums, outcome)
    return summarise(parts, sums, samples)


def summarise(parts: Parts, sums: dict[str, Tensor], samples: int) -> dict[str, float]:
    """`loss` and the task's metrics from an epoch's sums. Waits for the device."""
    host = {name: value.cpu() for name, value in sums.items()}
    loss = float(host.pop("loss")) / samples
    # As Python's own floats: what a library gave may be NumPy's or a tensor, which no JSON holds.
    return {"loss": loss} | {name: float(value) for name, value in parts.task.compute(host, samples).items()}


def _forward(parts: Parts, forward: Callable[..., Any], batch: Any) -> Outcome:
    batch = to_device(batch, parts.device)
    if parts.autocast is None:
        return parts.task(forward, batch)
    with torch.autocast(parts.device.type, dtype=parts.autocast):
        return parts.task(forward, batch)


def _add(sums: dict[str, Tensor], outcome: Outcome) -> None:
    # Added up on the device: reading a loss on every step would wait for the device on every step.
    if "loss" not in sums:
        wide = torch.float32 if outcome.loss.device.type == "mps" else torch.float64
        sums["loss"] = torch.zeros((), dtype=wide, device=outcome.loss.device)
    sums["loss"].add_(outcome.loss.detach(), alpha=outcome.samples)  # multiplied in the wider type
    for name, value in outcome.sums.items():
        if name in sums:
            sums[name] += value
        else:
            sums[name] = value.clone()


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors anywhere in tuples, lists and dicts. Does not wait: pinned memory is copied beside the computation."""
    if isinstance(batch, Tensor):
        if device.type != "cpu":
            return batch.to(device, non_blocking=True)
        # Math libraries promise equal bits only for equally aligned memory. Torch's own is aligned; NumPy's, and so
        # what `from_numpy` gives, lies differently in every process.
        return batch if batch.data_ptr() % ALIGNMENT == 0 else batch.clone()
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one: a fork may keep some of its layers in evaluation mode
            module.training = mode
