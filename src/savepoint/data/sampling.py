"""Choose the samples of each batch from the seed and the epoch's number alone, so that no order is stored."""

import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from savepoint import system
from savepoint.config import DataSettings
from savepoint.data.permutation import Integers, permuted
from savepoint.data.ranks import WHOLE, Part
from savepoint.errors import ConfigError, UserError

BLOCK = 4096  # positions whose samples are chosen together, or one batch if that is more
Indices = list[int]


def _randperm(count: int, key: int) -> Callable[[Integers], Integers]:
    """Shuffle a list of all positions. Its time and memory grow with the data set."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(key)).numpy()
    return order.__getitem__


def _permutation(count: int, key: int) -> Callable[[Integers], Integers]:
    return functools.partial(permuted, count=count, key=key)


# Each takes the number of samples and a key, and returns a function from positions to samples. Checkpoints have these
# names, and a run keeps the order that it began with, so none of the functions may ever change.
_SHUFFLES = {"randperm": _randperm, "permutation-1": _permutation}
ORDERS = tuple(_SHUFFLES)
OLDEST_ORDER, NEWEST_ORDER = ORDERS[0], ORDERS[-1]


class Order(Protocol):
    """A way to cut epochs into batches. Its length is the number of batches in every epoch."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, *, start: int, order: str) -> Iterator[Indices]:
        """Yield this rank's sample indices of the batches `start`, `start + 1`, … of an epoch.

        order: how samples are shuffled, one of ORDERS.
        """
        ...

    def share(self, number: int) -> int:
        """Count this rank's samples of a batch in the epoch that was asked for last. A placeholder counts nothing."""
        ...


class Plain:
    """An order that has each sample once an epoch: shuffled if `data.shuffle` and the split is "train".

    Neither time nor memory grows with the number of samples, except in the oldest order.
    """

    def __init__(self, samples: int, *, split: str, settings: DataSettings, seed: int, part: Part = WHOLE) -> None:
        self._samples, self._settings, self._seed, self._part = samples, settings, seed, part
        self._train = split == "train"
        self._count = count(samples, settings, drop_last=self._train and settings.drop_last)

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int, *, start: int = 0, order: str = NEWEST_ORDER) -> Iterator[Indices]:
        chosen = self._chosen(epoch, order)
        together = max(1, BLOCK * self._part.ranks // self._settings.batch_size)
        for first in range(start, self._count, together):
            batches = [self._positions(number) for number in range(first, min(first + together, self._count))]
            positions = np.concatenate([np.arange(each.start, each.stop, dtype=np.int64) for each in batches])
            indices = iter(chosen(positions).tolist())
            yield from (list(islice(indices, len(each))) for each in batches)

    def share(self, number: int) -> int:
        return len(self._part.own(self._length(number)))

    def _length(self, number: int) -> int:
        size = self._settings.batch_size
        return min(size, self._samples - number * size)

    def _positions(self, number: int) -> range:
        """Return the positions in an epoch that this rank has of a batch."""
        begin, places = number * self._settings.batch_size, self._part.loaded(self._length(number))
        return range(begin + places.start, begin + places.stop)

    def _chosen(self, epoch: int, order: str) -> Callable[[Integers], Integers]:
        """Return the function from positions in an epoch to samples."""
        if self._train and self._settings.shuffle:
            return _SHUFFLES[order](self._samples, system.rng.fold_in(self._seed, "order", epoch))
        return lambda positions: positions


class Sampled:
    """An order that a sampler chooses. The sampler yields indices, which are cut into batches, or whole batches.

    For each epoch, torch's, NumPy's and `random`'s generators are seeded. The sampler's `set_epoch(epoch)` is called if
    it has one. Then everything that it yields is taken at once.
    Raises: ConfigError if the sampler does not repeat its order when it is asked for the same epoch again.
    """

    def __init__(self, sampler: Any, *, samples: int, settings: DataSettings, seed: int, part: Part = WHOLE) -> None:
        self._sampler, self._samples, self._settings, self._seed, self._part = sampler, samples, settings, seed, part
        self._lengths: list[int] = []  # of the batches of the epoch that was asked for last, where the sampler cuts
        self._name = f"{type(sampler).__module__}.{type(sampler).__qualname__}"
        if not isinstance(sampler, Iterable) or not isinstance(sampler, Sized):
            raise ConfigError(f"data.sampler: {self._name} needs __iter__ and __len__, like torch's samplers.")
        self._promised = len(sampler)
        # Asking twice in a row finds a sampler that goes on from call to call. Asking again after another epoch finds
        # one that carries something over.
        first, again, _, back = (self._taken(epoch) for epoch in (0, 0, 1, 0))
        if first != again or first != back:
            raise ConfigError(
                f"data.sampler: {self._name} gives another order each time it is asked for an epoch, and a resumed "
                "run has to ask again. Let it draw from the global generators of torch, NumPy or random, which are "
                "seeded for each epoch, or compute its order in set_epoch(epoch)."
            )
        self.digest = hashlib.sha256(repr(first).encode()).hexdigest()
        del again, back
        self._count = self._batches(first, 0)
        if self._count == 0:
            raise ConfigError(
                f"data.sampler: {self._name} makes no batch: its length is {self._promised}, with "
                f"data.batch_size={settings.batch_size} and data.drop_last={str(settings.drop_last).lower()}."
            )

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int, *, start: int = 0, order: str = NEWEST_ORDER) -> Iterator[Indices]:
        """Yield batches as `Order` says. Raises: UserError for a wrong index or a wrong number of indices, at once."""
        taken = self._taken(epoch)
        if (found := self._batches(taken, epoch)) != self._count:
            self._refuse(epoch, f"makes {found} batches, and made {self._count} in epoch 0. Every epoch needs as many")
        self._lengths = [len(each) for each in taken] if isinstance(taken[0], list) else []
        return (self._batch(taken, number) for number in range(start, self._count))

    def share(self, number: int) -> int:
        return len(self._part.own(self._length(number)))

    def _length(self, number: int) -> int:
        size = self._settings.batch_size
        return self._lengths[number] if self._lengths else min(size, self._promised - number * size)

    def _batch(self, taken: list[Any], number: int) -> Indices:
        """Return this rank's part of a batch. taken: what the sampler yielded for the epoch."""
        places = self._part.loaded(self._length(number))
        begin, batch = (0, taken[number]) if self._lengths else (number * self._settings.batch_size, taken)
        indices: Indices = batch[begin + places.start : begin + places.stop]
        return indices

    def _batches(self, taken: list[Any], epoch: int) -> int:
        """Count the batches that make up an epoch."""
        kinds = set(map(type, taken))
        if len(kinds) > 1:
            self._refuse(epoch, "gives both indices and lists of indices. Let it give only one of the two")
        if kinds == {list}:
            return min(len(taken), self._settings.limit_batches or len(taken))
        return count(len(taken), self._settings, drop_last=self._settings.drop_last)

    def _taken(self, epoch: int) -> list[Any]:
        """Take what the sampler yields for an epoch: indices, or lists of indices."""
        with system.rng.isolated():
            system.rng.seed(system.rng.fold_in(self._seed, "order", epoch))
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(epoch)
            # At most one item more than the sampler promised, because it may never end.
            items = list(islice(iter(self._sampler), self._promised + 1))
        if len(items) != self._promised:
            found = len(items) if len(items) < self._promised else f"more than {self._promised}"
            self._refuse(
                epoch,
                f"gives {found}, and its __len__ said {self._promised} at the start. Make them agree, in every epoch",
            )
        # Plain indices are checked together. Millions of them, one by one, would take seconds.
        if set(map(type, items)) == {int} and min(items) >= 0 and max(items) < self._samples:
            return items
        return [self._checked(item, epoch) for item in items]

    def _checked(self, item: Any, epoch: int) -> int | Indices:
        if isinstance(item, list | tuple):
            if not item:
                self._refuse(epoch, "gives an empty batch")
            return [self._index(each, epoch) for each in item]
        return self._index(item, epoch)

    def _index(self, item: Any, epoch: int) -> int:
        try:
            index = operator.index(item)
        except TypeError:
            self._refuse(epoch, f"gives a {type(item).__name__}. Let it give indices, or lists of indices")
        if not 0 <= index < self._samples:
            self._refuse(epoch, f"gives the index {index}, and the data set has {self._samples} samples, from 0 on")
        return index

    def _refuse(self, epoch: int, what: str) -> NoReturn:
        raise UserError(f"data.sampler: {self._name} {what} (epoch {epoch}).")


def count(samples: int, settings: DataSettings, *, drop_last: bool) -> int:
    """Count the batches of an epoch. samples: how many it has."""
    full, rest = divmod(samples, settings.batch_size)
    batches = full + (1 if rest and not drop_last else 0)
    return batches if settings.limit_batches is None else min(batches, settings.limit_batches)
