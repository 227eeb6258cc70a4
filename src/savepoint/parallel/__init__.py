"""Parallel: several processes that train one run together. Each is a rank: rank 0 leads, the others follow.

torchrun, or `trainer.processes`, starts the processes and tells each its rank. torch.distributed carries what they
say: gloo between CPUs, NCCL between GPUs. Nothing is pickled: ranks exchange bytes and numbers.

A process that is alone has rank 0 of 1. What needs torch is imported at its first use.

Rooms, in reading order:
    place       which rank this process is, and of how many
    board       notes that ranks leave for each other, whatever else they are doing
    collective  exchange bytes and sums, where every rank takes part
    shards      cut tensors by rows among the ranks, and put them together
    health      notice that a rank has failed, died or hangs, and say which and why
"""

import importlib
from typing import TYPE_CHECKING, Any

from savepoint.parallel.board import Board, board, host, lasting, leave
from savepoint.parallel.health import Health, LostRankError, attended, current
from savepoint.parallel.place import be_alone, count, leads, local_rank, on_one_machine, rank, restarts

if TYPE_CHECKING:
    from savepoint.parallel.collective import Summing, another_group, end_group, exchange, group
    from savepoint.parallel.shards import (
        Part,
        assemble,
        computing_device,
        cut_like,
        described,
        is_cut,
        mine,
        own,
        rows,
        whole,
    )

__all__ = [
    "Board",
    "Health",
    "LostRankError",
    "Part",
    "Summing",
    "another_group",
    "assemble",
    "attended",
    "be_alone",
    "board",
    "computing_device",
    "count",
    "current",
    "cut_like",
    "described",
    "end_group",
    "exchange",
    "group",
    "host",
    "is_cut",
    "lasting",
    "leads",
    "leave",
    "local_rank",
    "mine",
    "on_one_machine",
    "own",
    "rank",
    "restarts",
    "rows",
    "whole",
]

_ROOMS = {
    **dict.fromkeys(("Summing", "another_group", "end_group", "exchange", "group"), "collective"),
    **dict.fromkeys(
        ("Part", "assemble", "computing_device", "cut_like", "described", "is_cut", "mine", "own", "rows", "whole"),
        "shards",
    ),
}


def __getattr__(name: str) -> Any:
    """Import at their first use what needs torch."""
    if name in _ROOMS:
        return getattr(importlib.import_module(f"savepoint.parallel.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
