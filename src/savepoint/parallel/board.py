"""Notes that ranks leave for each other. torchrun keeps them, so they can be read while training is under way.

This is torch's TCPStore: texts by name. It imports torch at the first use.
"""

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from savepoint.errors import UserError
from savepoint.parallel.place import count, rank, restarts

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

CONNECT = timedelta(seconds=60)
_FIRST = threading.Lock()


class LostBoardError(UserError, ConnectionError):
    """Says that whoever keeps the notes has ended."""

    def __init__(self) -> None:
        keeper = "torchrun, which started these processes," if _kept_by_torchrun() else f"Rank 0 of {count()}"
        super().__init__(f"{keeper} cannot be reached any more. Most often it was killed.")


class Board:
    """Notes by name, each a JSON value. Raises: LostBoardError in every method if whoever keeps the notes is gone."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def write(self, name: str, note: Any) -> None:
        """Leave a note, in place of an earlier one of that name."""
        with _disconnecting():
            _store().set(f"{self.prefix}/{name}", json.dumps(note))

    def write_first(self, name: str, note: Any) -> None:
        """Leave a note unless there is one of that name."""
        with _disconnecting():
            _store().compare_set(f"{self.prefix}/{name}", "", json.dumps(note))

    def read(self, name: str) -> Any:
        """Return a note, or None if there is none."""
        with _disconnecting():
            key = f"{self.prefix}/{name}"
            return json.loads(_store().get(key)) if _store().check([key]) else None

    def await_note(self, name: str, *, seconds: float) -> Any:
        """Wait for a note and return it; None if there is none after so many seconds."""
        until = time.monotonic() + seconds
        while (note := self.read(name)) is None and time.monotonic() < until:
            time.sleep(0.02)
        return note


def board() -> Board:
    """Return the notes of this start of the ranks. After a restart by torchrun they are other ones."""
    return Board(f"savepoint/{restarts()}")


def leave() -> None:
    """Let the others know that this rank ends because a signal asked for that. Raises: LostBoardError."""
    board().write(f"left/{rank()}", True)


def left() -> set[int]:
    """Return the ranks that end because a signal asked for that. Raises: LostBoardError."""
    return {each for each in range(count()) if board().read(f"left/{each}")}


def lasting() -> Board:
    """Return the notes that outlive a restart by torchrun."""
    return Board("savepoint")


@contextlib.contextmanager
def _disconnecting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistNetworkError and DistStoreError
        raise LostBoardError from error


def _store() -> "Store":
    with _FIRST:  # two threads may ask at the same time, and only one store can keep the notes
        return _connected()


def _kept_by_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@functools.cache
def _connected() -> "Store":
    return _connect(keeps=rank() == 0 and not _kept_by_torchrun())


def _connect(*, keeps: bool) -> "Store":
    """Open a connection to the notes. keeps: whether this process is the one that keeps them."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=keeps, wait_for_workers=False, timeout=CONNECT)


def host(count: int) -> tuple["Store", list[dict[str, str]]]:
    """Keep the notes of ranks that this process starts, all of them on this machine.

    Returns: the notes, which end when nobody refers to them any more; and the variables of each rank's environment.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    notes = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(notes.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared = address | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return notes, [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def store(prefix: str) -> "Store":
    """Return the same notes as torch.distributed takes them, under a prefix and over a connection of their own.

    While torch waits for a note, nobody else can use its connection.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    _store()  # where rank 0 keeps the notes, they have to be there first
    return PrefixStore(f"savepoint/{restarts()}/{prefix}", _connect(keeps=False))
