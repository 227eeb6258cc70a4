"""Cut each batch among the processes that train together: their number does not change which samples it holds."""

from typing import NamedTuple


class Part(NamedTuple):
    """Which samples of every batch one process has. rank: its number, from 0 to ranks - 1."""

    rank: int = 0
    ranks: int = 1

    def own(self, length: int) -> range:
        """Return the places in a batch of `length` samples that are this rank's.

        They lie side by side. The first ranks have one more where the batch cannot be cut evenly, as numpy.array_split
        cuts. So rank 0 always has some.

        >>> [list(Part(rank, 3).own(4)) for rank in range(3)]
        [[0, 1], [2], [3]]
        """
        each, more = divmod(length, self.ranks)
        begin = self.rank * each + min(self.rank, more)
        return range(begin, begin + each + (self.rank < more))

    def loaded(self, length: int) -> range:
        """Return the places to load: the own ones, or the batch's last one as a placeholder where there are none."""
        return self.own(length) or range(length - 1, length)


WHOLE = Part(rank=0, ranks=1)
