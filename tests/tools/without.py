"""Resumes a run, and leaves one thing out that has to come back: `without.py THING run=…`. Each is a negative control.

If a comparison does not see that it is missing, nothing that the comparison says can be believed.
"""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

import resume
from savepoint import runs
from savepoint.checkpoint import Checkpoint
from savepoint.data import batches
from savepoint.system import rng
from savepoint.training import loop, optimizer_state, optional, schedules, state

restore, put_back = state.restore, rng.restore


def nothing(*_arguments: Any, **_keywords: Any) -> None:
    pass


def replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def generator(name: str, current: Callable[[], Any]) -> Callable[[], None]:
    """One library's generator goes on from where building left it. Only while restoring: `isolated` uses the same."""

    def restored(fresh: state.TrainState, checkpoint: Checkpoint) -> None:
        rng.restore = lambda states: put_back(states | {name: current()})
        try:
            restore(fresh, checkpoint)
        finally:
            rng.restore = put_back

    return replaced(state, "restore", restored)


def field(name: str) -> Callable[[], None]:
    """A field of TrainState stays as it is at the beginning of a run."""

    def restored(fresh: state.TrainState, checkpoint: Checkpoint) -> None:
        before = getattr(fresh, name)
        restore(fresh, checkpoint)
        setattr(fresh, name, before)

    return replaced(state, "restore", restored)


def rates(fresh: state.TrainState, checkpoint: Checkpoint) -> None:
    """Restore, but for the learning rates of the last update."""
    restore(fresh, checkpoint)
    fresh.optimizers[""].learning_rates = []


def kept(fresh: state.TrainState, checkpoint: Checkpoint) -> None:
    """Restore, but for what torch's state_dict does not say: which parameters are frozen."""
    frozen = {name: parameter.requires_grad for name, parameter in fresh.model.named_parameters()}
    restore(fresh, checkpoint)
    for name, parameter in fresh.model.named_parameters():
        parameter.requires_grad_(frozen[name])


def weights(fresh: Any, checkpoint: Checkpoint) -> None:
    """The weights, and no buffers."""
    own = {name for name, _ in fresh.named_parameters()}
    fresh.load_state_dict({name: value for name, value in checkpoint.model.items() if name in own}, strict=False)


def buffers(fresh: Any, checkpoint: Checkpoint) -> None:
    own = {name for name, _ in fresh.named_buffers()}
    fresh.load_state_dict({name: value for name, value in checkpoint.model.items() if name in own}, strict=False)


def plainly(optimizer: torch.optim.Optimizer, saved: dict[str, Any], **_: Any) -> None:
    """As torch restores an optimizer: what it keeps in other dtypes than the parameters' is cast to theirs."""
    optimizer.load_state_dict(saved)


def from_the_start(epoch: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, number, start=0: epoch(self, number, start=0)


def unseeded(request: Any) -> Callable[..., Any]:
    load, seed = request, rng.seed

    def loaded(dataset: Any, collate: Any, asked: Any) -> Any:
        rng.seed = nothing
        try:
            return load(dataset, collate, asked)
        finally:
            rng.seed = seed

    return loaded


THINGS: dict[str, Callable[[], None]] = {
    "nothing": nothing,
    "python's generator": generator("python", random.getstate),
    "numpy's generator": generator("numpy", lambda: np.random.get_state(legacy=False)),
    "torch's generator": generator("torch", torch.default_generator.get_state),
    "weights": replaced(state, "restore_model", buffers),
    "buffers": replaced(state, "restore_model", weights),
    "frozen": replaced(state, "restore", kept),
    "optimizer": replaced(optimizer_state, "restore", nothing),
    "optimizer dtypes": replaced(optimizer_state, "restore", plainly),
    "scheduler": replaced(schedules, "restore", nothing),
    "learning_rates": replaced(state, "restore", rates),
    "scaler": replaced(torch.amp.GradScaler, "load_state_dict", nothing),
    "averaged weights": replaced(AveragedModel, "load_state_dict", nothing),
    "registered": replaced(optional, "restore_registered", nothing),
    "position in the data": replaced(batches.Batches, "epoch", from_the_start(batches.Batches.epoch)),
    "seeds of loading": replaced(batches, "_load", unseeded(batches._load)),
    "cut of the history": replaced(runs, "cut_history", nothing),
    **{name: field(name) for name in ("epoch", "step", "batch", "sums", "samples", "logged", "best")},
    "begin_epoch": replaced(loop, "getattr", lambda _object, _name, default=None: default),
}


def main() -> int:
    thing, *sys.argv[1:] = sys.argv[1:]
    THINGS[thing]()
    return resume.main()
