"""The digest by which data are told apart."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from savepoint.data import fingerprint

SOURCE = Path(fingerprint.__file__).parents[2]


class Image:
    pass


DIFFERENT: list[Any] = [
    torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.tensor([[0.0, 0, 0], [0, 0, -0.0]]),
    torch.tensor(0.0), torch.tensor([0.0]), torch.tensor(0j), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(0),
    torch.eye(3).to_sparse(), torch.full((2,), torch.nan),
    np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), np.float32(0), np.array("a"), np.zeros(1, ">f4"),
    0, 1, 0.0, -0.0, float("nan"), False, None, "", "0", b"", b"0", 0j, "\udcff",
    [], [0], [0, 0], [[0], 0], [0, [0]], {}, {"a": 0}, {"a": 1}, {"b": 0}, {0: "a"}, {"a": 0, "b": 1}, Image, Image(),
]  # fmt: skip


def test_what_differs_in_any_way_has_another_digest() -> None:
    digests = [fingerprint.digest_of(value) for value in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert digests == [fingerprint.digest_of(value) for value in DIFFERENT]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.eye(2)[:, [1, 0]].T, torch.eye(2)[[1, 0]]),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (torch.tensor([1j]).conj(), torch.tensor([complex(0, -1)])),
        (torch.zeros(6)[::2], torch.zeros(3)),
        (np.zeros((4, 4))[::2], np.zeros((2, 4))),
        ((1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Image(), Image()),
    ],
    ids=["layout", "gradient", "conjugate", "strides", "array", "tuple", "mapping", "object"],
)
def test_how_it_lies_in_memory_does_not_count(one: Any, other: Any) -> None:
    assert fingerprint.digest_of(one) == fingerprint.digest_of(other)


def test_another_process_finds_the_same_digest() -> None:
    code = "from savepoint.data import digest_of; print(digest_of([{'a': 1.5}, {'x', 'y'}]))"
    told = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True).stdout
    assert told.strip() == fingerprint.digest_of([{"a": 1.5}, {"x", "y"}])


@pytest.mark.parametrize("count", [*range(40), 1000, 1024, 1437])
def test_the_order_visits_each_once(count: int) -> None:
    assert sorted(fingerprint.spread(count)) == list(range(count))


def test_the_first_few_lie_far_apart() -> None:
    for few in (3, 10, 50):
        places = sorted(list(fingerprint.spread(1000))[:few])
        gaps = [b - a for a, b in zip(places, [*places[1:], places[0] + 1000])]
        assert max(gaps) <= 3 * 1000 / few
