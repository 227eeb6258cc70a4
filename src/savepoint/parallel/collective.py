"""Exchange bytes and sums with the other ranks. Every rank has to make the same calls in the same order."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from savepoint.parallel.board import store
from savepoint.parallel.place import count, rank


@contextlib.contextmanager
def group(name: str, kind: str, *, seconds: float) -> Iterator[None]:
    """Form the group of all ranks for the block. Its end closes the connections, which wakes a rank that waits.

    name: of no other group of these processes. kind: that of the device, such as `cpu`.
    seconds: how long a rank waits for another before it gives up.
    """
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl"
    dist.init_process_group(
        backend, store=store(f"group/{name}"), rank=rank(), world_size=count(), timeout=timedelta(seconds=seconds)
    )
    try:
        yield
    finally:
        # Without this, a thread of gloo's that still runs at the end of the process aborts it.
        dist.destroy_process_group()


def exchange(data: bytes) -> list[bytes]:
    """Give every rank the bytes of every rank, which may differ in length. Returns: them by rank."""
    if count() == 1:
        return [data]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    longest = max(int(length) for length in lengths)
    mine = torch.zeros(longest, dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[:0]
    received = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(received, mine)
    return [each[: int(length)].numpy().tobytes() for each, length in zip(received, lengths)]


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
