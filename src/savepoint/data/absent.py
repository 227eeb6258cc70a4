"""No data: an epoch is a number of updates, for reinforcement learning and simulation."""

from collections.abc import Iterator
from typing import Any

from savepoint.data.sampling import NEWEST_ORDER


class NoData:
    """One split without data. It does for `data=none` what `Batches` does for a data set: each batch is None.

    count: batches in an epoch; 0 for validation.
    """

    sampled, samples, dataset = False, None, None

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def whole(self) -> "NoData":
        """The same split: ranks have nothing to divide."""
        return self

    def first(self, count: int) -> "NoData":
        """Make the same with at most `count` batches in an epoch."""
        return NoData(min(count, self._count))

    def share(self, number: int) -> int:
        """Return 1: an update without data counts the same in every process."""
        return 1

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """Summarise the split: there is nothing that could change."""
        return {"samples": None, "digested": None, "sha256": None}

    def glance(self, *, whole: bool = False) -> None:
        """Return a batch: None."""

    def epoch(self, epoch: int, *, start: int = 0, order: str = NEWEST_ORDER) -> Iterator[None]:
        """Yield the batches `start`, `start + 1`, … of an epoch. order: has no effect without data."""
        for _ in range(start, self._count):
            yield None
