"""`TrainState` is everything that changes, so it is saved. `Parts` is everything that does not, so it is rebuilt.

What is in neither does not survive a restart. `capture` and `restore` are inverses. They stand in this module beside
the fields that they save, so that a missing field is seen at a glance.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from savepoint import checkpoint, parallel, system, weights
from savepoint.checkpoint import Checkpoint
from savepoint.config import Settings
from savepoint.data import NEWEST_ORDER, OLDEST_ORDER, ORDERS, Batches, NoData, Stream, to_device
from savepoint.errors import CheckpointError
from savepoint.registry import Stateful
from savepoint.training import optimization, optional, ranks
from savepoint.training.optimization import Optimization, naming
from savepoint.training.task import Outcome, Task
from savepoint.training.team import Team
from savepoint.weights import restore_model


@dataclass
class TrainState:
    """A run between two updates: everything that training changes.

    optimizers: by their names in the config. The only optimizer of a config without names is `optimizers[""]`.
    """

    model: nn.Module
    optimizers: dict[str, Optimization]
    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer updates completed
    batch: int = 0  # batches of the current epoch that have been trained on
    evaluated: int | None = None  # the step of the last evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # logged at the last evaluation
    best: dict[str, Any] | None = None  # best value of checkpoint.monitor, with its epoch and step
    stale: int = 0  # evaluations since the best one, or since the start if no value was a number
    history_lines: int = 0  # lines of metrics.jsonl
    order: str = NEWEST_ORDER  # how training samples are shuffled; a run keeps what it began with
    # Sums over the samples since the last evaluation, on the device, and the number of these samples.
    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    # The sums when train/recent_loss was last logged: that of losses, with the number of samples; and the others.
    logged: tuple[float, int] = (0.0, 0)
    logged_sums: dict[str, Tensor] = field(default_factory=dict)
    # The norm of the last gradient before it was clipped, by the name of the optimizer; "" for all parameters.
    grad_norms: dict[str, Tensor] = field(default_factory=dict)
    registered: dict[str, Stateful] = field(default_factory=dict)  # what a fork's own code registers
    averaged: AveragedModel | None = None  # for trainer.ema_decay
    stream: Stream | None = None  # the training data if they are a stream, whose position changes


@dataclass(frozen=True)
class Parts:
    """Everything of a run that does not change, so it is rebuilt from the config and never saved.

    forward: the model, or its compiled wrapper. searches: whether the optimizer evaluates the model itself, several
    times in each update. fingerprints: for each split, what tells its data from other data. weights: the origin and
    the digests of weights that were loaded from elsewhere. example: a call of the model, as a safetensors file.
    every_parameter: whether each update reaches every parameter; looked at only where several ranks train.
    team: the other ranks, if several processes train the run.
    """

    settings: Settings
    task: Task
    forward: Callable[..., Any]
    train: Batches | Stream | NoData
    val: Batches | Stream | NoData
    device: torch.device
    autocast: torch.dtype | None
    searches: bool = False
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: list[dict[str, Any]] = field(default_factory=list)
    example: bytes | None = None
    every_parameter: bool = False
    team: Team | None = None

    def share(self, batch: int) -> int:
        """Return how many samples of a training batch count, by the batch's number in the epoch; 1 if all do.

        Several ranks divide each batch. A rank for which nothing is left has a placeholder, and 0.
        """
        return 1 if self.team is None else self.train.share(batch)

    def autocasting(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that computes in the precision of `amp`."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def wants_norm(self, state: TrainState) -> bool:
        """Whether the norm of the coming update's gradient is logged because `trainer.log_grad_norm` asks for it."""
        trainer = self.settings.trainer
        every = trainer.log_every_n_steps
        return trainer.log_grad_norm and every is not None and (state.step + 1) % every == 0

    def outcome(self, forward: Callable[..., Any], batch: Any) -> Outcome:
        """Let the task measure a batch, on the device. forward: the model, or another that is called like it."""
        batch = to_device(batch, self.device)
        with self.autocasting():
            return self.task(forward, batch)


# The fields of TrainState that are saved as they are, and the further entries of every checkpoint.
_PLAIN: dict[str, type | UnionType] = {
    **dict.fromkeys(("epoch", "step", "batch"), int),
    "metrics": dict,
    "best": dict | None,
    "history_lines": int,
    "samples": int,
    "logged": tuple,
    "sums": dict,
}
# Fields that the first checkpoints lack. Their runs evaluated after every epoch, and only then. Those of format 1 lack
# `order`.
_LATER: dict[str, type | UnionType] = {
    "evaluated": int | None,
    "stale": int,
    "order": str,
    **dict.fromkeys(("logged_sums", "grad_norms"), dict),
}
_STATES = ("model_extra", "model_versions", "rng")


def capture(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect the state as the model's tensors under its own names, and a tree of everything else.

    Of several ranks, each collects its own. Nothing is copied: save both before training goes on.
    """
    whole = state.model.state_dict()
    model = {name: value for name, value in whole.items() if _holds(name, value)}
    tree = {name: getattr(state, name) for name in _PLAIN | _LATER}
    tree |= optimization.capture(state.optimizers)
    tree |= {
        # A state_dict also has entries that no safetensors file can hold, and the versions of modules.
        "model_extra": {name: value for name, value in whole.items() if name not in model},
        "model_versions": {name: entry.get("version") for name, entry in getattr(whole, "_metadata", {}).items()},
        # A state_dict lacks this. Without it, layers that training froze or unfroze would be as they were built.
        "frozen": [name for name, parameter in state.model.named_parameters() if not parameter.requires_grad],
        "averaged": state.averaged.state_dict() if state.averaged else None,
        "registered": {name: stateful.state_dict() for name, stateful in state.registered.items()},
        "stream": state.stream.state_dict() if state.stream else None,
        "rng": system.rng.capture(),
    }
    return model, tree


def _holds(name: str, value: Any) -> bool:
    """Whether model.safetensors holds this entry. Extra state of a module is no parameter, even as a tensor."""
    if not isinstance(value, Tensor) or _extra(name) or not checkpoint.nameable(name):
        return False
    return value.layout is torch.strided and value.dtype in checkpoint.NAMES


def _extra(name: str) -> bool:
    return name.rpartition(".")[2] == "_extra_state"  # torch's name for the result of `get_extra_state`


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Make a freshly built state the saved one. Raises: CheckpointError that names what does not fit."""
    check_entries(checkpoint)
    saved = ranks.of_this_one(checkpoint)
    checkpoint = dataclasses.replace(checkpoint, state=saved)
    restore_model(state.model, checkpoint)
    if "frozen" in saved:  # the first checkpoints lack it
        for name, parameter in state.model.named_parameters():
            parameter.requires_grad_(name not in saved["frozen"])
    optimization.restore(state.optimizers, checkpoint)
    optional.restore_registered(state.registered, checkpoint)
    optional.restore_stream(state.stream, checkpoint)
    optional.restore_average(state.averaged, checkpoint)
    for name in _PLAIN:
        setattr(state, name, saved[name])
    state.evaluated = saved.get("evaluated", state.step if state.batch == 0 else None)
    state.order = saved.get("order", OLDEST_ORDER)
    if state.order not in ORDERS:
        raise CheckpointError(
            f"{checkpoint.path}: its training samples have the order {state.order!r}, which this version of Savepoint "
            f"does not know. It knows {', '.join(ORDERS)}."
        )
    state.stale = saved.get("stale", state.epoch - (state.best["epoch"] if state.best else 0))
    device = parallel.computing_device(next(state.model.parameters()))
    for name in ("sums", "logged_sums", "grad_norms"):
        with naming(checkpoint, name):
            values = {key: value.to(device, copy=True) for key, value in saved.get(name, {}).items()}
        setattr(state, name, values)
    # Last, because building the model and the data drew from these generators.
    with naming(checkpoint, "rng"):
        system.rng.restore(saved["rng"])
        if parallel.rank() and not ranks.same(saved):
            # Another number of ranks trained before, so this rank begins a random sequence of its own.
            system.rng.seed(system.rng.fold_in(int(torch.randint(2**62, ())), "rank", parallel.rank()))


def fits(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint holds a training state, with the names, shapes and dtypes of the model.

    The model may be on the meta device. Raises: CheckpointError that lists what is missing, unexpected or different.
    """
    check_entries(checkpoint)
    weights.check(model, checkpoint)


def check_entries(checkpoint: Checkpoint) -> None:
    """Check that the state has the entries of a training. Raises: CheckpointError that lists the faulty ones."""
    kinds = _PLAIN | dict.fromkeys(_STATES, dict)
    kinds |= {name: kind for name, kind in _LATER.items() if name in checkpoint.state}
    faulty = [name for name, kind in kinds.items() if not isinstance(checkpoint.state.get(name), kind)]
    faulty += optimization.faulty(checkpoint.state)
    if faulty:
        raise CheckpointError(
            f"{checkpoint.path} holds no training state: {', '.join(faulty)} missing in state.json or of wrong type."
        )
