"""System: the ground that everything stands on. Each of its four rooms is a small library, and the rooms are its face.

Use them as `system.files.replace(path, data)`. `rng` imports torch, so it is loaded at its first use.

Rooms, in reading order:
    files    write files that are on the disk whole or not at all; lock a file
    rng      seed, capture and restore the random generators
    memory   less work for the garbage collector
    signals  Ctrl-C and SIGTERM as requests to stop
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from savepoint.system import files, memory, signals

if TYPE_CHECKING:
    from savepoint.system import rng

__all__ = ["files", "memory", "rng", "signals"]


def __getattr__(name: str) -> ModuleType:
    if name == "rng":
        return importlib.import_module("savepoint.system.rng")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
