"""Exchange bytes and sums with the other ranks. Every rank has to make the same calls in the same order."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from savepoint.parallel.board import Board, board, store
from savepoint.parallel.place import count, rank

_BEGINNING = 32 * 1024  # bytes


@contextlib.contextmanager
def group(name: str, kind: str, *, seconds: float) -> Iterator[None]:
    """Form the group of all ranks for the block. Its end closes the connections, which wakes ranks that wait.

    name: of no other group of these processes. kind: that of the device, such as `cpu`.
    seconds: how long a rank waits for another before it gives up.
    """
    _meet(name, seconds=seconds)
    backend, before = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl", _sockets()
    dist.init_process_group(
        backend, store=store(f"group/{name}"), rank=rank(), world_size=count(), timeout=timedelta(seconds=seconds)
    )
    opened = _sockets() - before
    try:
        yield
    except BaseException:
        # As long as a model refers to the group, torch keeps its connections, and the other ranks would wait.
        _shut(opened & _sockets())
        raise
    finally:
        # Without this, a thread of gloo's that still runs at the end of the process aborts it.
        dist.destroy_process_group()


def _meet(name: str, *, seconds: float) -> None:
    """Wait until all ranks are about to form a group. While a rank waits inside torch, no signal reaches it."""
    notes = Board(f"{board().prefix}/there/{name}")
    notes.write(str(rank()), True)
    for each in range(count()):
        if notes.await_note(str(each), seconds=seconds) is None:
            raise RuntimeError(f"Timed out: rank {each} has not come within {seconds:g} s.")


def _shut(descriptors: set[int]) -> None:
    """End the connections among these sockets, but for those to the board, which ranks still need."""
    of_board = int(os.environ["MASTER_PORT"])
    for each in descriptors:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(each)) as connection:
            listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)  # gloo would abort
            if not listens and of_board not in (connection.getsockname()[1], connection.getpeername()[1]):
                connection.shutdown(socket.SHUT_RDWR)


def _sockets() -> set[int]:
    """Return the descriptors of this process's sockets; none on systems that do not list them."""
    listed = Path("/proc/self/fd")
    return {int(each.name) for each in listed.iterdir() if each.is_socket()} if listed.is_dir() else set()


def another_group(*, seconds: float) -> dist.ProcessGroup:
    """Form another group of all ranks, for a thread that exchanges bytes while the main one does other things."""
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))  # type: ignore[no-any-return]


def end_group(group: dist.ProcessGroup) -> None:
    """Close the connections of another group, which wakes ranks that wait there."""
    dist.destroy_process_group(group)


def exchange(data: bytes, group: dist.ProcessGroup | None = None) -> list[bytes]:
    """Give every rank the bytes of every rank, which may differ in length. Returns: them by rank.

    group: from `another_group`, in a thread of its own; None for the main thread.
    """
    if count() == 1:
        return [data]
    # The length travels with the beginning, which mostly is everything.
    begun = _gathered(len(data).to_bytes(8, "little") + data[:_BEGINNING], 8 + _BEGINNING, group)
    lengths = [int.from_bytes(each[:8], "little") for each in begun]
    rest = max(lengths) - _BEGINNING
    ended = _gathered(data[_BEGINNING:], rest, group) if rest > 0 else [b""] * len(begun)
    return [(one[8:] + other)[:length] for one, other, length in zip(begun, ended, lengths)]


def _gathered(data: bytes, size: int, group: dist.ProcessGroup | None) -> list[bytes]:
    """Give every rank the bytes of every rank, each filled up to so many bytes."""
    mine = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
    received = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(received, mine, group=group)
    return [each.numpy().tobytes() for each in received]


class Summing:
    """Whole numbers that are being added up over the ranks while this process goes on."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = torch.tensor(numbers, dtype=torch.int64)
        self._work = dist.all_reduce(self._numbers, async_op=True)
        self._sums: list[int] | None = None

    def sums(self) -> list[int]:
        """Return the sums, once every rank has given its numbers."""
        if self._sums is None:
            self._work.wait()
            self._sums = self._numbers.tolist()
        return self._sums
