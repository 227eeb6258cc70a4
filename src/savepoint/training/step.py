"""One optimizer update; one evaluation pass."""

import contextlib
import copy
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from savepoint import system
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome

ALIGNMENT = 64  # bytes, as torch's CPU allocator aligns
NON_BLOCKING: tuple[type[Any], ...] = (Tensor, PackedSequence)  # those whose `to` takes the argument non_blocking


def update(state: TrainState, parts: Parts, window: list[Any]) -> None:
    """Make one optimizer update, whose gradient is the mean over all samples of a window of batches.

    window: `trainer.accumulate` batches, fewer at the end of an epoch. They may differ in size.
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
    # Here, before any checkpoint is taken, because gradients are never saved.
    state.optimizer.zero_grad()
    state.samples += samples
    state.batch += len(window)
    state.step += 1  # even if the scaler skipped the update: schedules follow the data, not the overflows


def _differentiate(state: TrainState, parts: Parts, window: list[Any], sums: dict[str, Tensor]) -> int:
    """Leave the window's clipped gradient in the parameters and add to `sums`. Returns: the number of samples."""
    unit = total = 0
    for batch in window:
        outcome = _forward(parts, parts.forward, batch)
        unit = unit or outcome.samples
        total += outcome.samples
        # Weighted relative to the first batch. The division by the window's size follows below, once it is known.
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
    """Make an update with an optimizer that evaluates the window as often as it likes, such as LBFGS.

    Every evaluation draws the same random numbers, so that the search is over one function. The first evaluation counts
    for the metrics. Returns: the number of samples in the window.
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
    state.optimizer.step(closure)  # type: ignore[arg-type]  # torch makes the tensor a float
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
            _add(sums, outcome)
    return summarise(parts, sums, samples)


def summarise(parts: Parts, sums: dict[str, Tensor], samples: int) -> dict[str, float]:
    """Compute `loss` and the task's metrics from an epoch's sums. Waits for the device."""
    host = {name: value.cpu() for name, value in sums.items()}
    loss = float(host.pop("loss")) / samples
    # Python's own floats, because a metric library may return NumPy scalars or tensors, which JSON cannot hold.
    return {"loss": loss} | {name: float(value) for name, value in parts.task.compute(host, samples).items()}


def _forward(parts: Parts, forward: Callable[..., Any], batch: Any) -> Outcome:
    batch = to_device(batch, parts.device)
    if parts.autocast is None:
        return parts.task(forward, batch)
    with torch.autocast(parts.device.type, dtype=parts.autocast):
        return parts.task(forward, batch)


def _add(sums: dict[str, Tensor], outcome: Outcome) -> None:
    # Added up on the device: reading the loss here would wait for the device at every step.
    if "loss" not in sums:
        wide = torch.float32 if outcome.loss.device.type == "mps" else torch.float64
        sums["loss"] = torch.zeros((), dtype=wide, device=outcome.loss.device)
    sums["loss"].add_(outcome.loss.detach(), alpha=outcome.samples)  # multiplies in the wider type
    for name, value in outcome.sums.items():
        if name in sums:
            sums[name] += value
        else:
            sums[name] = value.clone()


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch: tensors, objects with a method `to(device)`, and those within tuples, lists and mappings.

    Containers keep their type; everything else is returned as it is. Tensors in pinned memory are copied while the
    computation goes on.
    """
    if isinstance(batch, NON_BLOCKING) and device.type != "cpu":
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Tensor):
        # Math libraries promise equal bits only for equally aligned memory. Torch aligns its own. NumPy does not, so
        # the address of a tensor from `from_numpy` differs from process to process.
        return batch if batch.data_ptr() % ALIGNMENT == 0 else batch.clone()
    # Asked of the class: a mapping may offer its keys as attributes, and a namedtuple may have a field named `to`.
    if callable(getattr(type(batch), "to", None)):
        return batch.to(device)
    if isinstance(batch, (list, tuple)):
        values = [to_device(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # keeps what a subclass has besides its items, such as a default
        moved.update({key: to_device(value, device) for key, value in batch.items()})
        return moved
    return batch


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one, since a model may keep some of its layers in evaluation mode
            module.training = mode
