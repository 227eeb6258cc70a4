"""Check on few samples of each split that model, data and task fit each other, before a run begins.

Otherwise the first batch would show it, and leave behind the directory of a run that never trained.
"""

import copy
import functools
import logging
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import data, parallel, system, trust
from savepoint.errors import BuildError, ConfigError, UserError
from savepoint.training import example, figures, sharding
from savepoint.training.evaluation import measure
from savepoint.training.own_update import Step
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome

# What torch raises for shapes and types that do not fit. Anything else may as well be a bug in the fork's code.
MISFITS = (ValueError, RuntimeError, TypeError, IndexError)
log = logging.getLogger("savepoint")


@dataclass(frozen=True)
class Rehearsal:
    """What the few batches have shown.

    measured: the names that an evaluation of the task's own measures; None if it has no such evaluation or they are not
    known, empty without validation data. example: what `example.pack` makes of the calls of the model.
    every_parameter: whether the loss reaches every parameter. Only found out where several ranks train.
    """

    measured: set[str] | None = None
    example: bytes | None = None
    every_parameter: bool = False


def rehearse(state: TrainState, parts: Parts, *, source: Path) -> "Rehearsal":
    """Call the task on a training and on a validation batch, and leave no trace.

    An update of the task's own is made without the steps of its optimizers; an evaluation of its own gets one batch.
    Model and task are copies, so buffers, counters and what a fork registers stay as they are. Generators are restored.
    A model that cannot be copied is not rehearsed, and neither is one that will be cut among ranks because a device
    cannot hold it.

    source: the directory that holds the `project` package.
    Raises: ConfigError or BuildError that names the classes, the batch and the line of the fork's own code.
    """
    with system.rng.isolated():
        try:
            model, task = copy.deepcopy((state.model, parts.task))
            model.to(parts.device)
        except Exception:  # for example a lock or an open file among the attributes: the first batch will show faults
            return Rehearsal()
        try:
            return _rehearse(state, model, task, parts, source)
        except ConfigError as error:
            if sharding.wanted(parts.settings) and isinstance(error.__cause__, torch.OutOfMemoryError):
                return Rehearsal()
            raise


def _rehearse(state: TrainState, model: nn.Module, task: Any, parts: Parts, source: Path) -> "Rehearsal":
    update = functools.partial(_update, state) if hasattr(task, "update") else _call
    evaluate = _evaluate if hasattr(task, "evaluate") else _call
    measured: set[str] | None = set()
    with example.noting(model) as calls:
        _try(update, model, task, parts, "training", source)
        if len(parts.val) > 0 or evaluate is _evaluate:
            measured = _try(evaluate, model, task, parts, "validation", source)
    if hasattr(task, "figures") and parts.settings.trainer.figures_every_n_epochs is not None:
        _try(_draw, model, task, parts, "validation", source)
    every = all(each.grad is not None for each in model.parameters() if each.requires_grad)
    return Rehearsal(measured, example.pack(calls), every)


def _try(
    call: Callable[..., set[str] | None], model: nn.Module, task: Any, parts: Parts, split: str, source: Path
) -> set[str] | None:
    """Make a call with two samples; if it fails, with a whole batch. Returns: its result, None if it has none."""
    batches = parts.train if split == "training" else parts.val
    try:
        return call(model, task, batches.glance(), parts, split)
    except Exception:  # whatever it was: two samples may be too few, or of shapes that no real batch mixes
        batch = batches.glance(whole=True)
        try:
            return call(model, task, batch, parts, split)
        except UserError:
            raise
        except Exception as error:
            if call not in (_evaluate, _draw) or not isinstance(error, ValueError):
                raise _fault(error, (model, batches.dataset, task), batch, split, source) from error
            # Metric libraries raise ValueError for samples on which a metric is undefined.
            name, words = "evaluate" if call is _evaluate else "figures", " ".join(str(error).split())
            log.warning("%s of %s was tried on one batch of validation and failed, which more samples may mend: %s",
                        name, type(task).__name__, words)  # fmt: skip
            return None


def _fault(error: Exception, parts: tuple[Any, ...], batch: Any, split: str, source: Path) -> ConfigError:
    place, words = _place(error, source), " ".join(str(error).split())
    if type(error) is ValueError and place:  # the fork's own words for a wrong value
        return ConfigError(f"{words}{place}")
    kind = ConfigError if isinstance(error, MISFITS) else BuildError
    names = ", ".join(type(each).__name__ for each in parts)
    return kind(
        f"model, data and task ({names}) do not work together on a {split} batch of {_shapes(batch)}: "
        f"{type(error).__name__}: {words}{place}"
    )


def _call(model: nn.Module, task: Any, batch: Any, parts: Parts, split: str) -> None:
    model.train(split == "training")
    if split == "training" and (begin := getattr(model, "begin_epoch", None)):
        begin(0)
    with torch.set_grad_enabled(split == "training"), parts.autocasting():
        outcome = task(model, data.to_device(batch, parts.device))
    if not isinstance(outcome, Outcome):
        raise ConfigError(
            f"task: {type(task).__name__} returns a {type(outcome).__name__}, and has to return an Outcome."
        )
    _check_loss(task, outcome)
    if split == "training" and parallel.count() > 1:
        outcome.loss.backward()  # type: ignore[no-untyped-call]


def _evaluate(model: nn.Module, task: Any, batch: Any, parts: Parts, split: str) -> set[str]:
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metric libraries warn of a metric that is undefined on so few samples
        return set(measure(task, model, [batch] if len(parts.val) else [], parts))


def _draw(model: nn.Module, task: Any, batch: Any, parts: Parts, split: str) -> None:
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures.render(task, model, [batch] if len(parts.val) else [], parts)


def _check_loss(task: Any, outcome: Outcome) -> None:
    if not isinstance(outcome.loss, Tensor) or outcome.loss.dim() != 0:
        raise ConfigError(f"task: the loss of {type(task).__name__} has to be a tensor without dimensions, the mean.")
    float(outcome.loss.detach())  # waits for the device, whose errors arrive late


class _Rehearsed(Step):
    """An update that differentiates losses and lets no optimizer step. model: a copy of the run's."""

    def __init__(self, state: TrainState, parts: Parts, model: nn.Module) -> None:
        super().__init__(state, parts, batches=1)
        self.model, named = model, dict(state.model.named_parameters())
        copies = {id(parameter): each for parameter, each in zip(named.values(), model.parameters(), strict=True)}
        self._copies = {
            name: [copies[id(each)] for group in one.param_groups for each in group["params"]]
            for name, one in self.optimizers.items()
        }

    def minimize(
        self, loss: Tensor, optimizer: str = "", *, samples: int | None = None, retain_graph: bool = False, **_: Any
    ) -> None:
        self._share(loss, optimizer, samples)
        parameters = [each for each in self._copies[optimizer] if each.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
        if all(each is None for each in gradients):
            raise ConfigError(f"task: the loss for optimizer {optimizer!r} depends on none of its parameters.")


def _update(state: TrainState, model: nn.Module, task: Any, batch: Any, parts: Parts, split: str) -> None:
    model.train()
    if begin := getattr(model, "begin_epoch", None):
        begin(0)
    _check_loss(task, _Rehearsed(state, parts, model).take(task, batch))


def _place(error: Exception, source: Path) -> str:
    """Return the file and line of the fork's own code that the error passed through last."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(source / trust.package(source)):
            return f" ({path.relative_to(source.parent)}, line {frame.lineno})"
    return ""


def _shapes(batch: Any) -> str:
    """Describe a batch in a few words: the type and shape of each tensor.

    >>> _shapes((torch.zeros(2, 8, 8), {"target": torch.zeros(2, dtype=torch.int64), "name": "a"}))
    '(float32 [2, 8, 8], {target: int64 [2], name: str})'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, dict):
        return f"{{{', '.join(f'{key}: {_shapes(value)}' for key, value in batch.items())}}}"
    if isinstance(batch, list | tuple):
        few = [_shapes(each) for each in batch[:8]] + ["…"] * (len(batch) > 8)
        return f"({', '.join(few)})"
    return type(batch).__name__
