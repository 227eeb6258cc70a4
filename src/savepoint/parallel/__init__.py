"""Parallel: several processes that train one run together. Each is a rank: rank 0 leads, the others follow.

torchrun, or `trainer.processes`, starts the processes and tells each its rank. torch.distributed carries what they
say: gloo between CPUs, NCCL between GPUs. Nothing is pickled: ranks exchange bytes and numbers.

A process that is alone has rank 0 of 1. What needs torch is imported at its first use.

Rooms, in reading order:
    place       which rank this process is, and of how many
    board       notes that ranks leave for each other, whatever else they are doing
    collective  exchange bytes and sums, where every rank takes part
    health      notice that a rank has failed, died or hangs, and say which and why
"""

import importlib
from typing import TYPE_CHECKING, Any

from savepoint.parallel.board import Board, board, lasting
from savepoint.parallel.health import Health, LostRankError, attended, current
from savepoint.parallel.place import count, leads, local_rank, on_one_machine, rank, restarts

if TYPE_CHECKING:
    from savepoint.parallel.collective import Summing, exchange, group

__all__ = [
    "Board",
    "Health",
    "LostRankError",
    "Summing",
    "attended",
    "board",
    "count",
    "current",
    "exchange",
    "group",
    "lasting",
    "leads",
    "local_rank",
    "on_one_machine",
    "rank",
    "restarts",
]


def __getattr__(name: str) -> Any:
    """Import at their first use what needs torch."""
    if name in ("Summing", "exchange", "group"):
        return getattr(importlib.import_module("savepoint.parallel.collective"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
