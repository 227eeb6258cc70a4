"""Shuffle any number of positions without a list of them: evaluate a keyed permutation where it is asked.

More than LISTED positions: a Feistel network with cycle walking. A position is a pair of digits, and each round adds to
one digit a hash of the other, modulo the digit's size. The pairs are a few more than the positions, so a value that is
no position goes through the network again until it is one.
Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", method 3 (generalised Feistel, cycle walking).

Up to LISTED positions, a network of so few values would favour some permutations. They are sorted by hashes that all
differ, which makes every permutation equally likely.

The hash is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators").
All arithmetic is on integers, so the values are the same on every machine and with every version of NumPy.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from savepoint import system

LISTED = 4096
MOST = 2**62  # positions; a digit then has 31 bits
ROUNDS = 8  # an even number: both digits get as many
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's step between two inputs of the hash; odd, so that all inputs differ

Integers = NDArray[Any]


def permuted(positions: Integers, *, count: int, key: int) -> Integers:
    """Return the values that a permutation of range(count) has at some positions.

    positions: integers from 0 to count - 1, of any shape. count: 1 to MOST. key: 0 to 2**64 - 1, chooses the
    permutation.

    >>> permuted(np.arange(5), count=5, key=7).tolist()
    [1, 0, 4, 3, 2]
    """
    assert 1 <= count <= MOST, f"{count} positions"
    if count <= LISTED:
        inputs = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key)
        return np.argsort(_hashed(inputs))[positions]
    size = math.isqrt(count - 1) + 1
    sizes = (size, -(-count // size))
    keys = [np.uint64(system.rng.fold_in(key, "round", number)) for number in range(ROUNDS)]
    values = _network(positions.astype(np.uint64), sizes, keys)
    while (outside := np.flatnonzero(values >= count)).size:
        values.flat[outside] = _network(values.flat[outside], sizes, keys)
    return values.astype(np.int64)


def _network(values: Integers, sizes: tuple[int, int], keys: list[np.uint64]) -> Integers:
    """Permute the numbers below the product of both sizes."""
    low, high = (np.uint64(size) for size in sizes)
    upper, lower = np.divmod(values, low)
    for one, other in zip(keys[::2], keys[1::2], strict=True):
        lower = _shifted(lower, upper + one, low)
        upper = _shifted(upper, lower + other, high)
    return upper * low + lower


def _shifted(digits: Integers, inputs: Integers, size: np.uint64) -> Integers:
    """Add to each digit a number from 0 to size - 1 that depends on the input, modulo the size."""
    draws = (_hashed(inputs) >> np.uint64(32)) * size >> np.uint64(32)
    digits = digits + draws
    # Where a digit is below the size, subtracting wraps around to a huge number.
    shifted: Integers = np.minimum(digits, digits - size)
    return shifted


def _hashed(values: Integers) -> Integers:
    """Hash each number of 64 bits. Different numbers have different hashes."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
