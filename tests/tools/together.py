"""Several ranks that train one run together. Each is a fork of the warm process, with what torchrun would tell it."""

import dataclasses
import itertools
import socket
from collections.abc import Mapping
from pathlib import Path

from tools.moments import Strike
from tools.processes import Ended, Started, Zygote

_numbers = itertools.count()


def run_together(
    zygote: Zygote, count: int, script: str, *arguments: str, folder: Path, strikes: Mapping[int, Strike] | None = None
) -> list[Ended]:
    """Run a script in so many ranks, and wait for all of them. Returns: how each ended, by rank.

    folder: for what they print. strikes: what happens to a rank, at which moment of its training.
    """
    number, outputs, started = next(_numbers), [], []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(count):
        outputs.append(folder / f"together-{number}-rank-{rank}.txt")
        outputs[-1].touch()
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        strike = (strikes or {}).get(rank)
        order = {
            "background": True,
            "strike": dataclasses.asdict(strike) if strike else None,
            "environment": {"MASTER_ADDR": "127.0.0.1"} | {key: str(value) for key, value in environment.items()},
        }
        if count == 1:
            order["environment"] = {}
        started.append(Started(zygote._ask(script, arguments, outputs[-1], **order)["pid"], zygote))
    statuses = [each.wait() for each in started]
    return [Ended(status, 0.0, output.read_text()) for status, output in zip(statuses, outputs)]
