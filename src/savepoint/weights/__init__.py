"""Weights: find them in runs and in safetensors files, and load them into a model.

This wing needs no optimizer, tracker or Hydra, so a notebook or a service imports none of them.
Importing this package does not import torch: every room but `source` is imported at its first use.

Rooms, in reading order:
    source     find what a query names: a run's checkpoint, or safetensors files
    reading    read weights, with their origin
    matching   compare weights with a model, and load them into it
    lineage    remember which weights were loaded while a run was built
    inference  the verbs for notebooks, services and a fork's own classes: load_model, load_weights
"""

import importlib
from typing import TYPE_CHECKING, Any

from savepoint.weights.source import Source, find

if TYPE_CHECKING:
    from savepoint.weights.inference import EXPORT, begin_epoch, load_model, load_weights, make_model, restored_model
    from savepoint.weights.lineage import note, tracing
    from savepoint.weights.matching import check, load, restore_model
    from savepoint.weights.reading import load_checkpoint, read

__all__ = [
    "EXPORT",
    "Source",
    "begin_epoch",
    "check",
    "find",
    "load",
    "load_checkpoint",
    "load_model",
    "load_weights",
    "make_model",
    "note",
    "read",
    "restore_model",
    "restored_model",
    "tracing",
]

_ROOMS = {
    **dict.fromkeys(
        ("EXPORT", "begin_epoch", "load_model", "load_weights", "make_model", "restored_model"), "inference"
    ),
    **dict.fromkeys(("note", "tracing"), "lineage"),
    **dict.fromkeys(("check", "load", "restore_model"), "matching"),
    **dict.fromkeys(("load_checkpoint", "read"), "reading"),
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"savepoint.weights.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
