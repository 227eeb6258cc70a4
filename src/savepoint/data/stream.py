"""Cut a stream into batches. A stream is a data set that is read in its own order, and whose state is its position.

The stream goes on from epoch to epoch. Each epoch begins by loading the state that the previous epoch left, even in a
run that nothing interrupts, so a resumed run takes the same path. (seed, epoch, batch) seeds what reading draws.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import IterableDataset, default_collate

from savepoint import checkpoint, system
from savepoint.config import DataSettings
from savepoint.data.loading import Workers, loader, one_thread
from savepoint.data.ranks import WHOLE, Part
from savepoint.data.reader import Reader, Request, Result
from savepoint.data.sampling import NEWEST_ORDER, count
from savepoint.errors import ConfigError, UserError


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be iterated over, and gives no sample by its index."""
    if isinstance(dataset, IterableDataset):
        return True
    indexed = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    return hasattr(dataset, "__iter__") and not indexed


class Stream:
    """One split of a stream, cut into batches. It does for streams what `Batches` does for all other data.

    dataset: has `__iter__`, `state_dict()` (its position), and `load_state_dict(state)`, after which `iter()`
    goes on from that position. This is torchdata's contract. `__len__`, if there, counts all its samples.
    split: "train" begins again whenever it ends. "val" is read from its beginning in every epoch, to its end at most.
    collate: makes a batch of a list of samples; None for torch's default_collate.
    rank, ranks: which of how many processes this is. Each reads the whole stream, all of them to the same position, and
    makes a batch of its part of the samples, as `ranks.Part` cuts them. So what reading draws is the same in all.
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
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        _check(dataset, name, settings)
        self.samples: int | None = len(dataset) if hasattr(dataset, "__len__") else None
        self._split, self._settings, self._seed, self._pin = split, settings, seed, pin_memory
        self.dataset = dataset
        self._count = _batches(self.samples, name, split, settings)
        self._collate, self._part = collate, Part(rank, ranks)
        self._reader = Reader(
            dataset,
            name=name,
            split=split,
            settings=settings,
            length=self.samples,
            collate=collate or default_collate,
            part=self._part,
        )
        # This rank's samples of the batches that were handed out, where they are not those of a full batch.
        self._shares: dict[int, int] = {}
        self._workers = Workers(self._reader.read, settings, pin_memory=pin_memory) if settings.num_workers else None
        # The state after the batch that was handed out last; None if that is the data set's current state.
        self._place: Any = self._reader.beginning

    def __len__(self) -> int:
        """Count the batches in an epoch of training; in validation, the most that there can be."""
        return self._count

    def first(self, count: int) -> "Stream":
        """Make the same split with at most `count` batches in an epoch. It takes this one's data set and position."""
        return self._copy(replace(self._settings, limit_batches=min(count, len(self))), self._part)

    @functools.cached_property
    def whole(self) -> "Stream":
        """The same split with whole batches, where several ranks divide them. It takes this one's data set."""
        return self if self._part == WHOLE else self._copy(self._settings, WHOLE)

    def _copy(self, settings: DataSettings, part: Part) -> "Stream":
        about: Any = {"split": self._split, "seed": self._seed, "pin_memory": self._pin, "collate": self._collate}
        other = Stream(self.dataset, settings=settings, **about, **part._asdict())
        other._reader.beginning, other._place = self._reader.beginning, self._place
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batch that was handed out last, however far a worker has read ahead."""
        state: dict[str, Any] = self.dataset.state_dict() if self._place is None else self._place
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state in the next epoch. Raises: what the data set raises for a wrong state."""
        self.dataset.load_state_dict(copy.deepcopy(state))
        self._place = state

    def share(self, number: int) -> int:
        """Count this rank's samples of a batch that was handed out in this epoch. See `Batches.share`."""
        return self._shares.get(number, len(self._part.own(self._settings.batch_size)))

    def facts(self, digested: int | None = None) -> dict[str, Any]:
        """Summarise the split so that a resume can detect changed data. No sample is read: it may come only once.

        Returns: `samples`, the length or None; `sha256`, the data set's own `fingerprint()` or None.
        """
        own = str(self.dataset.fingerprint()) if hasattr(self.dataset, "fingerprint") else None
        return {"samples": self.samples, "digested": None, "sha256": own}

    def glance(self, *, whole: bool = False) -> Any:
        """Load the first batch, and put the stream back to its beginning. No generator is changed.

        Raises: UserError if the stream gives nothing.
        """
        seed = system.rng.fold_in(self._seed, self._split, 0, 0)
        request = Request(seed, seed, 0, self._reader.beginning)
        with system.rng.isolated(), one_thread():
            read = self._reader.read
            given = next(iter(loader(read, [request], num_workers=1) if self._workers else map(read, [request])))
            self.dataset.load_state_dict(copy.deepcopy(self._reader.beginning))
        if given.fault is not None:
            raise UserError(given.fault)
        return given.batch

    def epoch(self, epoch: int, *, start: int = 0, order: str = NEWEST_ORDER) -> Iterator[Any]:
        """Read the batches `start`, `start + 1`, … of an epoch, from the current position; "val" from the beginning.

        order: has no effect on a stream.
        Raises: UserError if the stream ends before its length says so, or gives nothing.
        """
        number = epoch if self._split == "train" else 0
        place = self.state_dict() if self._split == "train" else self._reader.beginning
        # The requests do not refer to `self`: in a reference cycle, workers would live until it is collected.
        seed = functools.partial(system.rng.fold_in, self._seed, self._split, number)
        requests = (
            Request(seed(batch), seed("iter"), batch, place if batch == start else None)
            for batch in range(start, len(self))
        )
        read = self._workers.epoch(requests) if self._workers else self._directly(requests)
        return self._handed_out(read, start)

    def _directly(self, requests: Iterator[Request]) -> Iterator[Result]:
        """Read in this process, one batch at a time, so that the data set stands where training does."""
        for request in requests:
            with system.rng.isolated(), one_thread():
                result = self._reader.read(request)
            yield result.pin_memory() if self._pin else result

    def _handed_out(self, read: Iterator[Result], start: int) -> Iterator[Any]:
        for number, result in enumerate(read, start):
            if result.fault is not None:
                raise UserError(result.fault)
            if result.batch is None:
                return
            self._place = result.place
            if result.share != self.share(number):
                self._shares[number] = result.share
            yield result.batch


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


def _batches(samples: int | None, name: str, split: str, settings: DataSettings) -> int:
    """Count the batches in an epoch. Raises: ConfigError if neither the data set nor the settings say."""
    if settings.limit_batches is not None and (samples is None or split == "train"):
        return settings.limit_batches
    if samples is None:
        raise ConfigError(
            f"data.dataset: {name} is a stream without a length, so nothing says where an epoch ends. "
            "Set data.limit_batches, the number of batches in an epoch, or give it __len__."
        )
    return count(samples, settings, drop_last=split == "train" and settings.drop_last)
