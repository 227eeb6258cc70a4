"""A data set that is a stream: read once through in its own order, and put back to any place by a state of its own.

It goes on from epoch to epoch: each begins by loading the state in which the one before left the stream, in a run that
nothing interrupts too, so a resumed run does nothing else. What the reading draws comes from (seed, epoch, batch).
"""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, default_collate

from savepoint import checkpoint, system
from savepoint.config import DataSettings
from savepoint.data.loading import Workers, one_thread, pin
from savepoint.data.sampling import count
from savepoint.errors import ConfigError, UserError


def is_stream(dataset: Any) -> bool:
    """Whether its samples come one after another, and cannot be asked for by their number."""
    if isinstance(dataset, IterableDataset):
        return True
    by_number = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    return hasattr(dataset, "__iter__") and not by_number


class Stream:
    """One split of such data, cut into batches: what `Batches` is for all other data.

    dataset: `__iter__`, `state_dict()`, which says where it stands, and `load_state_dict(state)`, after which `iter()`
    goes on from there: torchdata's contract. A `__len__` is how many samples it has from its beginning to its end.
    split: "train" begins again whenever it ends. "val" is read from its beginning in every epoch, to its end at most.
    Raises: ConfigError that says what the data set lacks.
    """

    sampled = False

    def __init__(
        self, dataset: Any, *, split: str, settings: DataSettings, seed: int, pin_memory: bool = False
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
        self._reader = _Reader(dataset, name=name, split=split, settings=settings, length=self.samples)
        self._workers = Workers(self._reader.read, settings, pin_memory=pin_memory) if settings.num_workers else None
        # Where the stream stands after the batch that was handed out last; None: where the data set itself does.
        self._place: Any = self._reader.beginning

    def __len__(self) -> int:
        """Batches in an epoch of training; in validation, at most."""
        assert self._count is not None
        return self._count

    def first(self, count: int) -> "Stream":
        """The same split, of whose epochs only so many batches are used, from where it stands. In place of this one."""
        settings = replace(self._settings, limit_batches=min(count, len(self)))
        short = Stream(self.dataset, split=self._split, settings=settings, seed=self._seed, pin_memory=self._pin)
        short._reader.beginning, short._place = self._reader.beginning, self._place
        return short

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch that was handed out last, however far a worker has read ahead."""
        state: dict[str, Any] = self.dataset.state_dict() if self._place is None else self._place
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(copy.deepcopy(state))  # here already, where an error can say whose state it is
        self._place = state

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """By what other data are told apart: `samples`, its length or None; `sha256`, its own `fingerprint()` or None.

        Nothing is read for it: a stream may have no second time.
        """
        own = str(self.dataset.fingerprint()) if hasattr(self.dataset, "fingerprint") else None
        return {"samples": self.samples, "digested": None, "sha256": own}

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        """Batches `start`, `start + 1`, … of an epoch, from where the stream stands; in validation, from its beginning.

        Raises: UserError if the stream ends before its length says so, or gives nothing.
        """
        number = epoch if self._split == "train" else 0
        place = self.state_dict() if self._split == "train" else self._reader.beginning
        # Nothing here may refer to this object: workers whose loader is in a cycle would live until it is collected.
        seed = functools.partial(system.rng.fold_in, self._seed, self._split, number)
        requests = (
            _Request(seed(batch), seed("iter"), batch, place if batch == start else None)
            for batch in range(start, len(self))
        )
        return self._handed_out(self._workers.epoch(requests) if self._workers else self._directly(requests))

    def _directly(self, requests: Iterator["_Request"]) -> Iterator["_Given"]:
        """One batch at a time, and none ahead: the data set itself then stands where training does."""
        for request in requests:
            with system.rng.isolated(), one_thread():
                given = self._reader.read(request)
            yield given.pin_memory() if self._pin else given

    def _handed_out(self, read: Iterator["_Given"]) -> Iterator[Any]:
        for given in read:
            if given.fault is not None:
                raise UserError(given.fault)
            if given.batch is None:
                return
            self._place = given.place
            yield given.batch


class _Request(NamedTuple):
    """Which batch is to be read next. seed, opening: of what its samples draw, and of what `iter()` does.

    place: where to begin, at the first batch of an epoch or of a resumed run; None: go on.
    """

    seed: int
    opening: int
    batch: int
    place: Any


@dataclass(frozen=True)
class _Given:
    """What was read: a batch and where the stream stands after it, a fault, or nothing where validation ends."""

    batch: Any = None
    place: Any = None
    fault: str | None = None

    def pin_memory(self) -> "_Given":
        """What torch's loader calls. Not on the state: it would take it apart, and a Counter comes back doubled."""
        return self if self.batch is None else replace(self, batch=pin(self.batch))


class _Reader:
    """Reads the stream: in the training process, or in its one worker."""

    def __init__(self, dataset: Any, *, name: str, split: str, settings: DataSettings, length: int | None) -> None:
        self.beginning: Any = copy.deepcopy(dataset.state_dict())
        self._dataset, self._name, self._train, self._settings = dataset, name, split == "train", settings
        self._length = length if settings.limit_batches is None else None  # where an epoch is one time through
        self._drop_last = self._train and settings.drop_last
        self._samples: Iterator[Any] = iter(())
        self._begun_again = False  # and has made no batch since

    def read(self, request: _Request) -> _Given:
        if request.place is not None:
            self._begin(request.place, request)
            self._begun_again = False
        try:
            samples = self._take(request)
        except UserError as error:  # as text, since a worker's errors arrive with its whole traceback
            return _Given(fault=str(error))
        if not samples:
            return _Given()
        self._begun_again = False
        # The batch goes through a queue, and the stream on: a copy, unless it is read here, and asked where it stands.
        there = self._settings.num_workers and self._train
        return _Given(default_collate(samples), copy.deepcopy(self._dataset.state_dict()) if there else None)

    def _begin(self, place: Any, request: _Request) -> None:
        # The same seed whenever it happens in an epoch: whatever `iter()` draws, a resumed run draws it again.
        system.rng.seed(request.opening)
        self._dataset.load_state_dict(copy.deepcopy(place))
        self._samples = iter(self._dataset)

    def _take(self, request: _Request) -> list[Any]:
        """The samples of the next batch; none where validation has come to its end."""
        size, before = self._settings.batch_size, request.batch * self._settings.batch_size
        wanted = size if self._length is None else min(size, self._length - before)
        system.rng.seed(request.seed)
        samples = list(islice(self._samples, wanted))
        if len(samples) == wanted:
            return samples
        kept = len(samples) if not self._drop_last else 0
        # One time through may end where the next one begins, and nowhere else.
        if self._length is not None and (kept or self._begun_again or request.batch or not self._train):
            raise UserError(
                f"data.dataset: {self._name} gave {before + len(samples)} samples in an epoch, and its length is "
                f"{self._length}. Make __len__ say what it gives, or set data.limit_batches."
            )
        if not self._train and request.batch == 0 and not kept:
            raise UserError(f"data.dataset: {self._name} gives no sample to validate on.")
        if kept or not self._train:
            return samples
        if self._begun_again:
            raise UserError(
                f"data.dataset: {self._name} gives {len(samples)} samples from its beginning to its end, which make no "
                f"batch with data.batch_size={size} and data.drop_last={str(self._drop_last).lower()}."
            )
        self._begin(self.beginning, request)
        self._begun_again = True
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
    """In an epoch; None if nothing says it."""
    if samples is None or (split == "train" and settings.limit_batches is not None):
        return settings.limit_batches
    return count(samples, settings, drop_last=split == "train" and settings.drop_last)
