"""Batches of a stream: a data set that is read in its own order, and moved to any place by its own state.

The stream goes on from epoch to epoch. Each epoch begins by loading the state that the previous one left, even in a run
that nothing interrupts, so a resumed run takes the same path. (seed, epoch, batch) seeds what reading draws.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, default_collate

from savepoint import checkpoint, system
from savepoint.config import DataSettings
from savepoint.data.loading import Workers, loader, one_thread, pin
from savepoint.data.sampling import count
from savepoint.errors import ConfigError, UserError


def is_stream(dataset: Any) -> bool:
    """Whether a data set gives its samples one after another, and none by its number."""
    if isinstance(dataset, IterableDataset):
        return True
    by_number = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    return hasattr(dataset, "__iter__") and not by_number


class Stream:
    """One split of a stream, cut into batches. It does for streams what `Batches` does for all other data.

    dataset: has `__iter__`, `state_dict()`, which gives its position, and `load_state_dict(state)`, after which
    `iter()` goes on from that position: torchdata's contract. `__len__`, if there, counts all its samples.
    split: "train" begins again whenever it ends. "val" is read from its beginning in every epoch, to its end at most.
    Raises: ConfigError that says what the data set lacks.
    """

    sampled = False

    def __init__(
        self,
        dataset: Any,
        *,
        split: str,
        settings: DataSettings,
        seed: int,
        pin_memory: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        _check(dataset, name, settings)
        self.samples: int | None = len(dataset) if hasattr(dataset, "__len__") else None
        self._split, self._settings, self._seed, self._pin = split, settings, seed, pin_memory
        self.dataset = dataset
        self._count = _batches(self.samples, split, settings)
        if self._count is None:
            raise ConfigError(
                f"data.dataset: {name} is a stream without a length, so nothing says where an epoch ends. "
                "Set data.limit_batches, the number of batches in an epoch, or give it __len__."
            )
        self._collate = collate
        self._reader = _Reader(
            dataset, name=name, split=split, settings=settings, length=self.samples, collate=collate or default_collate
        )
        self._workers = Workers(self._reader.read, settings, pin_memory=pin_memory) if settings.num_workers else None
        # The state after the batch that was handed out last; None if that is the data set's current state.
        self._place: Any = self._reader.beginning

    def __len__(self) -> int:
        """Count the batches in an epoch of training; in validation, the most that there can be."""
        assert self._count is not None
        return self._count

    def first(self, count: int) -> "Stream":
        """Make the same split with at most `count` batches in an epoch. It takes this one's data set and position."""
        settings = replace(self._settings, limit_batches=min(count, len(self)))
        about: Any = {"split": self._split, "seed": self._seed, "pin_memory": self._pin, "collate": self._collate}
        short = Stream(self.dataset, settings=settings, **about)
        short._reader.beginning, short._place = self._reader.beginning, self._place
        return short

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batch that was handed out last, however far a worker has read ahead."""
        state: dict[str, Any] = self.dataset.state_dict() if self._place is None else self._place
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state in the next epoch. Raises: whatever the data set raises for a state not its own."""
        self.dataset.load_state_dict(copy.deepcopy(state))
        self._place = state

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """Summarise the split so that a resume can detect changed data. No sample is read, since it may come only once.

        Returns: `samples`, the length or None; `sha256`, the data set's own `fingerprint()` or None.
        """
        own = str(self.dataset.fingerprint()) if hasattr(self.dataset, "fingerprint") else None
        return {"samples": self.samples, "digested": None, "sha256": own}

    def glance(self, *, whole: bool = False) -> Any:
        """Load the first batch, and put the stream back to its beginning. No generator is changed.

        Raises: UserError if the stream gives nothing.
        """
        seed = system.rng.fold_in(self._seed, self._split, 0, 0)
        request = _Request(seed, seed, 0, self._reader.beginning)
        with system.rng.isolated(), one_thread():
            read = self._reader.read
            given = next(iter(loader(read, [request], num_workers=1) if self._workers else map(read, [request])))
            self.dataset.load_state_dict(copy.deepcopy(self._reader.beginning))
        if given.fault is not None:
            raise UserError(given.fault)
        return given.batch

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        """Read the batches `start`, `start + 1`, … of an epoch, from the current position; "val" from the beginning.

        Raises: UserError if the stream ends before its length says so, or gives nothing.
        """
        number = epoch if self._split == "train" else 0
        place = self.state_dict() if self._split == "train" else self._reader.beginning
        # The requests do not refer to `self`: in a reference cycle, workers would live until it is collected.
        seed = functools.partial(system.rng.fold_in, self._seed, self._split, number)
        requests = (
            _Request(seed(batch), seed("iter"), batch, place if batch == start else None)
            for batch in range(start, len(self))
        )
        return self._handed_out(self._workers.epoch(requests) if self._workers else self._directly(requests))

    def _directly(self, requests: Iterator["_Request"]) -> Iterator["_Result"]:
        """Read in this process, one batch at a time: the data set's position is then that of training."""
        for request in requests:
            with system.rng.isolated(), one_thread():
                result = self._reader.read(request)
            yield result.pin_memory() if self._pin else result

    def _handed_out(self, read: Iterator["_Result"]) -> Iterator[Any]:
        for result in read:
            if result.fault is not None:
                raise UserError(result.fault)
            if result.batch is None:
                return
            self._place = result.place
            yield result.batch


class _Request(NamedTuple):
    """A batch to read.

    seed, opening: seeds for what its samples draw and for what `iter()` draws.
    place: the state to begin from, for the first batch of an epoch or of a resumed run; None to go on.
    """

    seed: int
    opening: int
    batch: int
    place: Any


@dataclass(frozen=True)
class _Result:
    """The result of a request: a batch and the state after it, a fault, or neither at the end of validation."""

    batch: Any = None
    place: Any = None
    fault: str | None = None

    def pin_memory(self) -> "_Result":
        """Pin the batch alone; torch's loader calls this. It would take the state apart, and double a Counter in it."""
        return self if self.batch is None else replace(self, batch=pin(self.batch))


class _Reader:
    """Reads the stream, in the training process or in its one worker."""

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        split: str,
        settings: DataSettings,
        length: int | None,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self._collate = collate
        self.beginning: Any = copy.deepcopy(dataset.state_dict())
        self._dataset, self._name, self._train, self._settings = dataset, name, split == "train", settings
        self._length = length if settings.limit_batches is None else None  # set if an epoch is one pass
        self._drop_last = self._train and settings.drop_last
        self._samples: Iterator[Any] = iter(())
        self._restarted = False  # whether the stream began again and has made no batch since

    def read(self, request: _Request) -> _Result:
        if request.place is not None:
            self._begin(request.place, request)
            self._restarted = False
        try:
            samples = self._take(request)
        except UserError as error:
            return _Result(fault=str(error))  # as text, because errors of a worker arrive with its whole traceback
        if not samples:
            return _Result()
        self._restarted = False
        # A worker reads on while the batch waits in a queue, so it sends a copy of the state along.
        by_worker = self._settings.num_workers and self._train
        return _Result(self._collate(samples), copy.deepcopy(self._dataset.state_dict()) if by_worker else None)

    def _begin(self, place: Any, request: _Request) -> None:
        # One seed for the whole epoch, so that `iter()` draws the same in a run that resumes within it.
        system.rng.seed(request.opening)
        self._dataset.load_state_dict(copy.deepcopy(place))
        self._samples = iter(self._dataset)

    def _take(self, request: _Request) -> list[Any]:
        """Take the samples of the next batch; none if validation is at its end."""
        size, before = self._settings.batch_size, request.batch * self._settings.batch_size
        expected = size if self._length is None else min(size, self._length - before)
        system.rng.seed(request.seed)
        samples = list(islice(self._samples, expected))
        if len(samples) == expected:
            return samples
        kept = len(samples) if not self._drop_last else 0
        # An epoch that is one pass may meet the end of the stream only before its first sample.
        if self._length is not None and (kept or self._restarted or request.batch or not self._train):
            raise UserError(
                f"data.dataset: {self._name} gave {before + len(samples)} samples in an epoch, and its length is "
                f"{self._length}. Make __len__ say what it gives, or set data.limit_batches."
            )
        if not self._train and request.batch == 0 and not kept:
            raise UserError(f"data.dataset: {self._name} gives no sample to validate on.")
        if kept or not self._train:
            return samples
        if self._restarted:
            raise UserError(
                f"data.dataset: {self._name} gives {len(samples)} samples from its beginning to its end, which make no "
                f"batch with data.batch_size={size} and data.drop_last={str(self._drop_last).lower()}."
            )
        self._begin(self.beginning, request)
        self._restarted = True
        return self._take(request)


def _check(dataset: Any, name: str, settings: DataSettings) -> None:
    missing = [each for each in ("state_dict", "load_state_dict") if not callable(getattr(dataset, each, None))]
    if missing:
        raise ConfigError(
            f"data.dataset: {name} is a stream, and has no {' and no '.join(missing)}, so a run could not go on in its "
            "middle. Add state_dict(), which says where it stands, and load_state_dict(state), after which iter() goes "
            "on from there; or give it __len__ and __getitem__ (a map-style data set)."
        )
    if type(state := dataset.state_dict()) is not dict:
        raise ConfigError(f"data.dataset: state_dict() of {name} gives a {type(state).__name__}. It has to be a dict.")
    try:
        checkpoint.split(state)
    except checkpoint.TreeError as error:
        raise ConfigError(f"data.dataset: state_dict() of {name}, {error}") from error
    if settings.num_workers > 1:
        raise ConfigError(
            f"data.num_workers={settings.num_workers}: {name} is a stream, and each worker would read the whole of it. "
            "Set data.num_workers=1, or 0."
        )


def _batches(samples: int | None, split: str, settings: DataSettings) -> int | None:
    """Count the batches in an epoch; None if neither the data set nor the settings say."""
    if samples is None or (split == "train" and settings.limit_batches is not None):
        return settings.limit_batches
    return count(samples, settings, drop_last=split == "train" and settings.drop_last)
