"""Restore what only some runs have: objects that a fork's own code registers, a stream of data, averaged weights."""

import copy
from typing import Any

from torch.optim.swa_utils import AveragedModel

from savepoint import parallel
from savepoint.checkpoint import Checkpoint
from savepoint.data import Stream
from savepoint.errors import CheckpointError, short_list
from savepoint.registry import Stateful
from savepoint.training.optimization import naming


def restore_registered(registered: dict[str, Stateful], checkpoint: Checkpoint) -> None:
    """Restore all registered objects. Raises: CheckpointError if the checkpoint has others, or a state does not fit."""
    saved = checkpoint.state.get("registered", {})  # the first checkpoints lack it
    if not isinstance(saved, dict) or saved.keys() != registered.keys():
        raise CheckpointError(
            f"{checkpoint.path}: its registered state is {short_list(sorted(saved), most=6)}, and the config registers "
            f"{short_list(sorted(registered), most=6)}."
        )
    load_registered(registered, checkpoint)


def load_registered(registered: dict[str, Stateful], checkpoint: Checkpoint) -> None:
    """Restore registered objects that the checkpoint has. Raises: CheckpointError if a state does not fit."""
    for name, stateful in registered.items():
        with naming(checkpoint, f"registered.{name}"):
            # A copy, because the object may go on to change what it is given.
            stateful.load_state_dict(copy.deepcopy(checkpoint.state["registered"][name]))


def restore_stream(stream: Stream | None, checkpoint: Checkpoint) -> None:
    """Restore the position in a stream. Raises: CheckpointError if one of the run and the checkpoint has none."""
    saved: Any = checkpoint.state.get("stream")  # the first checkpoints lack it
    if (stream is None) != (saved is None):
        was, is_ = ("", " not") if stream is None else (" not", "")
        raise CheckpointError(f"{checkpoint.path} was{was} trained on a stream, and data.dataset is{is_} one.")
    if stream is not None:
        with naming(checkpoint, "stream"):
            stream.load_state_dict(saved)


def restore_average(average: AveragedModel | None, checkpoint: Checkpoint) -> None:
    """Restore averaged weights, if the run has any. Raises: CheckpointError if they do not fit."""
    if average is not None:
        with naming(checkpoint, "averaged"):
            here, there = average.state_dict(), checkpoint.state["averaged"]
            average.load_state_dict({key: parallel.cut_like(there[key], here[key]) for key in there})
