"""Savepoint's engine: exact, pickle-free checkpoints around one readable training loop. Forks leave it alone.

This is the face for forks and notebooks. Names are imported at their first use, since most of them import torch.

Wings, from the top down. Each has one idea, lists its rooms in its docstring, and imports only wings below it:
    launch      from a command line to a run: what train.py and resume.py call
    commands    look at runs: diff, verify, evaluate, export, demo, ui
    exact       prove on a run's own config that a resume gives the same bits: verify --exact
    training    the heart: one loop, the state that it changes, and what both are built from
    weights     find them in runs and files, and load them into a model
    data        the batches of an epoch, in an order that depends on the seed and the epoch alone
    runs        a run on the disk: directory, lookup, metrics history, provenance, sweep
    checkpoint  state to files and back: one checkpoint, and a root of many
    trackers    where a run can be watched while it trains
    trust       what a config or a file may ask for
    config      from conf/ and the command line to one plain, checked config
    parallel    several processes that train one run: who they are, and what they tell each other
    system      the ground: files, signals, memory, random generators
    template    from this repository to a project of one's own, and to a newer engine in it
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from savepoint.registry import register
    from savepoint.runs import open_run
    from savepoint.training import Outcome, Step, Task
    from savepoint.weights import load_model, load_weights

__version__ = "0.1.0"
__all__ = ["Outcome", "Step", "Task", "load_model", "load_weights", "open_run", "register"]

_HOMES = {
    **dict.fromkeys(("Outcome", "Step", "Task"), "savepoint.training"),
    **dict.fromkeys(("load_model", "load_weights"), "savepoint.weights"),
    "open_run": "savepoint.runs",
    "register": "savepoint.registry",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
