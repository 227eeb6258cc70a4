"""Which samples the batches of an epoch hold: a pure function of (seed, epoch), whoever chooses them."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from tools.sources import Drawing, Pairs, Reversing, Shuffling
from torch.utils.data import WeightedRandomSampler

from project.data.balanced import Balanced
from project.data.digits import Digits
from project.data.table import Diabetes
from savepoint.config import DataSettings
from savepoint.data import sampling
from savepoint.data.batches import Batches
from savepoint.data.permutation import LISTED, permuted
from savepoint.data.ranks import Part
from savepoint.data.sampling import NEWEST_ORDER, OLDEST_ORDER, ORDERS, Plain, Sampled
from savepoint.errors import ConfigError, UserError
from savepoint.system import rng

SAMPLES = 11


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


def sampled(sampler: Any, *, samples: int = SAMPLES, seed: int = 3, **changes: Any) -> Sampled:
    return Sampled(sampler, samples=samples, settings=DataSettings(**({"batch_size": 4} | changes)), seed=seed)


# Each sample once


def plain(samples: int, *, split: str = "train", seed: int = 3, **changes: Any) -> Plain:
    return Plain(samples, split=split, settings=DataSettings(**({"batch_size": 4} | changes)), seed=seed)


def cut(order: list[int], size: int = 4) -> list[list[int]]:
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def test_the_newest_order_is_the_keyed_permutation() -> None:
    for samples in (1, SAMPLES, 5000):
        for epoch in range(2):
            key = rng.fold_in(3, "order", epoch)
            expected = permuted(np.arange(samples), count=samples, key=key).tolist()
            assert list(plain(samples).epoch(epoch)) == cut(expected)
    assert NEWEST_ORDER == "permutation-1"


def test_the_oldest_order_is_torchs_permutation_as_the_first_runs_had_it() -> None:
    for samples in (1, SAMPLES, 5000):
        for epoch in range(2):
            generator = torch.Generator().manual_seed(rng.fold_in(3, "order", epoch))
            expected = torch.randperm(samples, generator=generator).tolist()
            assert list(plain(samples).epoch(epoch, order="randperm")) == cut(expected)
    assert OLDEST_ORDER == "randperm"


def test_each_order_has_batches_of_its_own() -> None:
    found = [list(plain(50).epoch(0, order=order)) for order in ORDERS]
    assert all(one != other for number, one in enumerate(found) for other in found[:number])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 3, 4, 7, 50])
def test_blocks_of_positions_change_no_batch(monkeypatch: pytest.MonkeyPatch, size: int, order: str) -> None:
    """A block may hold a batch, several, or less than one."""
    whole = list(plain(29, batch_size=size).epoch(1, order=order))
    for block in (1, 6, 8):
        monkeypatch.setattr(sampling, "BLOCK", block)
        for start in range(len(whole) + 1):
            assert list(plain(29, batch_size=size).epoch(1, start=start, order=order)) == whole[start:]


@pytest.mark.parametrize("changes", [{}, {"shuffle": False}, {"split": "val"}], ids=str)
def test_an_epoch_of_billions_begins_and_goes_on_anywhere_without_a_list(changes: dict[str, Any]) -> None:
    samples = 10**10
    order = plain(samples, batch_size=64, **changes)
    assert len(order) == samples // 64
    for start in (0, len(order) // 2, len(order) - 2):
        batches = list(islice(order.epoch(0, start=start), 2))
        indices = [index for batch in batches for index in batch]
        assert len(set(indices)) == 128 and min(indices) >= 0 and max(indices) < samples
        if changes:
            assert indices == list(range(start * 64, start * 64 + 128))


def test_a_step_of_few_samples_asks_for_a_block_of_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noting(positions: Any, **about: Any) -> Any:
        asked.append(len(positions))
        return permuted(positions, **about)

    monkeypatch.setattr(sampling, "permuted", noting)
    batches = plain(3 * LISTED, batch_size=64).epoch(0)
    next(batches)
    assert asked == [sampling.BLOCK]
    assert len(list(batches)) == 3 * LISTED // 64 - 1 and asked == [sampling.BLOCK] * 3
    asked.clear()
    settings = DataSettings(batch_size=64)
    list(Plain(8 * LISTED, split="train", settings=settings, seed=0, part=Part(1, ranks=4)).epoch(0))
    assert asked == [sampling.BLOCK] * 2, "a rank asks for its own positions, and for no others"


# What a sampler gives


class Numpys:
    """An order drawn from NumPy, as NumPy's own integers; no torch Sampler."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[Any]:
        return iter(np.random.permutation(SAMPLES))


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0] * 8 + [9.0] * 3, SAMPLES)


KINDS = {
    "weighted": weighted,
    "torch's random": lambda: Shuffling(range(SAMPLES)),
    "NumPy": Numpys,
    "set_epoch": lambda: Reversing(range(SAMPLES)),
    "batches, by random": lambda: Pairs(range(SAMPLES)),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_the_order_of_an_epoch_depends_on_nothing_but_the_seed_and_the_epoch(make: Any) -> None:
    expected = [list(sampled(make()).epoch(epoch)) for epoch in range(4)]
    asked = sampled(make())
    for epoch in (3, 1, 0, 2, 2):
        torch.rand(3), random.random(), np.random.rand()
        assert list(asked.epoch(epoch)) == expected[epoch]
    assert expected[0] != expected[1]
    if make is not KINDS["set_epoch"]:
        assert expected != [list(sampled(make(), seed=4).epoch(epoch)) for epoch in range(4)]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_taking_an_order_leaves_the_models_generators_alone(make: Any) -> None:
    rng.seed(1)
    sampler = make()
    before = torch.rand(()).item(), random.random(), np.random.rand()
    rng.seed(1)
    sampler = make()
    list(sampled(sampler).epoch(5))
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == before


@pytest.mark.parametrize(
    "changes, sizes",
    [
        ({}, [4, 4, 3]),
        ({"drop_last": True}, [4, 4]),
        ({"limit_batches": 1}, [4]),
        ({"limit_batches": 9}, [4, 4, 3]),
        ({"batch_size": 20}, [11]),
    ],
    ids=str,
)
def test_indices_are_cut_into_batches(changes: dict[str, Any], sizes: list[int]) -> None:
    order = sampled(Shuffling(range(SAMPLES)), **changes)
    assert len(order) == len(sizes)
    for epoch in range(2):
        batches = list(order.epoch(epoch))
        assert [len(batch) for batch in batches] == sizes
        assert all(type(index) is int for batch in batches for index in batch)


def test_lists_of_indices_are_the_batches_whatever_the_batch_size() -> None:
    for changes in ({}, {"batch_size": 1, "drop_last": True}):
        order = sampled(Pairs(range(SAMPLES)), **changes)
        assert len(order) == 5 and [len(batch) for batch in list(order.epoch(0))] == [2] * 5
    assert len(list(sampled(Pairs(range(SAMPLES)), limit_batches=3).epoch(7))) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", [Shuffling, Pairs, Reversing])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_starting_at_batch_k_equals_skipping_k(workers: int, sampler: Any) -> None:
    def of(workers: int) -> Batches:
        data = Drawing("train", samples=12)
        settings = DataSettings(batch_size=5, num_workers=workers)
        return Batches(data, split="train", settings=settings, seed=0, sampler=sampler(data))

    whole, batches = [list(of(0).epoch(epoch)) for epoch in range(2)], of(workers)
    for start in range(len(batches) + 1):
        for epoch in (1, 0):
            found = list(batches.epoch(epoch, start=start))
            assert len(found) == len(whole[epoch]) - start
            for a, b in zip(found, whole[epoch][start:], strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# What is refused


class Given:
    """Gives what it is told to, and says that its length is `length`."""

    def __init__(self, *given: Any, length: int | None = None) -> None:
        self.given, self.length = given, len(given) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.given)


class Endless(Given):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 0


class Turning(Given):
    """Three orders in turn, and each comes again after the other two."""

    def __iter__(self) -> Iterator[Any]:
        self.given = self.given[1:] + self.given[:1]
        return iter(self.given)


class Drifting(Given):
    """Asked for the same epoch it gives the same; and it remembers which were asked for."""

    seen = 0

    def set_epoch(self, epoch: int) -> None:
        self.seen += epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(np.roll(self.given, self.seen))


@pytest.mark.parametrize(
    "sampler", [Shuffling(range(SAMPLES), own=True), Turning(0, 1, 2), Drifting(0, 1, 2)], ids=lambda each: type(each).__name__
)  # fmt: skip
def test_a_sampler_with_a_state_of_its_own_is_refused(sampler: Any) -> None:
    with pytest.raises(ConfigError) as error:
        sampled(sampler)
    assert str(error.value).startswith(
        f"data.sampler: {type(sampler).__module__}.{type(sampler).__name__} gives another"
    )
    assert str(error.value).endswith(
        "Let it draw from the global generators of torch, NumPy or random, which are seeded for each epoch, or compute "
        "its order in set_epoch(epoch)."
    )


@pytest.mark.parametrize(
    "sampler, told",
    [
        (Given(0, 1, 11), "gives the index 11, and the data set has 11 samples, from 0 on (epoch 0)."),
        (Given(0, -1), "gives the index -1, and the data set has 11 samples"),
        (Given([0, 1], [2, 30]), "gives the index 30, and"),
        (
            Given(0, 1, 2, length=5),
            "gives 3, and its __len__ said 5 at the start. Make them agree, in every epoch (epoch 0).",
        ),
        (Given(0, 1, 2, length=2), "gives more than 2, and its __len__ said 2 at the start."),
        (Given([0, 1], [2], length=4), "gives 2, and its __len__ said 4 at the start."),
        (Endless(0), "gives more than 1, and its __len__ said 1 at the start."),
        (Given(0.5), "gives a float. Let it give indices, or lists of indices (epoch 0)."),
        (Given(np.arange(3)), "gives a ndarray. Let it give indices, or lists of indices"),
        (Given([0], []), "gives an empty batch (epoch 0)."),
        (Given([0], 1), "gives both indices and lists of indices. Let it give only one of the two (epoch 0)."),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_no_epoch_can_be_made_of_is_refused(sampler: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        sampled(sampler)
    assert str(error.value).startswith(f"data.sampler: test_sampling.{type(sampler).__name__} {told}")


@pytest.mark.parametrize(
    "sampler, changes, told",
    [
        (Given(), {}, "makes no batch: its length is 0, with data.batch_size=4 and data.drop_last=false."),
        (Given(0, 1), {"drop_last": True}, "its length is 2, with data.batch_size=4 and data.drop_last=true."),
        (range(3), {}, None),
        (iter(range(3)), {}, "needs __iter__ and __len__, like torch's samplers."),
    ],
)
def test_a_sampler_that_gives_nothing_or_has_no_length_is_refused(sampler: Any, changes: Any, told: str | None) -> None:
    if told is None:  # no class of torch is needed
        assert list(sampled(sampler, **changes).epoch(0)) == [[0, 1, 2]]
        return
    with pytest.raises(ConfigError) as error:
        sampled(sampler, **changes)
    assert str(error.value).startswith("data.sampler: ") and told in str(error.value)


def test_an_epoch_that_is_shorter_than_the_first_is_refused_when_it_comes() -> None:
    class Shrinking(Reversing):
        def __iter__(self) -> Iterator[int]:
            return iter(range(self.samples - (self.epoch > 2)))

    order = sampled(Shrinking(range(SAMPLES)))
    assert [len(list(order.epoch(epoch))) for epoch in range(3)] == [3] * 3
    with pytest.raises(
        UserError,
        match=r"gives 10, and its __len__ said 11 at the start\. Make them agree, in every epoch \(epoch 3\)\.",
    ):
        list(order.epoch(3))


def test_an_epoch_of_another_number_of_batches_is_refused_when_it_comes() -> None:
    class Cutting(Reversing):
        def __iter__(self) -> Iterator[Any]:
            return iter(range(self.samples)) if self.epoch > 2 else iter([[index] for index in range(self.samples)])

    order = sampled(Cutting(range(SAMPLES)))
    assert [len(list(order.epoch(epoch))) for epoch in range(3)] == [SAMPLES] * 3
    with pytest.raises(UserError, match=r"Cutting makes 3 batches, and made 11 in epoch 0\. .* \(epoch 3\)\."):
        list(order.epoch(3))


# The worked example


class Labelled:
    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 20


def classes_drawn(targets: Any, **options: Any) -> Counter[int]:
    sampler = Balanced(Labelled(targets), **options)
    drawn = (
        index for epoch in range(200) for batch in list(sampled(sampler, samples=20).epoch(epoch)) for index in batch
    )
    return Counter(int(targets[index]) for index in drawn)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_balanced_draws_each_class_equally_often(kind: Any) -> None:
    drawn = classes_drawn(kind([7] * 17 + [2] * 2 + [5]))
    assert sum(drawn.values()) == 200 * 20 and set(drawn) == {2, 5, 7}
    assert all(0.9 < count / (200 * 20 / 3) < 1.1 for count in drawn.values()), drawn
    assert sum(classes_drawn(kind([7] * 17 + [2] * 3), samples=6).values()) == 200 * 6


def test_balanced_works_with_the_digits_and_not_with_numbers() -> None:
    digits = Digits("train")
    order = sampled(Balanced(digits), samples=len(digits))
    assert len(order) == -(-len(digits) // 4)
    with pytest.raises(ConfigError, match=r"data\.sampler: the targets of Diabetes are no classes: one integer"):
        Balanced(Diabetes("train"))
    with pytest.raises(ConfigError, match=r"data\.sampler: range has no attribute targets, the class of each sample\."):
        Balanced(range(3))
