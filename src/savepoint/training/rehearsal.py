"""Check on few samples of each split that model, data and task fit each other, before a run begins.

Otherwise the first batch would tell, and leave the directory of a run that never trained.
"""

import copy
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import system
from savepoint.errors import BuildError, ConfigError, UserError
from savepoint.training.state import Parts
from savepoint.training.step import to_device
from savepoint.training.task import Outcome

# What torch raises for shapes and types that do not fit. Anything else may as well be a bug in the fork's code.
MISFITS = (ValueError, RuntimeError, TypeError, IndexError)


def rehearse(model: nn.Module, parts: Parts, *, source: Path) -> None:
    """Call the task on a training and on a validation batch, and leave no trace.

    Model and task are copies, so buffers, counters and what a fork registers stay as they are; generators are restored.
    Models that cannot be copied are not rehearsed.

    source: the directory that holds the `project` package.
    Raises: ConfigError or BuildError that names the classes, the batch and the line of the fork's own code.
    """
    with system.rng.isolated():
        try:
            model, task = copy.deepcopy((model, parts.task))
        except Exception:  # a lock or an open file among its attributes, for example: the first batch will tell
            return
        for split, batches in (("training", parts.train), ("validation", parts.val)):
            try:
                _call(model, task, batches.glance(), parts, split)
            except Exception:  # whatever it was: two samples may be too few, or of shapes that no real batch mixes
                batch = batches.glance(whole=True)
                try:
                    _call(model, task, batch, parts, split)
                except UserError:
                    raise
                except Exception as error:
                    raise _fault(error, (model, batches.dataset, task), batch, split, source) from error


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
    kind = parts.device.type
    with (
        torch.set_grad_enabled(split == "training"),
        torch.autocast(kind, dtype=parts.autocast, enabled=parts.autocast is not None),
    ):
        outcome = task(model, to_device(batch, parts.device))
    if not isinstance(outcome, Outcome):
        raise ConfigError(
            f"task: {type(task).__name__} returns a {type(outcome).__name__}, and has to return an Outcome."
        )
    if not isinstance(outcome.loss, Tensor) or outcome.loss.dim() != 0:
        raise ConfigError(f"task: the loss of {type(task).__name__} has to be a tensor without dimensions, the mean.")
    float(outcome.loss.detach())  # waits for the device, whose errors arrive late


def _place(error: Exception, source: Path) -> str:
    """Return the file and line of the fork's own code that the error passed through last."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(source / "project"):
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
