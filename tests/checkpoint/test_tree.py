"""`split` and `join` are inverses, exactly."""

import functools
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
from tools import tensorfiles
from tools.trees import same, trees
from torch import Tensor

from savepoint.checkpoint.encoding import DTYPES
from savepoint.checkpoint.tree import MAX_DEPTH, TreeError, join, split


def through_disk(path: Path, tree: Any) -> Any:
    """What a checkpoint does to a tree: a tensor file and strict JSON."""
    tensors, values = split(tree)
    path.unlink(missing_ok=True)
    tensorfiles.write(path, tensors, {})
    text = json.dumps(values, allow_nan=False)
    back, _ = tensorfiles.read(bytearray(path.read_bytes()), name="file")
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
        [complex(-0.0, math.inf), complex(math.nan, 1.5)],
        [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1 - 2j)],
        {"__metadata__": torch.ones(1)},
        torch.ones(1),
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
        tree[name] = [raw.view(dtype).squeeze(-1), raw[0, 0].clone().view(dtype)[0], torch.empty(0, dtype=dtype)]
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


def test_an_array_keeps_the_order_in_which_it_lies(tmp_path: Path) -> None:
    back = through_disk(tmp_path / "tree", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert back.strides == (8, 16) and back.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_an_array_is_read_as_the_first_checkpoints_had_it() -> None:
    array = join({"m": torch.arange(3)}, {"$array": "m"})
    assert type(array) is np.ndarray and array.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0),
        torch.arange(6)[::2],
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, requires_grad=True),
        torch.ones(2).to_sparse(),
    ],
    ids=["empty", "view", "parameter", "leaf", "sparse"],
)
def test_any_tensor_twice_is_one_tensor_twice_again(tmp_path: Path, tensor: Tensor) -> None:
    back = through_disk(tmp_path / "tree", [tensor, tensor])
    assert back[0] is back[1]


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


def test_the_parts_of_a_sparse_tensor_share_memory_again(tmp_path: Path) -> None:
    where, numbers = torch.tensor([[0, 2]]), torch.tensor([1.0, 2.0])
    tree = {"sparse": torch.sparse_coo_tensor(where, numbers, (3,)), "where": where[:, 1:], "numbers": numbers[1:]}
    back = through_disk(tmp_path / "tree", tree)
    assert same(back, tree)
    back["where"][0, 0], back["numbers"][0] = 1, 9.0
    assert back["sparse"].to_dense().tolist() == [1.0, 9.0, 0.0]


def test_memory_is_looked_into_from_where_it_begins() -> None:
    """Also where it does not come from a file, but is the middle of other memory."""
    tree = [torch.arange(start, start + 20)[start::2] for start in (1, 8, 16)]
    assert same(join(*split(tree)), tree)


def test_what_looks_into_bytes_of_a_file_lies_where_numbers_of_its_size_may_lie(tmp_path: Path) -> None:
    for count in range(0, 64, 4):
        tree = {"a": torch.zeros(count, dtype=torch.uint8), "b": torch.ones(6, dtype=torch.complex128)[::2]}
        back = through_disk(tmp_path / "tree", tree)
        assert same(back, tree) and back["b"].data_ptr() % 64 == 0


def test_a_view_is_no_copy_of_its_memory() -> None:
    assert join(FOUR, {"$view": ["m", "F32", [2], [2], 0]}).data_ptr() == FOUR["m"].data_ptr()


def test_shared_memory_is_written_once() -> None:
    memory = torch.zeros(1000)
    tensors, _ = split([memory, memory, memory[:500], memory[500:]])
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == 4000


def test_tensors_without_elements_share_no_memory() -> None:
    _, values = split([torch.empty(0), torch.empty(0), torch.empty(2, 0, 3)])
    assert [list(value) for value in values] == [["$tensor"]] * 3


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
        torch.zeros(3, 1000)[:, :0],
        torch.empty(0, 0, dtype=torch.complex128),
    ],
    ids=[
        "channels_last",
        "channels_last of one pixel",
        "sizes of 1",
        "transposed",
        "stepped",
        "expanded",
        "no columns",
        "empty",
    ],
)
def test_strides_come_back(tmp_path: Path, tensor: Tensor) -> None:
    back = through_disk(tmp_path / "tree", {"a": tensor})["a"]
    assert back.stride() == tensor.stride() and torch.equal(back, tensor)


def test_lazy_conjugates_come_back_as_the_numbers_that_they_show(tmp_path: Path) -> None:
    numbers = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6 + 0j]])
    tree = [numbers, numbers.conj(), numbers.conj().t(), numbers.conj().imag]
    back = through_disk(tmp_path / "tree", tree)
    assert [b.tolist() for b in back] == [t.tolist() for t in tree]


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_sparse_tensors_come_back(tmp_path: Path, layout: str) -> None:
    dense = torch.arange(24.0).reshape(4, 6) * (torch.arange(6) % 2)
    blocks = (2, 3) if layout.startswith("bs") else None
    tree = {"a": dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"), blocksize=blocks)}
    assert same(through_disk(tmp_path / "tree", tree), tree)
    _, values = split(tree)
    node = values["a"]["$sparse"]
    assert (node["layout"], node["shape"], node["coalesced"]) == (layout, [4, 6], True if layout == "coo" else None)


def test_a_sparse_tensor_is_coalesced_again_if_it_was(tmp_path: Path) -> None:
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, 3.0]), (4,))
    back = through_disk(tmp_path / "tree", [twice, twice.coalesce()])
    assert [each.is_coalesced() for each in back] == [False, True]
    assert [each._values().tolist() for each in back] == [[2.0, 3.0], [5.0]]


def test_a_sparse_tensor_that_learns_comes_back(tmp_path: Path) -> None:
    tree = [torch.ones(2).to_sparse().requires_grad_(), torch.nn.Parameter(torch.ones(2).to_sparse())]
    back = through_disk(tmp_path / "tree", tree)
    assert same(back, tree) and all(each.requires_grad and each.is_leaf for each in back)


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


def test_what_looks_into_the_memory_of_a_leaf_requires_no_gradient(tmp_path: Path) -> None:
    leaf = torch.ones(2, requires_grad=True)
    back = through_disk(tmp_path / "tree", [leaf.detach(), leaf])
    assert [each.requires_grad for each in back] == [False, True]


def test_what_split_gives_requires_no_gradient() -> None:
    tensors, _ = split([torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2, 2).t())])
    assert [tensor.requires_grad for tensor in tensors.values()] == [False, False]


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


@pytest.mark.parametrize(
    "part, name",
    [
        ("a b~1", "a b~1"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("a%", "a%25"),
        ("a\\b", "a%5Cb"),
        ("\n\x7f", "%0A%7F"),
        ("\u00e9", "%C3%A9"),
        ("\ud800", "%ED%A0%80"),
    ],
)  # fmt: skip
def test_a_part_of_a_path_is_named_in_printable_ascii_and_leads_nowhere(part: str, name: str) -> None:
    tensors, _ = split({"o": {part: torch.zeros(1)}})
    assert list(tensors) == [f"o/{name}"]


def test_the_parts_of_a_tensor_are_named_after_it() -> None:
    tensors, _ = split(
        {"view": torch.ones(2, 2).t(), "coo": torch.ones(2).to_sparse(), "csr": torch.ones(2, 2).to_sparse_csr()}
    )
    assert set(tensors) == {
        "view/(memory)", "coo/(indices 0)", "coo/(values)", "csr/(indices 0)", "csr/(indices 1)", "csr/(values)"
    }  # fmt: skip


def test_a_tree_that_is_a_single_value_has_a_name_too() -> None:
    assert list(split(torch.ones(1))[0]) == ["(root)"]
    with pytest.raises(TreeError, match=r"^\(root\): cannot save"):
        split({1, 2})


class Rate(float):
    pass


class Name(str):
    __slots__ = ()


class Count(int):
    pass


class State(dict):  # type: ignore[type-arg]
    pass


class Marked(Tensor):
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
        torch.empty(2, dtype=torch.bits8),
        torch.ones(1).as_subclass(Marked),
        np.ma.masked_array([1.0], [True]),
        [Count(1)],
        np.zeros(2, dtype=">f4"),
        np.array(["text"]),
        np.array([None]),
        np.array([1], dtype="datetime64[s]"),
        np.datetime64(1, "s"),
        np.float128(1.0),
        {("a", Rate(1.0)): 1},
        {frozenset(): 1},
        {Name("a"): 1},
        {np.float32(1): 1},
        {(1, np.float32(1)): 1},
        {torch.ones(1): 1},
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


def test_trees_are_as_deep_as_the_format_says() -> None:
    assert MAX_DEPTH == 64


def nested(tag: str, depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = {tag: [value]} if tag in ("$tuple", "plain") else {tag: [[value, 1]]}
    return value


FOUR = {"m": torch.zeros(16, dtype=torch.uint8)}


def sparse(layout: str, indices: list[str], **more: Any) -> Any:
    node = {"layout": layout, "shape": [3], "coalesced": None, "values": {"$tensor": "two"}, **more}
    return {"$sparse": node | {"indices": [{"$tensor": name} for name in indices]}}


def test_the_sparse_tensors_of_these_tests_are_read() -> None:
    assert join(SPARSE, sparse("coo", ["inside"], coalesced=False)).to_dense().tolist() == [1.0, 0.0, 1.0]
    assert join(SPARSE, sparse("csr", ["rows", "columns"], shape=[2, 3])).to_dense().tolist() == [[1, 0, 0], [0, 1, 0]]


SPARSE = {
    "two": torch.ones(2),
    "inside": torch.tensor([[0, 2]]),
    "outside": torch.tensor([[0, 9]]),
    "rows": torch.tensor([0, 1, 2]),
    "columns": torch.tensor([0, 1]),
    "beyond": torch.tensor([0, 9]),
}


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
        {"$array": {"$tensor": "m", "more": 1}},
        {"$conj": {"$tensor": "m", "more": 1}},
        {"$parameter": [{"$evil": 1}, True]},
        {"$array": {"$evil": 1}},
        {"$array": 5},
        sparse("coo", ["outside"], coalesced=False),
        sparse("coo", ["inside", "inside"], coalesced=False),
        sparse("csr", ["rows", "beyond"], shape=[2, 3]),
        sparse("csr", ["rows", "columns", "columns"], shape=[2, 3]),
        sparse("csr", ["rows"], shape=[2, 3]),
        sparse("odd", ["rows", "columns"], shape=[2, 3]),
        {"$view": ["m"]},
        {"$view": "m"},
        {"$complex": [10**400, 0]},
        {"$int": 5.7},
        {"$int": True},
        {"$dict": [["a", 1], ["a", 2]]},
        {"$ordered": [[1, 1], [True, 2]]},
        {"$counter": [["a", 1], ["a", 1]]},
        functools.reduce(lambda node, _: {"$conj": node}, range(70), {"$tensor": "m"}),
        nested("$tuple", 400),
        nested("$dict", 400),
        nested("$counter", 400),
        nested("plain", 100),
    ],
    ids=lambda values: next(iter(values)),
)
def test_join_refuses_what_split_never_writes(values: Any) -> None:
    tensors = FOUR | SPARSE | {"empty": torch.empty(0, dtype=torch.uint8), "bf16": torch.zeros(1, dtype=torch.bfloat16)}
    with pytest.raises(TreeError):
        join(tensors, {"a": values})


def test_a_tag_that_cannot_be_read_is_named_by_its_path() -> None:
    with pytest.raises(TreeError, match=r"^optimizer/0: \$tensor cannot be read"):
        join({}, {"optimizer": [{"$tensor": "missing"}]})


def test_a_view_that_fills_its_memory_is_read() -> None:
    assert join(FOUR, {"$view": ["m", "F32", [2, 2], [2, 1], 0]}).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_an_integer_beyond_what_python_writes_out_is_refused_by_its_path() -> None:
    with pytest.raises(TreeError, match=r"^a/b: cannot save an integer of 16610 bits"):
        split({"a": {"b": 10**5000}})
    with pytest.raises(TreeError, match=r"cannot save an integer of 16610 bits"):
        split({"a": {10**5000: 0}})


def test_a_tag_has_no_other_key_beside_it() -> None:
    with pytest.raises(TreeError, match=r"^a: an object with a tag has no other key"):
        join({}, {"a": {"$int": "5", "b": 1}})
