"""Trees of whatever state can hold, for hypothesis, and what it is for two of them to be the same."""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from types import FunctionType
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from savepoint.checkpoint import encoding

MEMORY = 64  # bytes of each memory that views look into
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_SPARSE = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64, torch.complex128, torch.bool)


def bits(tensor: Tensor) -> Any:
    """A tensor's own bytes as they lie in memory, whatever its dtype, its strides and its lazy flags."""
    if tensor.layout is not torch.strided:
        return [bits(part) for part in encoding.parts(tensor)]
    place = tensor.storage_offset() * tensor.element_size()
    strides = [step * tensor.element_size() for step in tensor.stride()]
    memory = torch.empty(0, dtype=torch.uint8).set_(
        tensor.untyped_storage(), place, [*tensor.shape, tensor.element_size()], [*strides, 1]
    )
    return memory.contiguous().numpy().tobytes()


def same(a: Any, b: Any) -> bool:
    """Equal in type, order, sign of zero and bits, all the way down; the same memory shared in the same way."""
    return _equal(a, b) and _sharing(a) == _sharing(b)


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return _nature(a) == _nature(b) and bits(a) == bits(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(_equal(k, m) and _equal(v, w) for (k, v), (m, w) in zip(a.items(), b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float | complex):
        return repr(a) == repr(b)  # tells -0.0 from 0.0, and takes one NaN for another
    return bool(a == b)


def _nature(tensor: Tensor) -> list[Any]:
    nature = [tensor.dtype, tensor.shape, tensor.layout, tensor.requires_grad, tensor.is_leaf]
    if tensor.layout is torch.strided:
        return [*nature, tensor.is_conj(), tensor.is_neg(), tensor.stride() if tensor.numel() else ()]
    parts = [_nature(part) for part in encoding.parts(tensor.detach())]
    return [*nature, parts, tensor.layout is torch.sparse_coo and tensor.is_coalesced()]


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [leaf for value in inside for leaf in _leaves(value)]


def _one(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one object, or as good as one: the same look into the same memory."""
    if a is b:
        return True
    places = [
        [(part.untyped_storage().data_ptr(), part.storage_offset()) for part in encoding.parts(each.detach())]
        for each in (a, b)
    ]
    return places[0] == places[1] and all(address for address, _ in places[0]) and _nature(a) == _nature(b)


def _sharing(tree: Any) -> list[Any]:
    """Of every two tensors: whether they are one, and how far apart they begin in one memory."""
    leaves = _leaves(tree)
    dense = [part for leaf in leaves for part in encoding.parts(leaf.detach()) if part.numel()]
    apart = [
        a.data_ptr() - b.data_ptr() if a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() else None
        for a, b in combinations(dense, 2)
    ]
    return [apart, [_one(a, b) for a, b in combinations(leaves, 2)]]


@dataclass(frozen=True)
class Pool:
    """What several tensors of a tree have in common: memory to look into, and whole tensors that stand in it again."""

    memories: list[Tensor]
    again: list[Tensor]


Later = Callable[[Pool], Tensor]  # a tensor of a tree, made once its pool is there


def _dense(draw: st.DrawFn, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count))
    return (
        _memory(raw, 1 if dtype is torch.bool else 255).view(dtype).view(shape)
        if count
        else torch.empty(shape, dtype=dtype)
    )


def _memory(raw: bytes, only: int) -> Tensor:
    return torch.frombuffer(bytearray(byte & only for byte in raw), dtype=torch.uint8).clone()


@st.composite
def _own(draw: st.DrawFn) -> Later:
    """Contiguous, in memory of its own, of any dtype, any bits: also those of NaNs."""
    tensor = _dense(draw, draw(_dtypes), draw(st.lists(st.integers(0, 3), max_size=3)))
    return lambda _: tensor


@st.composite
def _view(draw: st.DrawFn) -> Later:
    """Any strides, gaps and overlaps, into memory that other views of the tree see as well."""
    dtype = draw(_dtypes)
    which = 1 if dtype is torch.bool else draw(st.integers(0, 1))
    room = MEMORY // dtype.itemsize
    shape: list[int] = []
    stride: list[int] = []
    last = 0
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(0, 3))
        shape.append(size)
        stride.append(draw(st.integers(0, (room - 1 - last) // max(1, size - 1))))
        last += max(0, size - 1) * stride[-1]
    offset = draw(st.integers(0, room - 1 - last))
    return lambda pool: torch.empty(0, dtype=dtype).set_(pool.memories[which].untyped_storage(), offset, shape, stride)


@st.composite
def _sparse(draw: st.DrawFn) -> Later:
    dtype = draw(st.sampled_from(_SPARSE))
    if draw(st.booleans()):  # as indices and values, so that an index may stand there twice
        count, inner = draw(st.integers(0, 4)), draw(st.lists(st.integers(0, 2), max_size=1))
        places = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=count, max_size=count))
        where = torch.tensor(places, dtype=torch.int64).reshape(count, 2).t().contiguous()
        tensor = torch.sparse_coo_tensor(where, _dense(draw, dtype, [count, *inner]), [3, 4, *inner])
        return lambda _: tensor
    kept = _dense(draw, torch.bool, [4, 6])
    dense = torch.where(kept, torch.arange(1, 25).reshape(4, 6), 0).to(dtype)
    blocks = {torch.sparse_bsr: (2, 3), torch.sparse_bsc: (2, 3)}
    layout = draw(st.sampled_from([torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, *blocks]))
    return lambda _: dense.to_sparse(layout=layout, blocksize=blocks.get(layout))


@st.composite
def _marked(draw: st.DrawFn, inner: st.SearchStrategy[Later]) -> Later:
    """Lazily conjugated or negated, a leaf that learns, a parameter."""
    make, conj, neg, learns, parameter = draw(inner), *(draw(st.booleans()) for _ in range(4))

    def made(pool: Pool) -> Tensor:
        tensor = make(pool)
        strided, numbers = tensor.layout is torch.strided, tensor.dtype in (*_FLOATS, *_COMPLEX)
        if conj and strided and tensor.dtype in _COMPLEX:
            tensor = tensor.conj()
        if neg and strided and numbers:
            tensor = torch._neg_view(tensor)
        if parameter and (strided or tensor.layout is torch.sparse_coo):
            return torch.nn.Parameter(tensor, requires_grad=learns and numbers)
        return tensor.detach().requires_grad_() if learns and numbers else tensor

    return made


_dtypes = st.sampled_from(list(encoding.DTYPES.values()))
_plain = st.one_of(_own(), _view(), _sparse())
_tensors = st.one_of(_plain, _marked(_plain))
_again: st.SearchStrategy[Later] = st.integers(0, 1).map(lambda number: lambda pool: pool.again[number])
_NUMPY = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]
_arrays = st.builds(
    lambda dtype, shape: np.arange(math.prod(shape)).astype(dtype).reshape(shape),
    st.sampled_from(_NUMPY),
    st.lists(st.integers(0, 3), max_size=3),
)
_numpy_numbers = st.builds(
    lambda dtype, number: np.dtype(dtype).type(number), st.sampled_from(_NUMPY), st.integers(0, 99)
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**130), 2**130),
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.complex_numbers(),
    st.sampled_from([-0.0, 0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308, 2**53, -(2**53), 2**53 - 1]),
    st.sampled_from([complex(-0.0, 0.0), complex(0.0, -0.0), complex(math.inf, math.nan)]),
    st.text(),
    st.sampled_from(["$tensor", "$", "\ud800", "", "a/b", "~2", "__metadata__", "..", "\0"]),
    st.binary(max_size=8),
    _numpy_numbers,
)
_texts = st.one_of(st.text(max_size=3), st.sampled_from(["__metadata__", "..", ".", "", "/", "\\", "%", "a/b", "\0"]))
_keys = st.one_of(
    _texts,
    st.sampled_from(["$tensor", "$dict", "a", "1", "(key)", "(memory)", "(root)"]),
    st.integers(-3, 3),
    st.integers(2**60, 2**70),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.binary(max_size=2),
    st.tuples(st.integers(0, 2), st.text(max_size=1)),
)


# Functions, since hypothesis prints the strategies of a failure, and whole ones fill screens.
@st.composite
def _leaf(draw: st.DrawFn) -> Any:
    return draw(st.one_of(_scalars, _tensors, _again, _arrays))


@st.composite
def _key(draw: st.DrawFn) -> Any:
    return draw(_keys)


_plans = st.recursive(
    _leaf(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_texts, inner, max_size=4),
        st.dictionaries(_key(), inner, max_size=4),
        st.dictionaries(_key(), inner, max_size=4).map(OrderedDict),
        st.dictionaries(_key(), st.integers(), max_size=4).map(Counter),
    ),
    max_leaves=12,
)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    raw = st.binary(min_size=MEMORY, max_size=MEMORY)
    # The second holds what a bool may: 0 and 1.
    pool = Pool([_memory(draw(raw), 255), _memory(draw(raw), 1)], [])
    pool.again.extend(draw(_tensors)(pool) for _ in range(2))
    return _made(draw(_plans), pool)


def _made(plan: Any, pool: Pool) -> Any:
    if isinstance(plan, dict):
        return type(plan)({key: _made(value, pool) for key, value in plan.items()})
    if isinstance(plan, list | tuple):
        return type(plan)(_made(value, pool) for value in plan)
    return plan(pool) if isinstance(plan, FunctionType) else plan
