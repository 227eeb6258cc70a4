"""Make the batches of an epoch a pure function of (seed, epoch), so that resuming at batch k replays nothing.

(seed, epoch) decides which samples each batch holds. (seed, epoch, batch) seeds torch, NumPy and `random` while a batch
is loaded, for augmentation. Neither touches the generators that the model's dropout draws from. So the number of
workers, prefetching and the point of interruption change no bit.

Where several processes train together, each loads its part of every batch, and (seed, epoch, batch, rank) seeds that:
the samples do not depend on the number of processes, and their augmentation does.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import default_collate

from savepoint import system
from savepoint.config import DataSettings
from savepoint.data import fingerprint
from savepoint.data.loading import Workers, loader, one_thread, pin
from savepoint.data.ranks import WHOLE, Part
from savepoint.data.sampling import NEWEST_ORDER, Order, Plain, Sampled

# Without workers, this process loads batches for this long before it hands them out. Isolating the model's generators
# costs 110 µs, which several batches of a small data set share. A single batch of a slow data set takes longer than
# this, and is handed out alone.
AHEAD_SECONDS = 0.002
FINGERPRINT_SECONDS = 0.2  # time for digesting samples of a split at the start of a run
FEW = 16  # samples that are digested together


class _Request(NamedTuple):
    """A batch to load: the seed for what loading it draws, and the indices of its samples."""

    seed: int
    indices: list[int]


class Batches:
    """One split of the data, cut into batches.

    dataset: has `__len__`, and `__getitem__(index)` or `__getitems__(indices)`, which may return the finished batch.
    split: "train" is shuffled if `settings.shuffle`. "val" is always in order, and draws the same in every epoch.
    collate: makes a batch of a list of samples; None for torch's default_collate.
    sampler: chooses the samples of each batch, as `sampling.Sampled` describes; None for each sample once.
    rank, ranks: which of how many processes this is. Each gets its part of every batch, as `ranks.Part` cuts it.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        split: str,
        settings: DataSettings,
        seed: int,
        sampler: Any = None,
        pin_memory: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.samples, self.sampled = len(dataset), sampler is not None
        self._split, self._settings, self._seed, self._pin = split, settings, seed, pin_memory
        self._sampler, self._part = sampler, Part(rank, ranks)
        self.dataset = dataset
        self._collate = collate
        self._load = functools.partial(_load, dataset, collate or default_collate)
        self._order: Order = (
            Plain(self.samples, split=split, settings=settings, seed=seed, part=self._part)
            if sampler is None
            else Sampled(sampler, samples=self.samples, settings=settings, seed=seed, part=self._part)
        )
        self._workers = Workers(self._load, settings, pin_memory=pin_memory) if settings.num_workers else None

    def __len__(self) -> int:
        return len(self._order)

    def first(self, count: int) -> "Batches":
        """Make the same split with at most `count` batches in an epoch."""
        return self._copy(dataclasses.replace(self._settings, limit_batches=min(count, len(self))), self._part)

    @functools.cached_property
    def whole(self) -> "Batches":
        """The same split with whole batches, where several ranks divide them."""
        return self if self._part == WHOLE else self._copy(self._settings, WHOLE)

    def _copy(self, settings: DataSettings, part: Part) -> "Batches":
        return Batches(
            self.dataset,
            split=self._split,
            settings=settings,
            seed=self._seed,
            sampler=self._sampler,
            pin_memory=self._pin,
            collate=self._collate,
            **part._asdict(),
        )

    def share(self, number: int) -> int:
        """Count this rank's samples of a batch in the epoch that was asked for last.

        Returns: 0 if the batch has fewer samples than there are ranks and none is for this one. `epoch` then yields the
        batch's last sample as a placeholder, which must not count.
        """
        return self._order.share(number)

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """Summarise the split so that a resume can detect changed data.

        digested: how many samples to digest, spread over the split; None for as many as FINGERPRINT_SECONDS allow,
        which is all of a small data set.
        Returns: `samples`, their number; `digested`, how many of them were digested; `sha256`, the digest of these; and
        with a sampler `order`, the SHA-256 of its first epoch. `sha256` is the data set's own `fingerprint()` if it has
        one, and None if a sample differs each time it is loaded.
        """
        ordered = {"order": self._order.digest} if isinstance(self._order, Sampled) else {}
        if hasattr(self.dataset, "fingerprint"):
            own = str(self.dataset.fingerprint())
            return {"samples": self.samples, "digested": self.samples, "sha256": own} | ordered
        count = self.samples if digested is None else min(digested, self.samples)
        order = islice(fingerprint.spread(self.samples), count)
        few = iter(lambda: list(islice(order, FEW)), [])  # lazily, since there may be millions
        requests = (_Request(system.rng.fold_in("fingerprint", number), some) for number, some in enumerate(few))
        # The first request is loaded twice. Samples that differ then could not be compared in another process either.
        twice = (each for number, one in enumerate(requests) for each in ([one, one] if number == 0 else [one]))
        first, *digests = self._digests(twice, FINGERPRINT_SECONDS if digested is None else math.inf)
        return {
            "samples": self.samples,
            "digested": min(FEW * len(digests), count),
            "sha256": fingerprint.digest_of(digests) if digests[0] == first else None,
        } | ordered

    def _digests(self, requests: Iterable[_Request], seconds: float) -> list[str]:
        """Digest the first two batches, and further ones until `seconds` have passed.

        If workers load the batches of training, a worker loads these too. Many data sets open files at their first
        sample, and forked workers must not share an open file with this process.
        """
        until, digests = time.perf_counter() + seconds, []
        with system.rng.isolated(), one_thread():
            for batch in loader(self._load, requests, num_workers=1) if self._workers else map(self._load, requests):
                digests.append(fingerprint.digest_of(batch))
                if len(digests) > 1 and time.perf_counter() >= until:
                    break
        return digests

    def glance(self, *, whole: bool = False) -> Any:
        """Load the first two samples, or the first batch of training if `whole`. No generator is changed.

        A worker loads them if workers load the batches of training, for the reason that `_digests` gives.
        """
        few = min(2, self.samples, self._settings.batch_size)
        indices = next(self._order.epoch(0, start=0, order=NEWEST_ORDER)) if whole else list(range(few))
        request = _Request(system.rng.fold_in(self._seed, self._split, 0, 0), indices)
        with system.rng.isolated(), one_thread():
            given = loader(self._load, [request], num_workers=1) if self._workers else map(self._load, [request])
            return next(iter(given))

    def epoch(self, epoch: int, *, start: int = 0, order: str = NEWEST_ORDER) -> Iterator[Any]:
        """Load the batches `start`, `start + 1`, … of an epoch, as the data set or default_collate makes them.

        order: how samples are shuffled, one of ORDERS. A run keeps the one that it began with.
        """
        number = epoch if self._split == "train" else 0
        indices = enumerate(self._order.epoch(number, start=start, order=order), start)
        # The requests do not refer to `self`: in a reference cycle, workers would live until it is collected.
        seed = functools.partial(system.rng.fold_in, self._seed, self._split, number)
        rank = (self._part.rank,) if self._part.ranks > 1 else ()
        requests = (_Request(seed(batch, *rank), each) for batch, each in indices)
        return self._workers.epoch(requests) if self._workers else self._directly(requests)

    def _directly(self, requests: Iterator[_Request]) -> Iterator[Any]:
        for request in requests:
            # The block ends before `yield`: while the caller trains, the generators must be the model's.
            with system.rng.isolated(), one_thread():
                until = time.perf_counter() + AHEAD_SECONDS
                ready = [self._load(request)]
                while time.perf_counter() < until and (further := next(requests, None)):
                    ready.append(self._load(further))
            for batch in ready:
                yield pin(batch) if self._pin else batch


def _load(dataset: Any, collate: Callable[[list[Any]], Any], request: _Request) -> Any:
    system.rng.seed(request.seed)
    if hasattr(dataset, "__getitems__"):
        batch = dataset.__getitems__(request.indices)
    else:
        batch = [dataset[index] for index in request.indices]
    return collate(batch) if isinstance(batch, list) else batch
