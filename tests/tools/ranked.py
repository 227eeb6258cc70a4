"""Train with several ranks: processes with the variables that torchrun sets, each forked from a warm process."""

import collections
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from savepoint import parallel
from tools.moments import Strike
from tools.processes import Ended, Started, Zygote

HIDDEN = ".tmp-epoch*"  # a checkpoint that is being written
# What torchrun's agent keeps for its ranks. A store ends when nobody refers to it any more.
_STORES: collections.deque[Any] = collections.deque(maxlen=64)


def places(count: int) -> list[dict[str, str]]:
    """The environment of each rank, as torchrun sets it."""
    store, environments = parallel.host(count)
    _STORES.append(store)
    return environments


def again(environments: list[dict[str, str]]) -> list[dict[str, str]]:
    """The environment of each rank after torchrun has started them once more."""
    return [each | {"TORCHELASTIC_RESTART_COUNT": "1"} for each in environments]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Form a group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _over(pid: int) -> bool:
    """Whether a child of the zygote has ended, and waits to be asked how."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def start(
    zygote: Zygote,
    folder: Path,
    count: int,
    script: str,
    *arguments: str,
    strikes: Mapping[int, Strike] | None = None,
    disk: Path | None = None,
    disk_of: int = 0,
    environments: list[dict[str, str]] | None = None,
    **fault: Any,
) -> list[tuple[Started, Path]]:
    """strikes: by rank. disk, fault: for rank `disk_of`. environments: from `places`, or `again` of these.

    Returns: each rank, and where its output goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank, environment in enumerate(environments or places(count)):
        output = folder / f"rank-{rank}.txt"
        output.write_text("")
        strike = asdict(strikes[rank]) if strikes and rank in strikes else None
        order = {"background": True, "strike": strike, "environment": environment}
        if rank == disk_of and disk is not None:
            order |= {"disk": str(disk), "fault": fault}
        pid = zygote._ask(script, arguments, output, **order)["pid"]
        ranks.append((Started(pid, zygote), output))
    return ranks


@dataclass(frozen=True)
class InSave:
    """What SIGKILL waits for, and whom it then ends.

    root: where checkpoints come; the first hidden one that appears begins the save. delay: seconds from then on.
    rank: the only one that is killed; None for all.
    """

    root: Path
    delay: float
    rank: int | None


def run(
    zygote: Zygote,
    folder: Path,
    count: int,
    script: str,
    *arguments: str,
    kill_after: float | None = None,
    in_save: InSave | None = None,
    **more: Any,
) -> list[Ended]:
    """Run a script with so many ranks, 1 for a process alone, and wait for all. Returns: how each rank ended.

    kill_after: seconds until SIGKILL to all ranks, or until the wait for a save begins. more: as `start` takes it.
    """
    if count == 1:
        folder.mkdir(parents=True, exist_ok=True)
        strikes = more.pop("strikes", None)
        return [zygote.run(script, *arguments, strike=strikes[0] if strikes else None, kill_after=kill_after, **more)]
    before = set(in_save.root.glob(HIDDEN)) if in_save else set()
    ranks = start(zygote, folder, count, script, *arguments, **more)
    over = threading.Event()

    def kill() -> None:
        over.wait(kill_after)
        struck = ranks
        if in_save is not None:
            while not over.is_set() and not set(in_save.root.glob(HIDDEN)) - before:
                time.sleep(0.0005)
            over.wait(in_save.delay)
            struck = ranks if in_save.rank is None else [ranks[in_save.rank]]
        for each, _ in struck if not over.is_set() else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, 9)

    killer = threading.Thread(target=kill)
    if kill_after is not None:
        killer.start()
    statuses: dict[int, int] = {}
    while len(statuses) < count:
        for rank in [rank for rank, (each, _) in enumerate(ranks) if rank not in statuses and _over(each.pid)]:
            statuses[rank] = ranks[rank][0].wait()
            if statuses[rank] != 0:  # torchrun then ends the others
                for other, (each, _) in enumerate(ranks):
                    if other not in statuses:
                        os.kill(each.pid, 15)
        time.sleep(0.01)
    ended = [Ended(statuses[rank], 0.0, output.read_text()) for rank, (_, output) in enumerate(ranks)]
    over.set()
    if kill_after is not None:
        killer.join()
    return ended
