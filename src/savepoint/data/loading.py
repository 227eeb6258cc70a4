"""Load batches in the training process or in workers, with equal bits."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from savepoint.config import DataSettings
from savepoint.data import workers

Load = Callable[[Any], Any]  # from a request for a batch to the batch


class Workers:
    """Worker processes that load the batches of many epochs."""

    def __init__(self, load: Load, settings: DataSettings, *, pin_memory: bool) -> None:
        self._requests = _Requests()
        self._loader = loader(
            load,
            self._requests,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch,
            persistent_workers=settings.persistent_workers,
            pin_memory=pin_memory,
        )

    def epoch(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Yield the batch of each request, in the order of the requests. Workers load some batches ahead."""
        self._requests.requests = requests
        return iter(self._loader)


def loader(load: Load, requests: Iterable[Any], **options: Any) -> DataLoader[Any]:
    """Make torch's loader answer requests for whole batches. options: passed on to torch."""
    return DataLoader(
        _Loaded(load),
        batch_size=None,  # a request already is a batch
        sampler=requests,
        collate_fn=_unchanged,
        worker_init_fn=workers.start,
        # A loader without a generator draws from the one that dropout draws from.
        generator=torch.Generator(),
        **options,
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as workers do: a sum on two threads can differ in its last bit.

    Workers cannot use more threads instead. GNU's OpenMP waits for ever in a forked process that asks for more than one
    (pytorch/pytorch#17199). Setting the number takes 2 µs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pin(batch: Any) -> Any:
    """Copy the tensors of a batch to page-locked memory, from which a GPU copies faster."""
    return torch.utils.data._utils.pin_memory.pin_memory(batch)  # type: ignore[no-untyped-call]


class _Requests(Sampler[Any]):
    """Hands the requests of the current epoch to a loader that lives for many epochs."""

    def __init__(self) -> None:
        self.requests: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.requests


class _Loaded(Dataset[Any]):
    def __init__(self, load: Load) -> None:
        self._load = load

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._load(request)
        except StopIteration as error:
            # The loop over the batches would take StopIteration for the end of the epoch.
            raise RuntimeError("the data set raised StopIteration") from error


def _unchanged(batch: Any) -> Any:
    return batch
