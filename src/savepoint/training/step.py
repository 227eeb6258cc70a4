"""One optimizer update."""

from typing import Any

import torch
from torch import Tensor

from savepoint import parallel, system
from savepoint.training.own_update import clip, own_update
from savepoint.training.state import Parts, TrainState
from savepoint.training.team import total as total_of_ranks


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
    if parts.team is not None:
        parts.team.end_update()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)
    _drop_gradients(state)  # before any checkpoint, because gradients are never saved
    state.samples += samples
    state.batch += len(window)
    state.step += 1  # even if the scaler skipped the update: schedules follow the data, not the overflows


def _drop_gradients(state: TrainState) -> None:
    """Set the gradients of all parameters to None."""
    if "" in state.optimizers:
        # What zero_grad does, without what it reports to torch's profiler: 25 µs in the update of a small model.
        for group in state.optimizers[""].optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
    else:
        # The model may have gradients that no optimizer knows of: those of frozen parameters, or of a task's own
        # backward passes.
        state.model.zero_grad()


def _differentiate(state: TrainState, parts: Parts, window: list[Any], sums: dict[str, Tensor]) -> int:
    """Leave the window's clipped gradient in the parameters and add to `sums`. Returns: the number of samples."""
    total, scaler, team = 0, next(iter(state.optimizers.values())).scaler, parts.team
    unit: float = 0 if team is None else team.unit
    for number, batch in enumerate(window, 1):
        if team is not None:
            team.collect(last=number == len(window))
        outcome = parts.outcome(parts.forward if team is None else team.model, batch)
        samples = outcome.samples if parts.share(state.batch + number - 1) else 0
        unit = unit or outcome.samples
        total += samples
        # Weighted relative to the first batch. The division by the window's size follows below, once it is known.
        loss = outcome.loss if samples == unit else outcome.loss * (samples / unit)
        if team is not None and number == len(window):
            loss = team.weigh(total, loss)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if samples:
            outcome.add_to(sums)
    # Both numbers are 0 where a task counted no sample.
    scale = (unit / total if total != unit else 1) if team is None else team.scale()
    if scale != 1:
        gradients = [parallel.own(each.grad) for each in state.model.parameters() if each.grad is not None]
        torch._foreach_mul_(gradients, scale)
    limit = parts.settings.trainer.clip_grad_norm
    if limit is not None or parts.wants_norm(state):
        for one in state.optimizers.values():
            scaler.unscale_(one.optimizer)
        state.grad_norms[""] = clip(state.model.parameters(), limit)
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
        whole, count = total_of_ranks(sums, total)
        loss = whole["loss"] / count
        if not samples:
            samples = total
            for name, value in sums.items():
                state.sums[name] = state.sums[name] + value if name in state.sums else value
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # torch makes the tensor a float
    return samples
