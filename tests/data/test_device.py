"""A batch moves to the device whole: whatever has `to`, wherever it lies in it."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from savepoint.data.device import ALIGNMENT, to_device


class Point(NamedTuple):
    x: Tensor
    name: str


def test_a_batch_of_any_shape_goes_to_the_device() -> None:
    batch = {"a": [torch.ones(1), (torch.ones(1), "text")], "b": Point(torch.ones(1), "p"), "c": 3}
    moved = to_device(batch, torch.device("meta"))
    assert type(moved["b"]) is Point and moved["b"].name == "p" and moved["c"] == 3 and moved["a"][1][1] == "text"
    assert all(tensor.is_meta for tensor in (moved["a"][0], moved["a"][1][0], moved["b"].x))


class Graph:
    """Like a batch of PyTorch Geometric: no container, and a `to` that knows nothing of non_blocking."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes

    def to(self, device: torch.device) -> "Graph":
        return Graph(self.nodes.to(device))


class Encoding(UserDict[str, Any]):
    """Like Hugging Face's BatchEncoding: a mapping that is no dict, with a `to` of its own."""

    def to(self, device: torch.device) -> "Encoding":
        return Encoding({key: value.to(device) for key, value in self.items()})


class Edge(NamedTuple):
    source: Tensor
    to: Tensor


class Attributes(dict[str, Any]):
    """Its keys are attributes too, one of which is named like a method."""

    __getattr__ = dict.__getitem__


@dataclass
class Record:
    nodes: Tensor


META = torch.device("meta")


@pytest.mark.parametrize(
    "batch, tensors",
    [
        (Graph(torch.ones(1)), lambda moved: [moved.nodes]),
        (Encoding(ids=torch.ones(1)), lambda moved: [moved["ids"]]),
        (UserDict(ids=torch.ones(1)), lambda moved: [moved["ids"]]),
        (OrderedDict(a=torch.ones(1)), lambda moved: [moved["a"]]),
        (defaultdict(list, a=[torch.ones(1)]), lambda moved: moved["a"] + moved["missing"]),
        (Attributes(to=torch.ones(1)), lambda moved: [moved.to]),
        (Edge(torch.ones(1), torch.ones(1)), lambda moved: [moved.source, moved.to]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_whatever_has_to_is_moved_and_keeps_its_type(batch: Any, tensors: Any) -> None:
    for whole in (batch, {"within": [(batch, 1)]}):
        moved = to_device(whole, META)
        inner = moved if whole is batch else moved["within"][0][0]
        assert type(inner) is type(batch) and inner is not batch
        assert tensors(inner) and all(tensor.is_meta for tensor in tensors(inner))
    assert not any(tensor.is_meta for tensor in tensors(batch)), "the batch itself is left alone"


def test_a_packed_sequence_is_moved_and_its_lengths_stay_where_torch_wants_them() -> None:
    packed = pack_sequence([torch.ones(2), torch.ones(3)], enforce_sorted=False)
    moved = to_device([packed], META)[0]
    assert type(moved) is PackedSequence
    assert moved.data.is_meta and moved.sorted_indices.is_meta and moved.batch_sizes.device.type == "cpu"
    same = to_device(packed, torch.device("cpu"))
    assert type(same) is PackedSequence and torch.equal(same.data, packed.data)


@pytest.mark.parametrize("other", ["text", b"bytes", 3, None, range(3), {1, 2}, Record(torch.ones(1)), str])
def test_what_cannot_be_moved_is_left_as_it_is(other: Any) -> None:
    assert to_device([other], META)[0] is other


def test_on_the_cpu_unaligned_memory_is_copied_to_aligned_and_aligned_is_left() -> None:
    """Math libraries promise equal bits for equally aligned memory, and NumPy's lies differently in every process."""
    memory = np.zeros(200, dtype=np.float32)
    offset = next(i for i in range(16) if (memory.ctypes.data + 4 * i) % ALIGNMENT)
    unaligned, aligned = torch.from_numpy(memory[offset : offset + 64]), torch.zeros(64)
    moved = to_device([unaligned, {"a": aligned}], torch.device("cpu"))
    assert moved[0].data_ptr() % ALIGNMENT == 0 and torch.equal(moved[0], unaligned)
    assert moved[1]["a"] is aligned
