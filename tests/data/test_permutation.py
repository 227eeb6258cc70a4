"""A keyed permutation of any number of positions: every value once, every order equally likely, no list of them."""

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from savepoint.data import permutation
from savepoint.data.permutation import LISTED, permuted

Shuffle = Callable[[int, int], NDArray[np.int64]]  # from the number of positions and a key to the whole order


def ours(count: int, key: int) -> NDArray[np.int64]:
    return permuted(np.arange(count), count=count, key=key)


def torchs(count: int, key: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(count, generator=torch.Generator().manual_seed(key)).numpy()
    return order


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Feistel network permute few positions too, where its faults would show first."""
    monkeypatch.setattr(permutation, "LISTED", 0)


def is_bijection(count: int) -> bool:
    return bool(np.array_equal(np.sort(ours(count, key=count)), np.arange(count)))


def test_every_value_comes_once() -> None:
    for count in (*range(1, 70), *(2**power + more for power in range(7, 17) for more in (-1, 0, 1)), 10**5):
        assert is_bijection(count), count


def test_every_value_comes_once_from_a_network_of_few_positions(network: None) -> None:
    for count in (*range(1, 200), 1023, 1024, 1025, 4095, 4096):
        assert is_bijection(count), count


@pytest.mark.parametrize("count", [1, 2, 11, LISTED, LISTED + 1, 10**6, 10**10])
def test_a_block_holds_what_its_positions_give_one_by_one(count: int) -> None:
    positions = np.array([0, count - 1, count // 2, count // 3, 0])
    block = permuted(positions, count=count, key=3)
    assert block.tolist() == [int(permuted(np.array([each]), count=count, key=3)[0]) for each in positions]
    assert np.array_equal(permuted(positions.reshape(1, 5), count=count, key=3), block.reshape(1, 5))


def test_positions_stay_as_they_are() -> None:
    positions = np.arange(2 * LISTED)
    permuted(positions, count=2 * LISTED, key=3)
    assert np.array_equal(positions, np.arange(2 * LISTED))


@pytest.mark.parametrize("count", [10**10, 10**12 + 7, permutation.MOST])
def test_billions_of_positions_are_permuted_where_they_are_asked_for(count: int) -> None:
    found = [permuted(start + np.arange(4096), count=count, key=1) for start in (0, count // 2, count - 4096)]
    values = np.concatenate(found)
    assert len(np.unique(values)) == 3 * 4096 and values.min() >= 0 and values.max() < count
    for block in found:  # from everywhere, whichever positions are asked for
        tenths = np.bincount(block // (count // 10 + 1), minlength=10)
        assert chi_square(tenths) < limit(9)


def chi_square(counts: NDArray[np.int64]) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2).sum() / expected)


def limit(freedom: int) -> float:
    """What chi-square exceeds in about one of 10,000 draws. Source: Wilson & Hilferty 1931."""
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("shuffle", [ours, torchs])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_of_few_is_equally_likely(count: int, shuffle: Shuffle) -> None:
    orders = {order: number for number, order in enumerate(itertools.permutations(range(count)))}
    draws = (orders[tuple(shuffle(count, key).tolist())] for key in range(100 * len(orders)))
    assert chi_square(np.bincount(np.fromiter(draws, int), minlength=len(orders))) < limit(len(orders) - 1)


def pairs(shuffle: Shuffle, count: int, keys: int) -> NDArray[np.int64]:
    """Count how often each value comes at each position."""
    found = np.zeros((count, count), dtype=np.int64)
    for key in range(keys):
        found[np.arange(count), shuffle(count, key)] += 1
    return found


@pytest.mark.parametrize("count", [10, 37])
def test_every_value_is_equally_likely_at_every_position(count: int) -> None:
    assert chi_square(pairs(ours, count, 4000)) < limit((count - 1) ** 2)


@pytest.mark.parametrize("count", [64, 101])
def test_a_network_of_few_positions_puts_every_value_everywhere(network: None, count: int) -> None:
    assert chi_square(pairs(ours, count, 4000)) < limit((count - 1) ** 2)


@pytest.mark.parametrize("shuffle", [ours, torchs])
def test_values_of_a_large_order_lie_everywhere(shuffle: Shuffle) -> None:
    """Hundredths of the values by hundredths of the positions, over many keys."""
    count = 10_000
    found = np.zeros((100, 100), dtype=np.int64)
    for key in range(50):
        np.add.at(found, (np.arange(count) // 100, shuffle(count, key) // 100), 1)
    assert chi_square(found) < limit(99 * 99)


@pytest.mark.parametrize("shuffle", [ours, torchs])
@pytest.mark.parametrize("count", [1000, 10_000, 65_536])
@pytest.mark.parametrize("apart", [1, 2, 64, 256])
def test_values_of_neighbours_have_nothing_to_do_with_each_other(count: int, apart: int, shuffle: Shuffle) -> None:
    """Quarters of one value by quarters of the next, their products, and how often the next is the successor."""
    keys = 30
    quarters, product, successors = np.zeros((4, 4), dtype=np.int64), 0.0, 0
    for key in range(keys):
        order = shuffle(count, key)
        one, next_ = order[:-apart], order[apart:]
        np.add.at(quarters, (one * 4 // count, next_ * 4 // count), 1)
        middle = (count - 1) / 2
        product += float(((one - middle) * (next_ - middle)).sum())
        successors += int((next_ - one == 1).sum())
    drawn = keys * (count - apart)
    assert chi_square(quarters) < limit(15)
    correlation = product / drawn / ((count**2 - 1) / 12)
    assert abs(correlation) < 4 / math.sqrt(drawn) + 1 / count
    expected = drawn / count
    assert abs(successors - expected) < 4 * math.sqrt(expected)


def test_close_keys_give_orders_that_have_nothing_in_common() -> None:
    for count in (1000, 10_000):
        equal = [int((ours(count, key) == ours(count, key + 1)).sum()) for key in range(100)]
        assert abs(sum(equal) - 100) < 40  # one is expected of each pair of orders


@pytest.mark.parametrize(
    "count, key, expected",
    [
        (10, 0, [2, 4, 6, 8, 5, 1]),
        (1437, 266371558287364527, [404, 1301, 642, 1046, 1108, 726]),
        (5000, 266371558287364527, [3537, 3882, 2286, 4404, 660, 2511]),
        (10**10, 2**64 - 1, [879393342, 6139445061, 1307797403, 4604864773, 3937588130, 4564670797]),
        (
            2**62,
            1,
            [
                3988310756450517032,
                1535694611565792462,
                1200688704369870468,
                213040722741186262,
                771610890003619602,
                4501843608149000459,
            ],
        ),
    ],
)
def test_the_function_is_the_one_that_runs_were_begun_with(count: int, key: int, expected: list[int]) -> None:
    """A change of any value would let runs resume in another order: a new function gets a new name instead."""
    assert permuted(np.arange(min(count, 6)), count=count, key=key).tolist() == expected


def test_the_whole_orders_are_those_that_runs_were_begun_with() -> None:
    found = hashlib.sha256()
    for count in (LISTED, LISTED + 1, 100_000):
        found.update(ours(count, key=5).astype("<i8").tobytes())
    assert found.hexdigest() == "0567f81d082d008ba1d1cc99248cc14268ba67f67d700cae3b482a510403f0e1"
