"""Read the batches of a stream one after the other, in the training process or in its one worker."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from savepoint import system
from savepoint.config import DataSettings
from savepoint.data.loading import pin
from savepoint.data.ranks import WHOLE, Part
from savepoint.errors import UserError


class Request(NamedTuple):
    """A batch to read.

    seed: for what loading its samples draws. opening: the seed for what `iter()` draws. batch: its number in the epoch.
    place: the state to begin from, for the first batch of an epoch or of a resumed run; None to go on.
    """

    seed: int
    opening: int
    batch: int
    place: Any


@dataclass(frozen=True)
class Result:
    """The result of a request: a batch and the state after it, a fault, or neither at the end of validation.

    share: how many of the samples count; 0 for a placeholder.
    """

    batch: Any = None
    place: Any = None
    fault: str | None = None
    share: int = 0

    def pin_memory(self) -> "Result":
        """Pin the batch alone. torch's loader calls this. Pinning the state would double a Counter in it."""
        return self if self.batch is None else replace(self, batch=pin(self.batch))


class Reader:
    """Reads a stream in the training process or in its one worker.

    beginning: the state of the stream before its first sample. length: the number of its samples; None if not known.
    part: which samples of each batch this process has. It reads the others too, and leaves them out.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        split: str,
        settings: DataSettings,
        length: int | None,
        collate: Callable[[list[Any]], Any],
        part: Part = WHOLE,
    ) -> None:
        self._collate, self._part = collate, part
        self.beginning: Any = copy.deepcopy(dataset.state_dict())
        self._dataset, self._name, self._train, self._settings = dataset, name, split == "train", settings
        self._length = length if settings.limit_batches is None else None  # set if an epoch is one pass
        self._drop_last = self._train and settings.drop_last
        self._samples: Iterator[Any] = iter(())
        self._restarted = False  # whether the stream began again and has made no batch since

    def read(self, request: Request) -> Result:
        """Read the batch that is asked for."""
        if request.place is not None:
            self._begin(request.place, request)
            self._restarted = False
        try:
            samples = self._take(request)
        except UserError as error:
            return Result(fault=str(error))  # text, because an error of a worker arrives with its whole traceback
        if not samples:
            return Result()
        self._restarted = False
        # A worker reads on while the batch waits in a queue, so it sends a copy of the state along.
        by_worker = self._settings.num_workers and self._train
        loaded, share = self._part.loaded(len(samples)), len(self._part.own(len(samples)))
        batch = self._collate(samples[loaded.start : loaded.stop])
        return Result(batch, copy.deepcopy(self._dataset.state_dict()) if by_worker else None, share=share)

    def _begin(self, place: Any, request: Request) -> None:
        # One seed for the whole epoch, so that `iter()` draws the same in a run that resumes within it.
        system.rng.seed(request.opening)
        self._dataset.load_state_dict(copy.deepcopy(place))
        self._samples = iter(self._dataset)

    def _take(self, request: Request) -> list[Any]:
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
