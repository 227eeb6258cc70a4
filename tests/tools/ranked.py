"""Train with several ranks: processes with the variables that torchrun sets, each forked from a warm process."""

import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tools.moments import Strike
from tools.processes import Ended, Started, Zygote


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def places(count: int) -> list[dict[str, str]]:
    """The environment of each rank."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def start(
    zygote: Zygote, folder: Path, count: int, script: str, *arguments: str, strikes: Mapping[int, Strike] | None = None
) -> list[tuple[Started, Path]]:
    """strikes: by rank. Returns: each rank, and where its output goes."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = []
    for rank, environment in enumerate(places(count)):
        output = folder / f"rank-{rank}.txt"
        output.write_text("")
        strike = asdict(strikes[rank]) if strikes and rank in strikes else None
        order = {"background": True, "strike": strike, "environment": environment}
        pid = zygote._ask(script, arguments, output, **order)["pid"]
        ranks.append((Started(pid, zygote), output))
    return ranks


def run(
    zygote: Zygote, folder: Path, count: int, script: str, *arguments: str, strikes: Mapping[int, Strike] | None = None
) -> list[Ended]:
    """Run a script with so many ranks, 1 for a process alone, and wait for all. Returns: how each rank ended."""
    if count == 1:
        folder.mkdir(parents=True, exist_ok=True)
        return [zygote.run(script, *arguments, strike=strikes[0] if strikes else None)]
    ranks = start(zygote, folder, count, script, *arguments, strikes=strikes)
    return [Ended(each.wait(), 0.0, output.read_text()) for each, output in ranks]
