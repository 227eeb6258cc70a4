"""The generators of Python, NumPy and torch: seeded, captured and restored together."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import tensorfiles

from savepoint.checkpoint import tree
from savepoint.system import rng


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


def drawn() -> list[Any]:
    """From each generator, also what it keeps aside: Python's and NumPy's second normal number."""
    return [
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(100),
        np.random.rand(),
        np.random.randn(),
        np.random.randint(2**31),
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
        torch.randint(2**60, (2,)).tolist(),
    ]


def from_each() -> dict[str, Any]:
    return {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(()).item()}


def test_restored_generators_draw_what_the_captured_ones_drew() -> None:
    rng.seed(7)
    drawn()  # an odd number of normal numbers: one is kept aside in each
    states = rng.capture()
    expected = [drawn(), drawn()]
    assert expected[0] != expected[1]
    rng.restore(states)
    assert [drawn(), drawn()] == expected


def test_a_captured_state_is_not_changed_by_drawing() -> None:
    states = rng.capture()
    first = drawn()
    rng.restore(states)
    drawn()
    rng.restore(states)
    assert drawn() == first


def test_capturing_draws_nothing() -> None:
    rng.seed(1)
    expected = drawn()
    rng.seed(1)
    rng.capture()
    assert drawn() == expected


def test_states_survive_the_disk(tmp_path: Path) -> None:
    rng.seed(2**64 - 1)
    drawn()
    tensors, values = tree.split(rng.capture())
    tensorfiles.write(tmp_path / "file", tensors, {})
    expected = drawn()
    back, _ = tensorfiles.read(bytearray((tmp_path / "file").read_bytes()), name="file")
    rng.restore(tree.join(back, json.loads(json.dumps(values, allow_nan=False))))
    assert drawn() == expected


@pytest.mark.parametrize("value", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_a_seed_decides_all_that_is_drawn(value: int) -> None:
    rng.seed(value)
    torch.randn(3), random.gauss(0, 1), np.random.randn()
    rng.seed(value)
    first = drawn()
    rng.seed(value)
    assert drawn() == first


def test_every_generator_follows_the_seed() -> None:
    rng.seed(1)
    one = from_each()
    rng.seed(2)
    two = from_each()
    assert all(one[name] != two[name] for name in one)


def test_seed_starts_torch_where_manual_seed_would() -> None:
    rng.seed(5)
    ours = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(ours, torch.rand(3))


def test_whatever_is_drawn_in_isolation_outside_nothing_was() -> None:
    rng.seed(3)
    expected = drawn()
    rng.seed(3)
    with rng.isolated():
        rng.seed(99)
        drawn()
    assert drawn() == expected


def test_isolation_ends_with_an_exception_too() -> None:
    rng.seed(3)
    expected = drawn()
    rng.seed(3)
    with pytest.raises(ZeroDivisionError), rng.isolated():
        drawn()
        1 / 0  # noqa: B018
    assert drawn() == expected


@pytest.mark.parametrize(
    "parts, value",
    [
        ((0,), 5263075011782779848),
        ((0, "train", 3, 17), 266371558287364527),
        ((2**64 - 1, "order", 0), 17944536231022707227),
    ],
)
def test_fold_in_gives_these_values_for_ever(parts: tuple[int | str, ...], value: int) -> None:
    """A checkpoint stores none of the seeds that it gives: another value would be another order of the data."""
    assert rng.fold_in(*parts) == value


def test_fold_in_is_the_same_in_every_process() -> None:
    code = "from savepoint.system import rng; print(rng.fold_in(3, 'val', 5))"
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(rng.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == rng.fold_in(3, "val", 5)


def test_fold_in_depends_on_every_part_on_their_order_and_on_their_types() -> None:
    seeds = [
        rng.fold_in(*parts)
        for parts in [(), (1,), (1, 2), (2, 1), (1, "2"), (12,), ("1", 2), (1, 2, 0), ("1, 2",), ("a", "b"), ("ab",)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
