"""System: files, signals, memory, the terminal, random generators and what the machine is doing.

Its face is its rooms, each a small library: `system.files.replace(path, data)`. The room `rng` needs torch, so it is
imported at its first use.

Rooms, in reading order:
    files     write and replace files atomically and durably; lock a file
    rng       seed, capture and restore all random generators
    memory    give the garbage collector less work
    signals   turn Ctrl-C and SIGTERM into requests to stop
    terminal  print any text, whatever stdout's encoding
    usage     measure the machine: processors, memory, disk, accelerator
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from savepoint.system import files, memory, signals, terminal, usage

if TYPE_CHECKING:
    from savepoint.system import rng

__all__ = ["files", "memory", "rng", "signals", "terminal", "usage"]


def __getattr__(name: str) -> ModuleType:
    if name == "rng":
        return importlib.import_module("savepoint.system.rng")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
