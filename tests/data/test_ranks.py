"""Several processes get the batches of a single one, cut: each sample once, whatever chooses their order."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tools import sources
from tools.sources import Drawing, Pairs, Shuffling

from savepoint.config import DataSettings
from savepoint.data import Batches, NoData, Stream
from savepoint.data.ranks import Part
from savepoint.data.sampling import ORDERS
from savepoint.system import rng

SAMPLES = 11  # in batches of 4: two, and one of 3 samples


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Numbers:
    """Each sample is its own number, and draws nothing."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


def mapped(
    dataset: Any = None, *, split: str = "train", sampler: Any = None, rank: int, ranks: int, **changes: Any
) -> Batches:
    settings = DataSettings(**({"batch_size": 4} | changes))
    dataset = dataset or Numbers()
    return Batches(dataset, split=split, settings=settings, seed=3, sampler=sampler, rank=rank, ranks=ranks)


def streamed(dataset: Any = None, *, split: str = "train", rank: int, ranks: int, **changes: Any) -> Stream:
    settings = DataSettings(**({"batch_size": 4} | changes))
    dataset = dataset or sources.Sized("train", samples=SAMPLES)
    return Stream(dataset, split=split, settings=settings, seed=3, rank=rank, ranks=ranks)


def numbers(batch: Any) -> list[int]:
    """The samples that a batch holds."""
    if isinstance(batch, list | tuple):
        return [round(100 * number) for number in batch[0][:, 0].tolist()]
    found: list[int] = batch.tolist()
    return found


def test_a_batch_is_cut_as_numpy_cuts_an_array() -> None:
    for length, ranks in itertools.product(range(1, 30), range(1, 9)):
        cut = [list(Part(rank, ranks).own(length)) for rank in range(ranks)]
        assert cut == [part.tolist() for part in np.array_split(np.arange(length), ranks)]
        assert cut[0], "rank 0 always has some"


def test_a_rank_without_a_sample_loads_the_last_one() -> None:
    assert [list(Part(rank, 4).loaded(2)) for rank in range(4)] == [[0], [1], [1], [1]]
    assert [len(Part(rank, 4).own(2)) for rank in range(4)] == [1, 1, 0, 0]


class OfSizes:
    """Batches of many sizes, and other ones in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        sizes = (1, 5, 3, 2) if self.epoch % 2 else (2, 1, 4, 4)
        ends = list(itertools.accumulate(sizes))
        return iter([list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)])


KINDS: dict[str, Any] = {
    "shuffled": mapped,
    "in order": lambda **about: mapped(shuffle=False, **about),
    "drop_last": lambda **about: mapped(drop_last=True, **about),
    "limited": lambda **about: mapped(limit_batches=2, **about),
    "validation": lambda **about: mapped(split="val", **about),
    "a sampler": lambda **about: mapped(sampler=Shuffling(range(SAMPLES)), **about),
    "a sampler of pairs": lambda **about: mapped(sampler=Pairs(range(SAMPLES)), **about),
    "a sampler of batches": lambda **about: mapped(sampler=OfSizes(), **about),
    "workers": lambda **about: mapped(num_workers=1, **about),
    "a stream": streamed,
    "a stream without an end": lambda **about: streamed(sources.Stream("train", samples=None), limit_batches=3, **about),
    "a stream that begins again": lambda **about: streamed(limit_batches=5, **about),
    "a stream with a buffer": lambda **about: streamed(sources.Sized("train", samples=SAMPLES, buffer=3), **about),
    "a stream in a worker": lambda **about: streamed(num_workers=1, **about),
    "a stream to validate on": lambda **about: streamed(split="val", **about),
    "a stream to validate on, of unknown length": lambda **about: streamed(sources.Stream("train", samples=SAMPLES), split="val", limit_batches=9, **about),
}  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_have_each_batch_of_a_single_process_between_them(kind: str, ranks: int) -> None:
    make = KINDS[kind]
    alone, cut = make(rank=0, ranks=1), [make(rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in range(2):
        batches = [each.epoch(epoch) for each in cut]
        for number, whole in enumerate(map(numbers, alone.epoch(epoch))):
            loaded = [numbers(next(each)) for each in batches]
            shares = [each.share(number) for each in cut]
            assert shares == [len(part) for part in np.array_split(np.arange(len(whole)), ranks)]
            assert [index for part, share in zip(loaded, shares, strict=True) for index in part[:share]] == whole
            for part, share in zip(loaded, shares, strict=True):
                assert len(part) == max(share, 1)
                assert share or part == whole[-1:], "a placeholder is the last sample"
        assert all(next(each, None) is None for each in batches)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_counts_the_batches_of_all(kind: str) -> None:
    assert {len(KINDS[kind](rank=rank, ranks=5)) for rank in range(5)} == {len(KINDS[kind](rank=0, ranks=1))}


@pytest.mark.parametrize("order", ORDERS)
def test_a_rank_that_begins_at_batch_k_goes_on_as_one_that_did_not(order: str) -> None:
    for rank in range(3):
        batches = mapped(Drawing("train", samples=SAMPLES), rank=rank, ranks=3)
        whole = [[part.tolist() for part in batch] for batch in batches.epoch(1, order=order)]
        for start in range(len(batches) + 1):
            found = [[part.tolist() for part in batch] for batch in batches.epoch(1, start=start, order=order)]
            assert found == whole[start:]


def test_a_stream_counts_the_shares_of_several_batches_that_were_taken_at_once() -> None:
    """An update may be made of several batches."""
    stream = streamed(limit_batches=5, rank=1, ranks=3)
    taken = list(stream.epoch(0))
    assert [stream.share(number) for number in range(5)] == [1, 1, 1, 1, 1] and len(taken) == 5
    last = streamed(limit_batches=5, rank=3, ranks=4)
    list(last.epoch(0))
    assert [last.share(number) for number in range(5)] == [1, 1, 0, 1, 1]
    list(last.epoch(1))
    assert [last.share(number) for number in range(5)] == [0, 1, 1, 0, 1]


def test_a_stream_stands_at_the_same_place_in_every_rank() -> None:
    cut = [streamed(sources.Sized("train", samples=SAMPLES, buffer=3), rank=rank, ranks=3) for rank in range(3)]
    for batches in zip(*[each.epoch(0) for each in cut], strict=True):
        assert len(batches) == 3
        places = [each.state_dict() for each in cut]
        assert all(str(place) == str(places[0]) for place in places)


def drawn(batch: Any) -> set[float]:
    """The random numbers that loading a batch drew."""
    return {number for row in batch[0].tolist() for number in row[1:5]}


def test_each_rank_augments_its_own_samples_with_numbers_of_its_own() -> None:
    def first(rank: int, ranks: int) -> Any:
        return next(mapped(Drawing("train", samples=SAMPLES), rank=rank, ranks=ranks).epoch(0))

    found = [drawn(first(rank, 2)) for rank in range(2)]
    assert not found[0] & found[1] and not found[0] & drawn(first(0, 1))
    assert found[0] == drawn(first(0, 2))


def test_a_single_process_draws_what_it_drew_before_there_were_several() -> None:
    dataset, settings = Drawing("train", samples=SAMPLES), DataSettings(batch_size=4)
    plain = Batches(dataset, split="train", settings=settings, seed=3)
    for one, other in zip(plain.epoch(0), mapped(dataset, rank=0, ranks=1).epoch(0), strict=True):
        assert one[0].tolist() == other[0].tolist()
    rng.seed(rng.fold_in(3, "train", 0, 0))
    expected = [dataset[index] for index in numbers(next(plain.epoch(0)))]
    assert [sample[0].tolist() for sample in expected] == next(plain.epoch(0))[0].tolist()


def test_the_first_batches_are_cut_too() -> None:
    for make in (mapped, streamed):
        batches = make(rank=1, ranks=2).first(2)
        assert len(batches) == 2 and [len(numbers(batch)) for batch in batches.epoch(0)] == [2, 2]


def test_without_data_every_update_counts() -> None:
    assert NoData(3).share(2) == 1
