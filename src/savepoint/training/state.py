"""`TrainState` is everything that changes, so it is saved. `Parts` is everything that does not, so it is rebuilt.

What is in neither does not survive a restart.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from savepoint import checkpoint, system
from savepoint.checkpoint import Checkpoint
from savepoint.config import Settings
from savepoint.data import Batches, Stream
from savepoint.errors import CheckpointError
from savepoint.registry import Stateful
from savepoint.training import optimizers, schedules
from savepoint.training.task import Task


class Scheduler(Protocol):
    """What the loop asks of a learning-rate schedule: each of torch.optim.lr_scheduler, and `NoSchedule`."""

    def step(self, metrics: Any = None) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class NoSchedule:
    """`scheduler=none`: the rates stay as the optimizer has them."""

    def step(self, metrics: Any = None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


@dataclass
class TrainState:
    """A run at a point between two updates."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer updates completed
    batch: int = 0  # batches of the epoch in progress that have been trained on
    learning_rates: list[float] = field(default_factory=list)  # that the last update used, one for each parameter group
    metrics: dict[str, float] = field(default_factory=dict)  # of the last complete epoch
    best: dict[str, Any] | None = None  # the best value of checkpoint.monitor, and where it was
    history_lines: int = 0  # of metrics.jsonl
    schedule_length: int | None = None  # planned once, from the end of training as it was planned at the start
    # The epoch in progress: sums over its samples, on the device, and how many samples they are over.
    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    # The same sum of losses and number of samples, when train/recent_loss was last logged.
    logged: tuple[float, int] = (0.0, 0)
    registered: dict[str, Stateful] = field(default_factory=dict)  # a fork's own
    averaged: AveragedModel | None = None  # trainer.ema_decay
    stream: Stream | None = None  # the training data, where they are one: they stand somewhere


@dataclass(frozen=True)
class Parts:
    """Everything of a run that does not change, so it is rebuilt from the config and never saved.

    forward: the model, or its compiled wrapper. fingerprints: for each split, what tells its data from other data.
    """

    settings: Settings
    task: Task
    forward: Callable[..., Any]
    train: Batches | Stream
    val: Batches | Stream
    device: torch.device
    autocast: torch.dtype | None
    searches: bool = False  # the optimizer evaluates the model itself, as often as it likes, in each update
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)


_PLAIN = (
    *("epoch", "step", "batch", "learning_rates", "metrics", "best"),
    *("history_lines", "schedule_length", "samples", "logged", "sums"),
)


_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("epoch", "step", "batch", "history_lines", "samples"), int),
    **dict.fromkeys(
        ("metrics", "sums", "optimizer", "scheduler", "scaler", "model_extra", "model_versions", "rng"), dict
    ),
    "learning_rates": list,
    "logged": tuple,
    "best": dict | None,
    "schedule_length": int | None,
}


def capture(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's tensors under its own names, and all the rest as one tree. Nothing is copied: save it at once."""
    whole = state.model.state_dict()
    model = {name: value for name, value in whole.items() if _holds(name, value)}
    tree = {name: getattr(state, name) for name in _PLAIN}
    tree |= {
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        # Extra state that is no tensor, and the versions of modules: both are part of a state_dict.
        "model_extra": {name: value for name, value in whole.items() if name not in model},
        "model_versions": {name: entry.get("version") for name, entry in getattr(whole, "_metadata", {}).items()},
        # No part of a state_dict: layers that were unfrozen in training would be frozen again.
        "frozen": [name for name, parameter in state.model.named_parameters() if not parameter.requires_grad],
        "averaged": state.averaged.state_dict() if state.averaged else None,
        "registered": {name: thing.state_dict() for name, thing in state.registered.items()},
        "stream": state.stream.state_dict() if state.stream else None,
        "rng": system.rng.capture(),
    }
    return model, tree


def _holds(name: str, value: Any) -> bool:
    """Whether model.safetensors can hold it. What a module calls its extra state is no parameter, even as a tensor."""
    if not isinstance(value, Tensor) or _extra(name) or not checkpoint.nameable(name):
        return False
    return value.layout is torch.strided and value.dtype in checkpoint.NAMES


def _extra(name: str) -> bool:
    return name.rpartition(".")[2] == "_extra_state"  # torch's own name for what `get_extra_state` gives


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Make a freshly built state the saved one. Raises: CheckpointError, with the names, if it does not fit."""
    saved = checkpoint.state
    restore_model(state.model, checkpoint)
    if "frozen" in saved:  # not in the first checkpoints
        for name, parameter in state.model.named_parameters():
            parameter.requires_grad_(name not in saved["frozen"])
    # The scheduler was built before this: built after, four of torch's would start from the wrong rate.
    with _told(checkpoint, "optimizer"):
        optimizers.restore(state.optimizer, saved["optimizer"], where=str(checkpoint.path))
    with _told(checkpoint, "scheduler"):
        schedules.restore(state.scheduler, saved["scheduler"])
    _restore_registered(state.registered, checkpoint)
    _restore_stream(state.stream, checkpoint)
    if state.averaged is not None:
        with _told(checkpoint, "averaged"):
            state.averaged.load_state_dict(saved["averaged"])
    if state.scaler.is_enabled():
        with _told(checkpoint, "scaler"):
            state.scaler.load_state_dict(saved["scaler"])
    for name in _PLAIN:
        setattr(state, name, saved[name])
    device = next(state.model.parameters()).device
    with _told(checkpoint, "sums"):
        state.sums = {name: value.to(device, copy=True) for name, value in saved["sums"].items()}
    # Last: building the model and the data above drew from these generators.
    with _told(checkpoint, "rng"):
        system.rng.restore(saved["rng"])


def _restore_registered(registered: dict[str, Stateful], checkpoint: Checkpoint) -> None:
    saved = checkpoint.state.get("registered", {})  # not in the first checkpoints
    if not isinstance(saved, dict) or saved.keys() != registered.keys():
        raise CheckpointError(
            f"{checkpoint.path} has registered state of {_some(list(saved)) or 'nothing'}, and the config builds "
            f"{_some(list(registered)) or 'nothing'} that registers some."
        )
    for name, thing in registered.items():
        with _told(checkpoint, f"state of {name!r}"):
            thing.load_state_dict(copy.deepcopy(saved[name]))  # whoever takes it changes it in training


def _restore_stream(stream: Stream | None, checkpoint: Checkpoint) -> None:
    saved = checkpoint.state.get("stream")  # not in the first checkpoints
    if stream is not None and saved is None:
        raise CheckpointError(f"{checkpoint.path} was not trained on a stream, and data.dataset is one.")
    if stream is None and saved is not None:
        raise CheckpointError(f"{checkpoint.path} was trained on a stream, and data.dataset is none.")
    if stream is not None and saved is not None:
        with _told(checkpoint, "place in the stream"):
            stream.load_state_dict(saved)


@contextlib.contextmanager
def _told(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """What torch raises where a state is not one of the object that it is given to."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.path}: its {part} is none that can be restored here ({what}).") from error


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights and buffers. Raises: CheckpointError that lists the names that do not fit."""
    fits(model, checkpoint)
    weights, own = _weights(checkpoint), model.state_dict()
    ordered = type(own)((name, weights[name]) for name in own)
    versions = checkpoint.state["model_versions"]
    ordered._metadata = {name: {"version": version} for name, version in versions.items()}  # type: ignore[attr-defined]
    model.load_state_dict(ordered)


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    extra: dict[str, Any] = checkpoint.state["model_extra"]
    return checkpoint.model | extra


def fits(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Names, shapes and dtypes, compared without touching a value: the model may be on the meta device.

    Raises: CheckpointError that lists what is missing, unexpected or of another shape.
    """
    if odd := [name for name, kind in _KINDS.items() if not isinstance(checkpoint.state.get(name), kind)]:
        raise CheckpointError(
            f"{checkpoint.path} is of no training: state.json lacks {', '.join(odd)}, or has another kind."
        )
    own, weights = model.state_dict(), _weights(checkpoint)
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "different": [told for name in own if name in weights and (told := _misfit(name, own[name], weights[name]))],
    }
    if any(kinds.values()):
        faults = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
        raise CheckpointError(f"{checkpoint.path} does not fit the model that the config builds. {faults}.")


def _misfit(name: str, here: Any, there: Any) -> str | None:
    if _extra(name):
        return None  # may be anything, and of another shape at every step
    if isinstance(here, Tensor) != isinstance(there, Tensor):
        return f"{name} is a {type(there).__name__} there and a {type(here).__name__} in the model"
    if isinstance(here, Tensor) and here.shape != there.shape:
        return f"{name} is {list(there.shape)} there and {list(here.shape)} in the model"
    if isinstance(here, Tensor) and here.dtype != there.dtype:
        return f"{name} is {there.dtype} there and {here.dtype} in the model"
    return None


def _some(names: list[str], *, most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(sorted(names)[:most]) + (f" and {rest} more" if rest > 0 else "")
