"""Hold an optimizer with its learning-rate schedule and its gradient scaler, and save and restore them together."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from savepoint.checkpoint import Checkpoint
from savepoint.errors import CheckpointError, short_list
from savepoint.training import optimizer_state, schedules


class Scheduler(Protocol):
    """The part of a learning-rate schedule that the loop uses. torch's schedulers and `NoSchedule` have it."""

    def step(self, metrics: Any = None) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class NoSchedule:
    """The schedule of `scheduler=none`: the optimizer keeps its rates."""

    def step(self, metrics: Any = None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Scaler(torch.amp.GradScaler):
    """torch's gradient scaler, which also counts the updates that it skipped, without waiting for the device."""

    skipped: Tensor | int = 0

    def update(self, new_scale: float | Tensor | None = None) -> None:
        if self.is_enabled():
            scale: Tensor = self._scale  # type: ignore[assignment]  # None before the first loss
            before = scale.clone()
            super().update(new_scale)
            self.skipped = self.skipped + (scale < before)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"skipped": int(self.skipped)} if self.is_enabled() else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)  # the first checkpoints lack it


@dataclass
class Optimization:
    """An optimizer and what belongs to it.

    scaler: scales its losses in float16. Optimizers that step on one loss share a scaler.
    """

    optimizer: Optimizer
    scheduler: Scheduler
    scaler: Scaler
    learning_rates: list[float] = field(default_factory=list)  # used by the last update, one for each parameter group
    schedule_length: int | None = None  # planned once, from the end of training as the run was started

    def note_rates(self) -> None:
        """Note the learning rates of the update that is about to be made."""
        self.learning_rates = [float(group["lr"]) for group in self.optimizer.param_groups]


# The entries of each optimizer in a checkpoint. Optimizers with names have theirs in `optimizers`, by name. The only
# optimizer of a config without names has its entries among the others of the state.
_ENTRIES: dict[str, type | UnionType] = {
    **dict.fromkeys(("optimizer", "scheduler", "scaler"), dict),
    "learning_rates": list,
    "schedule_length": int | None,
}


def capture(here: dict[str, Optimization]) -> dict[str, Any]:
    """Collect the state of each optimizer as entries of a checkpoint's state. here: the optimizers by name."""
    entries = {
        name: {
            "optimizer": one.optimizer.state_dict(),
            "scheduler": schedules.capture(one.scheduler),
            "scaler": one.scaler.state_dict(),
            "learning_rates": one.learning_rates,
            "schedule_length": one.schedule_length,
        }
        for name, one in here.items()
    }
    return entries.get("") or {"optimizers": entries}


def entries(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of each optimizer in a checkpoint's state, by name. `faulty` has checked their types."""
    named: dict[str, dict[str, Any]] = saved.get("optimizers") or {"": saved}
    return named


def faulty(saved: dict[str, Any]) -> list[str]:
    """Name the entries of optimizers that a checkpoint's state lacks or has with a wrong type."""
    named = saved.get("optimizers", {"": saved})
    if not isinstance(named, dict) or not named or not all(isinstance(each, dict) for each in named.values()):
        return ["optimizers"]
    return [
        f"optimizers.{name}.{key}" if name else key
        for name, each in named.items()
        for key, kind in _ENTRIES.items()
        if not isinstance(each.get(key), kind)
    ]


def restore(here: dict[str, Optimization], checkpoint: Checkpoint) -> None:
    """Restore freshly built optimizers, their schedules and scalers. Raises: CheckpointError that names the entry."""
    there = entries(checkpoint.state)
    if there.keys() != here.keys():
        was, is_ = (
            short_list(sorted(each), most=6) if "" not in each else "one without a name" for each in (there, here)
        )
        raise CheckpointError(f"{checkpoint.path}: its optimizers are {was}, and those of the config are {is_}.")
    for name, one in here.items():
        saved, prefix = there[name], f"optimizers.{name}." if name else ""
        # The scheduler was built before this. If it were built after, four of torch's would start from the wrong rate.
        with naming(checkpoint, f"{prefix}optimizer"):
            optimizer_state.restore(one.optimizer, saved["optimizer"], where=str(checkpoint.path))
        with naming(checkpoint, f"{prefix}scheduler"):
            schedules.restore(one.scheduler, saved["scheduler"])
        if one.scaler.is_enabled():
            with naming(checkpoint, f"{prefix}scaler"):
                one.scaler.load_state_dict(saved["scaler"])
        one.learning_rates, one.schedule_length = saved["learning_rates"], saved["schedule_length"]


@contextlib.contextmanager
def naming(checkpoint: Checkpoint, entry: str) -> Iterator[None]:
    """Name the checkpoint and its entry in whatever is raised while an object loads a state that does not fit it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.path}: its state {entry!r} cannot be restored here ({what}).") from error
