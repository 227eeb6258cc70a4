"""`split` and `join` are inverses, exactly."""

import json
import math
import random
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from trees import same, trees

from savepoint import tensorfile
from savepoint.tensorfile import DTYPES
from savepoint.tree import MAX_DEPTH, TreeError, join, split


def through_disk(path: Path, tree: Any) -> Any:
    """What a checkpoint does to a tree: a tensor file and strict JSON."""
    tensors, values = split(tree)
    path.unlink(missing_ok=True)
    tensorfile.write(path, tensors, {})
    text = json.dumps(values, allow_nan=False)
    back, _ = tensorfile.read(bytearray(path.read_bytes()), name="file")
    return join(back, json.loads(text))


@settings(max_examples=500, deadline=None)
@given(tree=trees())
def test_any_tree_comes_back_from_the_disk_as_it_was(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert same(through_disk(tmp_path_factory.getbasetemp() / "tree", tree), tree)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(tree=trees())
def test_any_of_thousands_of_trees_comes_back_from_the_disk_as_it_was(
    tree: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert same(through_disk(tmp_path_factory.getbasetemp() / "tree", tree), tree)


@pytest.mark.parametrize(
    "tree",
    [
        {0: {"step": 1}, 1: {}},
        {"milestones": Counter({30: 1, 80: 2})},
        {"a": {1: "int", "1": "text", True and 2: "two"}},
        {True: 1, 2: 2},
        {(0, "a"): 1, None: 2, 1.5: 3, b"x": 4},
        {"$tensor": "not a tag"},
        {"": {"": ""}},
        OrderedDict([("b", 1), ("a", 2)]),
        OrderedDict(),
        Counter(),
        (),
        [(), [], {}, ((1,), [2])],
        [-0.0, 0.0, math.nan, math.inf, -math.inf, 5e-324, 0.1],
        [2**53 - 1, 2**53, -(2**53), 2**128 + 1],
        [1, 1.0, True, None, "1", b"1"],
        random.Random(3).getstate(),
        np.random.RandomState(3).get_state(legacy=False),
        np.random.Generator(np.random.PCG64(3)).bit_generator.state,
        np.random.Generator(np.random.Philox(3)).bit_generator.state,
    ],
    ids=lambda tree: repr(tree)[:40],
)
def test_what_training_state_is_made_of_comes_back_as_it_was(tmp_path: Path, tree: Any) -> None:
    assert same(through_disk(tmp_path / "tree", tree), tree)


def test_every_bit_of_every_dtype_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (4, 3, dtype.itemsize), dtype=torch.uint8)
        tree[name] = [raw.view(dtype).squeeze(-1), raw.view(dtype)[0, 0, 0].clone(), torch.empty(0, dtype=dtype)]
    assert same(through_disk(tmp_path / "tree", tree), tree)


def test_a_numpy_array_without_dimensions_keeps_none(tmp_path: Path) -> None:
    back = through_disk(tmp_path / "tree", np.array(1.5))
    assert back.shape == () and back == 1.5


def test_strided_and_read_only_numpy_arrays_keep_their_values(tmp_path: Path) -> None:
    grid = np.arange(12.0).reshape(3, 4)
    fixed = grid.copy()
    fixed.flags.writeable = False
    back = through_disk(tmp_path / "tree", [grid.T, grid[::-1, ::2], np.broadcast_to(grid[0], (2, 4)), fixed])
    for a, b in zip(back, [grid.T, grid[::-1, ::2], np.broadcast_to(grid[0], (2, 4)), fixed], strict=True):
        assert np.array_equal(a, b)


def test_one_tensor_twice_is_one_tensor_twice_again(tmp_path: Path) -> None:
    """A learning rate that is a tensor is shared by the parameter groups."""
    rate = torch.tensor(0.1)
    back = through_disk(tmp_path / "tree", [{"lr": rate}, {"lr": rate}, {"lr": torch.tensor(0.1)}])
    assert back[0]["lr"] is back[1]["lr"]
    back[0]["lr"].fill_(5.0)
    assert back[2]["lr"].item() == torch.tensor(0.1).item()


def test_views_of_one_memory_share_it_again(tmp_path: Path) -> None:
    memory = torch.arange(24.0)
    views = [memory[2:14].reshape(3, 4), memory[4:20:3], memory[8:16].view(torch.int64), memory.reshape(4, 6).t()]
    back = through_disk(tmp_path / "tree", {"views": views, "other": torch.zeros(3)})
    assert same(back["views"], views)
    back["views"][0][1, 1] = -1.0  # element 7 of the memory, and so the second of the second view
    memory[7] = -1.0
    assert same(back["views"], views)


def test_a_tensor_of_the_tree_and_a_view_of_it_share_memory_again(tmp_path: Path) -> None:
    whole = torch.zeros(4)
    back = through_disk(tmp_path / "tree", {"whole": whole, "half": whole[2:]})
    back["whole"][3] = 9.0
    assert back["half"].tolist() == [0.0, 9.0]


def test_tensors_of_different_memory_do_not_share_it(tmp_path: Path) -> None:
    back = through_disk(tmp_path / "tree", [torch.zeros(2), torch.zeros(2)])
    back[0][0] = 1.0
    assert back[1].tolist() == [0.0, 0.0]


def test_shared_memory_is_written_once() -> None:
    memory = torch.zeros(1000)
    tensors, _ = split([memory, memory, memory[:500], memory[500:]])
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == 4000


def test_tensors_without_elements_share_no_memory() -> None:
    _, values = split([torch.empty(0), torch.empty(0)])
    assert [list(value) for value in values] == [["$tensor"], ["$tensor"]]


def test_a_small_part_of_a_large_memory_is_written_alone() -> None:
    tensors, _ = split([torch.zeros(1000)[5:7]])
    assert [tensor.numel() for tensor in tensors.values()] == [2]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3, 1, 1).to(memory_format=torch.channels_last),
        torch.ones(1).as_strided((1, 1), (0, 5)),
        torch.arange(6).reshape(2, 3).t(),
        torch.arange(6)[1::2],
        torch.tensor([1.0]).expand(3, 4),
    ],
    ids=["channels_last", "channels_last of one pixel", "sizes of 1", "transposed", "stepped", "expanded"],
)
def test_strides_come_back(tmp_path: Path, tensor: Tensor) -> None:
    back = through_disk(tmp_path / "tree", {"a": tensor})["a"]
    assert back.stride() == tensor.stride() and torch.equal(back, tensor)


def test_lazy_conjugates_come_back_as_the_numbers_that_they_show(tmp_path: Path) -> None:
    numbers = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6 + 0j]])
    tree = [numbers, numbers.conj(), numbers.conj().t(), numbers.conj().imag]
    back = through_disk(tmp_path / "tree", tree)
    assert [b.tolist() for b in back] == [t.tolist() for t in tree]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_parameter_comes_back_as_one_and_learns_as_before(tmp_path: Path, requires_grad: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=requires_grad)
    back = through_disk(tmp_path / "tree", [parameter, torch.ones(2, requires_grad=requires_grad)])
    assert [type(each) for each in back] == [torch.nn.Parameter, Tensor]
    assert [each.requires_grad for each in back] == [requires_grad] * 2


def test_what_looks_into_the_memory_of_a_parameter_requires_no_gradient(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    back = through_disk(tmp_path / "tree", [parameter, parameter.detach(), parameter.detach()[1:]])
    assert [each.requires_grad for each in back] == [True, False, False]
    back[1][1] = 5.0
    assert back[0].tolist() == [1.0, 5.0] and back[2].item() == 5.0


def test_a_tensor_in_a_graph_is_refused_by_its_path() -> None:
    with pytest.raises(TreeError, match=r"^a/0: cannot save a tensor that is part of a graph"):
        split({"a": [torch.ones(2, requires_grad=True) * 2]})


def test_split_leaves_the_tree_alone() -> None:
    tree = {"a": [torch.ones(2), (1, 2.0)], 3: Counter({1: 2})}
    kept = tree["a"][0]
    _, values = split(tree)
    json.dumps(values, allow_nan=False)
    assert tree["a"][0] is kept and same(tree, {"a": [torch.ones(2), (1, 2.0)], 3: Counter({1: 2})})


def test_values_are_strict_json() -> None:
    _, values = split([math.nan, math.inf, -math.inf, 2**70, b"\xff", (1,), {1: 2}])
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values[:4] == [{"$float": "nan"}, {"$float": "inf"}, {"$float": "-inf"}, {"$int": str(2**70)}]


def test_integers_that_a_double_cannot_hold_are_text() -> None:
    _, values = split([2**53 - 1, 2**53, -(2**53)])
    assert values == [2**53 - 1, {"$int": str(2**53)}, {"$int": str(-(2**53))}]


def test_tensors_are_named_by_their_path_and_uniquely() -> None:
    tree = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), "o": {1: torch.zeros(2), "1": torch.ones(2)}}
    tensors, values = split(tree)
    assert set(tensors) == {"a/b", "a%2Fb", "o/1", "o/1~2"}
    assert same(join(tensors, values), tree)


class Rate(float):
    pass


class Name(str):
    __slots__ = ()


class Count(int):
    pass


class State(dict):  # type: ignore[type-arg]
    pass


circle: list[Any] = []
circle.append([circle, circle, circle])
deep: Any = 0
for _ in range(MAX_DEPTH + 1):
    deep = [deep]


@pytest.mark.parametrize(
    "value",
    [
        Rate(1.0),
        Name("a"),
        Count(1),
        State(),
        defaultdict(int),
        {1, 2},
        frozenset(),
        object(),
        Fraction(1, 2),
        lambda: None,
        int,
        range(3),
        bytearray(b"a"),
        torch.float32,
        torch.device("cpu"),
        torch.Size([1]),
        torch.zeros(2).to_mkldnn(),
        torch.empty(2, device="meta"),
        np.zeros(2, dtype=">f4"),
        np.array(["text"]),
        np.array([None]),
        np.array([1], dtype="datetime64[s]"),
        np.datetime64(1, "s"),
        np.float128(1.0),
        {("a", Rate(1.0)): 1},
        {frozenset(): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_come_back_is_refused_by_its_path(value: Any) -> None:
    with pytest.raises(TreeError, match=r"^optimizer/state/0/odd"):
        split({"optimizer": {"state": {0: {"fine": 1, "odd": value}}}})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused_by_their_path() -> None:
    with pytest.raises(TreeError, match=r"^a/1: cannot save a nested tensor"):
        split({"a": [1, torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])]})


@pytest.mark.parametrize("value", [circle, deep], ids=["circle", "deep"])
def test_circles_and_bottomless_trees_are_refused_by_their_path(value: Any) -> None:
    with pytest.raises(TreeError, match=r"^a/0/0/0/…: nested more than"):
        split({"a": value})


def test_a_tree_of_the_greatest_depth_comes_back(tmp_path: Path) -> None:
    tree = deep[0]
    assert same(through_disk(tmp_path / "tree", tree), tree)


def nested(tag: str, depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = {tag: [value]} if tag in ("$tuple", "plain") else {tag: [[value, 1]]}
    return value


FOUR = {"m": torch.zeros(16, dtype=torch.uint8)}


@pytest.mark.parametrize(
    "values",
    [
        {"$tensor": "missing"},
        {"$tensor": ["m"]},
        {"$array": "missing"},
        {"$array": "bf16"},
        {"$unknown": 1},
        {"$": 1},
        {"$int": "one"},
        {"$int": None},
        {"$int": "9" * 5000},
        {"$float": "1.0"},
        {"$float": []},
        {"$bytes": "xyz"},
        {"$bytes": 5},
        {"$tuple": 5},
        {"$dict": 5},
        {"$dict": [["one"]]},
        {"$dict": [[["a list"], 1]]},
        {"$view": ["m", "F32", [5], [1], 0]},
        {"$view": ["m", "F32", [4], [1], 1]},
        {"$view": ["m", "F32", [2, 2], [4, 1], 0]},
        {"$view": ["m", "F32", [2], [-1], 3]},
        {"$view": ["m", "F32", [-1], [1], 0]},
        {"$view": ["m", "F32", [1], [1], -1]},
        {"$view": ["m", "F32", [2**62], [1], 0]},
        {"$view": ["m", "F32", [2**70], [1], 0]},
        {"$view": ["m", "F32", [1], [1, 1], 0]},
        {"$view": ["m", "F32", [1.0], [1], 0]},
        {"$view": ["m", "F4", [1], [1], 0]},
        {"$view": ["empty", "F32", [1000], [1], 0]},
        {"$view": ["m"]},
        {"$view": "m"},
        nested("$tuple", 400),
        nested("$dict", 400),
        nested("$counter", 400),
        nested("plain", 100),
    ],
    ids=lambda values: next(iter(values)),
)
def test_join_refuses_what_split_never_writes(values: Any) -> None:
    tensors = FOUR | {"empty": torch.empty(0, dtype=torch.uint8), "bf16": torch.zeros(1, dtype=torch.bfloat16)}
    with pytest.raises(TreeError):
        join(tensors, {"a": values})


def test_a_tag_that_cannot_be_read_is_named_by_its_path() -> None:
    with pytest.raises(TreeError, match=r"^optimizer/0: \$tensor cannot be read"):
        join({}, {"optimizer": [{"$tensor": "missing"}]})


def test_a_view_that_fills_its_memory_is_read() -> None:
    assert join(FOUR, {"$view": ["m", "F32", [2, 2], [2, 1], 0]}).tolist() == [[0.0, 0.0], [0.0, 0.0]]
