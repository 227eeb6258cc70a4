"""The batches of an epoch as a pure function of (seed, epoch): resuming at batch k replays nothing.

Which samples a batch holds comes from (seed, epoch). What their loading draws (augmentation) comes from (seed, epoch,
batch), for torch, NumPy and `random` alike. Neither touches the generators that the model's dropout draws from. So the
number of workers, the prefetching and the point of interruption change no bit.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from savepoint import fingerprint, rng, workers
from savepoint.settings import Data

# Without workers, batches are loaded a few at a time: setting the model's generators aside costs 110 µs, which a batch
# of a small data set should not pay alone. One batch of a slow data set is past this time, and goes out by itself.
AHEAD_SECONDS = 0.002
FINGERPRINT_SECONDS = 0.2  # for what is digested of a split at the start of a run
FEW = 16  # samples that are digested together


class _Request(NamedTuple):
    """A batch before it is loaded: the seed of what its loading draws, and its samples' indices."""

    seed: int
    indices: list[int]


class Batches:
    """One split of the data, cut into batches.

    dataset: `__len__`, and `__getitem__(index)` or `__getitems__(indices)`, which may return the finished batch.
    split: "train" is shuffled if `settings.shuffle`; "val" is always in order, and draws the same in every epoch.
    """

    def __init__(self, dataset: Any, *, split: str, settings: Data, seed: int, pin_memory: bool = False) -> None:
        self.samples = len(dataset)
        self._split, self._settings, self._seed, self._pin = split, settings, seed, pin_memory
        self.dataset = dataset
        full, rest = divmod(self.samples, settings.batch_size)
        self._count = full + (1 if rest and not (settings.drop_last and split == "train") else 0)
        if settings.limit_batches is not None:
            self._count = min(self._count, settings.limit_batches)
        self._sampler = _Requests()
        self._loader = self._with_workers() if settings.num_workers else None

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> "Batches":
        """The same split, of whose epochs only so many batches are used."""
        settings = dataclasses.replace(self._settings, limit_batches=min(count, self._count))
        return Batches(self.dataset, split=self._split, settings=settings, seed=self._seed, pin_memory=self._pin)

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """By what other data are told apart: `samples`, how many; `sha256` of the first `digested` of them.

        The first in an order that spreads them over the split. digested: None for as many as a moment allows, all of a
        small data set. sha256: what the data set's own `fingerprint()` says, if it has one; None if its samples are
        others whenever they are loaded.
        """
        if hasattr(self.dataset, "fingerprint"):
            return {"samples": self.samples, "digested": self.samples, "sha256": str(self.dataset.fingerprint())}
        order = fingerprint.spread(self.samples)[:digested]
        few = [order[begin : begin + FEW] for begin in range(0, len(order), FEW)]
        requests = [_Request(rng.fold_in("fingerprint", number), some) for number, some in enumerate(few)]
        first, *digests = self._digests(requests[:1] + requests, FINGERPRINT_SECONDS if digested is None else math.inf)
        return {
            "samples": self.samples,
            "digested": min(FEW * len(digests), len(order)),
            "sha256": fingerprint.of(digests) if digests[0] == first else None,
        }

    def _digests(self, requests: list[_Request], seconds: float) -> list[str]:
        """Of the first two batches, and of those after them until so many seconds have passed.

        Loaded where training loads them, and not here if workers do: many data sets open their files at the first
        sample, and an open file is not to be shared with forked workers.
        """
        until, digests = time.perf_counter() + seconds, []
        with rng.isolated(), _one_thread():
            loaded = (_load(self.dataset, request) for request in requests)
            for batch in _loader(self.dataset, requests, num_workers=1) if self._settings.num_workers else loaded:
                digests.append(fingerprint.of(batch))
                if len(digests) > 1 and time.perf_counter() >= until:
                    break
        return digests

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        """Batches `start`, `start + 1`, … of an epoch, as the data set or torch's default_collate gives them."""
        requests = self._requests(epoch if self._split == "train" else 0, start)
        if self._loader is None:
            return self._directly(requests)
        self._sampler.requests = requests
        return iter(self._loader)

    def _requests(self, epoch: int, start: int) -> Iterator[_Request]:
        order = list(range(self.samples))
        if self._split == "train" and self._settings.shuffle:
            generator = torch.Generator().manual_seed(rng.fold_in(self._seed, "order", epoch))
            order = torch.randperm(self.samples, generator=generator).tolist()
        size = self._settings.batch_size
        for batch in range(start, self._count):
            seed = rng.fold_in(self._seed, self._split, epoch, batch)
            yield _Request(seed, order[batch * size : (batch + 1) * size])

    def _directly(self, requests: Iterator[_Request]) -> Iterator[Any]:
        for request in requests:
            # Not around the `yield`: while the caller trains, the generators must be the model's.
            with rng.isolated(), _one_thread():
                until = time.perf_counter() + AHEAD_SECONDS
                ready = [_load(self.dataset, request)]
                while time.perf_counter() < until and (further := next(requests, None)):
                    ready.append(_load(self.dataset, further))
            for batch in ready:
                yield _pin(batch) if self._pin else batch

    def _with_workers(self) -> DataLoader[Any]:
        settings = self._settings
        return _loader(
            self.dataset,
            self._sampler,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch,
            persistent_workers=settings.persistent_workers,
            pin_memory=self._pin,
        )


def _loader(dataset: Any, requests: Iterable[_Request], **options: Any) -> DataLoader[Any]:
    return DataLoader(
        _Loaded(dataset),
        batch_size=None,  # a request already is a batch
        sampler=requests,
        collate_fn=_unchanged,
        worker_init_fn=workers.start,
        # Its own: an iterator of a loader without one draws from the generator that dropout draws from.
        generator=torch.Generator(),
        **options,
    )


class _Requests(Sampler[_Request]):
    """Hands the requests of the epoch at hand to a loader that lives for many epochs."""

    def __init__(self) -> None:
        self.requests: Iterator[_Request] = iter(())

    def __iter__(self) -> Iterator[_Request]:
        return self.requests


class _Loaded(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, request: _Request) -> Any:
        return _load(self._dataset, request)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Load here as a worker does: on one thread, since a sum over one and over two can differ in its last bit.

    And not the other way round: GNU's OpenMP waits for ever in a forked worker that asks for more than one thread
    (pytorch/pytorch#17199). Setting the number takes 2 µs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load(dataset: Any, request: _Request) -> Any:
    rng.seed(request.seed)
    if hasattr(dataset, "__getitems__"):
        batch = dataset.__getitems__(request.indices)
    else:
        batch = [dataset[index] for index in request.indices]
    return default_collate(batch) if isinstance(batch, list) else batch


def _pin(batch: Any) -> Any:
    return torch.utils.data._utils.pin_memory.pin_memory(batch)  # type: ignore[no-untyped-call]


def _unchanged(batch: Any) -> Any:
    return batch
