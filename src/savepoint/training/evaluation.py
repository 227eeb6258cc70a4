"""One evaluation: measure the model on the validation set, and leave training as it was."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from savepoint import data, system
from savepoint.errors import ConfigError
from savepoint.training.state import Parts, TrainState
from savepoint.training.team import agreed, total


def due(state: TrainState, parts: Parts) -> bool:
    """Whether the config wants this state evaluated, and it has not been evaluated yet.

    The config wants the end of each epoch evaluated; or, with `trainer.evaluate_every_n_steps`, every n-th update and
    the planned end. With `trainer.evaluate_first` it also wants the state before the first update evaluated.
    """
    trainer = parts.settings.trainer
    if state.evaluated == state.step:
        return False
    if state.step == 0:
        return trainer.evaluate_first
    if trainer.evaluate_every_n_steps is None:
        return state.batch == len(parts.train)
    last = state.batch == len(parts.train) and state.epoch + 1 == trainer.max_epochs
    return state.step % trainer.evaluate_every_n_steps == 0 or state.step == trainer.max_steps or last


def evaluate(state: TrainState, parts: Parts, stop: system.signals.Stop) -> dict[str, float] | None:
    """Measure loss and metrics over the validation set.

    Returns: values by name, those of averaged weights under `ema_loss` and so on; None if `stop.signal` was set
    meanwhile.
    """
    measured = _evaluate(state.model, parts.forward, state.epoch, parts, stop)
    if measured is None or state.averaged is None:
        return measured
    average = state.averaged.module
    averaged = _evaluate(average, average, state.epoch, parts, stop)
    return None if averaged is None else measured | {f"ema_{name}": value for name, value in averaged.items()}


class Stopped(Exception):
    """Ends an evaluation that is not needed any more."""


@contextlib.contextmanager
def validating(
    model: nn.Module, parts: Parts, epoch: int, stop: system.signals.Stop, *, whole: bool = False
) -> Iterator[Iterator[Any]]:
    """Provide the batches of validation, which raise Stopped once a stop is asked for.

    The model is in evaluation mode. Afterwards every generator is as it was, and so is the mode of every module.
    whole: whether to provide whole batches where several ranks divide them.
    """
    given = parts.val.whole if whole and parts.team is not None else parts.val
    together = parts.team is not None and parts.team.together
    with (
        system.rng.isolated(),
        _evaluating(model),
        torch.no_grad(),
        contextlib.closing(_until(stop, given.epoch(epoch), together=together)) as batches,
    ):
        yield batches


def _evaluate(
    model: nn.Module, forward: Callable[..., Any], epoch: int, parts: Parts, stop: system.signals.Stop
) -> dict[str, float] | None:
    own = hasattr(parts.task, "evaluate")
    if not own and len(parts.val) == 0:
        return {}  # no data
    found: Any = None
    with contextlib.suppress(Stopped), validating(model, parts, epoch, stop, whole=own) as batches:
        found = measure(parts.task, forward, batches, parts) if own else _sums(forward, batches, parts)
    # A task that catches every exception has also caught Stopped. A rank that was not asked waits for one that was.
    # Without a team this rank evaluates alone, for example on the test split, and the others are not there to agree.
    asked = stop.asked if parts.team is None else stop.agree()
    if asked is not None and (own or found is None or parts.team is not None):
        return None
    if parts.team is not None:
        found = agreed(found) if own else total(*found)
    return found if own else summarise(parts, *found)


def _until(stop: system.signals.Stop, batches: Iterable[Any], *, together: bool) -> Generator[Any]:
    """Yield batches until a stop is asked for. together: whether all ranks have to stop at the same batch."""
    for batch in batches:
        if (stop.agree() if together else stop.asked) is not None:
            raise Stopped
        yield batch


def on_device(batches: Iterable[Any], parts: Parts) -> Iterator[Any]:
    """Move each batch to the device, as it is asked for."""
    return (data.to_device(batch, parts.device) for batch in batches)


def measure(task: Any, forward: Callable[..., Any], batches: Iterable[Any], parts: Parts) -> dict[str, float]:
    """Let a task evaluate by itself. Raises: ConfigError if it returns anything but numbers by name."""
    with parts.autocasting():
        values = task.evaluate(forward, on_device(batches, parts))
    name = type(task).__name__
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise ConfigError(f"task: evaluate of {name} returns a {kind}, and has to return numbers by name.")
    try:
        return {str(key): float(value) for key, value in values.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"task: evaluate of {name} returns what is no number: {error}.") from error


def _sums(forward: Callable[..., Any], batches: Iterable[Any], parts: Parts) -> tuple[dict[str, Tensor], int]:
    """Add up the loss and the task's sums over this rank's samples. Returns: the sums, and the number of samples."""
    sums: dict[str, Tensor] = {}
    samples = 0
    for number, batch in enumerate(batches):
        placeholder = parts.team is not None and not parts.val.share(number)  # the other ranks have the whole batch
        if placeholder and not parts.team.together:  # type: ignore[union-attr]
            continue
        outcome = parts.outcome(forward, batch)
        if placeholder:
            continue
        samples += outcome.samples
        outcome.add_to(sums)
    return sums, samples


def summarise(parts: Parts, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
    """Compute `loss` and the task's metrics from sums over the samples of all ranks. Waits for the device."""
    host = {name: value.cpu() for name, value in sums.items()}
    loss = float(host.pop("loss")) / samples
    # Python's own floats, because a metric library may return NumPy scalars or tensors, which JSON cannot hold.
    return {"loss": loss} | {name: float(value) for name, value in parts.task.compute(host, samples).items()}


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # one by one, since a model may keep some of its layers in evaluation mode
            module.training = mode
            if isinstance(module, FSDPModule):  # without a backward pass, its parameters would stay whole
                module.reshard()
