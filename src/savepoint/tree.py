"""Nested state into (tensors, JSON) and back, exactly.

`split` takes a tree of what optimizers, schedulers and generators keep in their state, and gives named tensors for a
tensor file and a value that strict JSON holds. `join` is its inverse: types, key types, order, shared tensors, the sign
of a zero, the bits of a NaN in a tensor. What JSON has no word for is an object with one key that begins with "$":

    {"$tensor": name}                              a tensor; the same name twice is the same object twice
    {"$view": [name, dtype, shape, stride, offset]}  a tensor that shares its memory, or is not contiguous; `name` holds
                                                   the memory's bytes; offset and stride count elements
    {"$array": name}                               a NumPy array
    {"$tuple": [...]}  {"$bytes": "hex"}  {"$int": "decimal"}  {"$float": "nan" | "inf" | "-inf"}
    {"$dict": [[key, value], ...]}                 keys that are not all strings, or one that begins with "$"
    {"$ordered": [[key, value], ...]}  {"$counter": [[key, value], ...]}
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from savepoint.tensorfile import DTYPES, NAMES

MAX_DEPTH = 64
# Integers beyond it lose digits in readers that hold every number as a double.
MAX_EXACT = 2**53


class TreeError(TypeError):
    """A value that could not come back as it was. Its text begins with the value's path."""


def split(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Take a tree apart. The tensors are the tree's own memory, not copies, except for NumPy's and for views.

    Raises: TreeError, naming the path, for a type that `join` could not give back.
    """
    splitter = _Splitter(_shared_storages(tree))
    values = splitter.encode(tree, ())
    return splitter.tensors, values


def join(tensors: dict[str, Tensor], values: Any) -> Any:
    """Put a tree together from what `split` gave.

    Raises: TreeError if a tensor is missing, or an object is not one that `split` writes.
    """
    return _Joiner(tensors).decode(values, ())


def _leaves(tree: Any, seen: set[int], depth: int = 0) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif depth < MAX_DEPTH and isinstance(tree, dict | list | tuple) and id(tree) not in seen:
        seen.add(id(tree))  # once: a tree with circles in it has more ways through it than there is time
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(value, seen, depth + 1)


def _shared_storages(tree: Any) -> set[int]:
    """Addresses of the memory that two or more different tensor objects of the tree look into."""
    first: dict[int, int] = {}
    shared: set[int] = set()
    for tensor in _leaves(tree, set()):
        address = tensor.untyped_storage().data_ptr() if _plain(tensor) else 0
        if address and first.setdefault(address, id(tensor)) != id(tensor):
            shared.add(address)
    return shared


class _Splitter:
    def __init__(self, shared: set[int]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._shared = shared
        self._names: dict[int, str] = {}  # id of a tensor -> its name
        self._storages: dict[int, str] = {}  # address of a storage -> its name

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise TreeError(f"{_text(path[:4])}/…: nested more than {MAX_DEPTH} deep, or in a circle.")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if abs(value) < MAX_EXACT else {"$int": str(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is list:
            return [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]}
        if kind is bytes:
            return {"$bytes": value.hex()}
        if kind in (dict, OrderedDict, Counter):
            return self._mapping(value, path)
        if kind in (Tensor, torch.nn.Parameter):
            return self._tensor(value.detach(), id(value), path)
        if kind is np.ndarray:
            return self._array(value, path)
        raise TreeError(
            f"{_text(path)}: cannot save {kind.__module__}.{kind.__qualname__} exactly. "
            "State holds tensors, NumPy arrays, numbers, strings, None, lists, tuples and dicts of them."
        )

    def _mapping(self, value: dict[Any, Any], path: tuple[str, ...]) -> Any:
        if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        tag = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}[type(value)]
        pairs = []
        for key, item in value.items():
            if type(key) not in (str, int, float, bool, tuple, bytes, type(None)):
                raise TreeError(f"{_text(path)}: cannot save a key of type {type(key).__qualname__}.")
            pairs.append([self.encode(key, (*path, "(key)")), self.encode(item, (*path, str(key)))])
        return {tag: pairs}

    def _tensor(self, tensor: Tensor, identity: int, path: tuple[str, ...]) -> Any:
        if not _plain(tensor):
            kind = f"{'nested' if tensor.is_nested else tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
            raise TreeError(f"{_text(path)}: cannot save a {kind}.")
        address = tensor.untyped_storage().data_ptr()
        if address in self._shared or not tensor.is_contiguous():
            return self._view(tensor, address, path)
        if identity not in self._names:
            self._names[identity] = self._add(tensor, path)
        return {"$tensor": self._names[identity]}

    def _view(self, tensor: Tensor, address: int, path: tuple[str, ...]) -> Any:
        tensor = tensor.resolve_conj().resolve_neg()
        address = tensor.untyped_storage().data_ptr()
        if address not in self._storages:
            memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            self._storages[address] = self._add(memory, (*path, "(memory)"))
        place = [NAMES[tensor.dtype], list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
        return {"$view": [self._storages[address], *place]}

    def _array(self, array: Any, path: tuple[str, ...]) -> Any:
        try:
            # Copied: torch warns of arrays that are read-only. Not ascontiguousarray, which adds a dimension to none.
            tensor = torch.from_numpy(np.array(array, order="C"))
        except (TypeError, ValueError):  # objects, text, another byte order
            tensor = None
        if tensor is None or not _plain(tensor):
            raise TreeError(f"{_text(path)}: cannot save a NumPy array of {array.dtype!r}.")
        return {"$array": self._add(tensor, path)}

    def _add(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        name = wanted = _text(path)
        copy = 1
        while name in self.tensors:  # the keys 1 and "1" have the same text
            copy += 1
            name = f"{wanted}~{copy}"
        self.tensors[name] = tensor
        return name


class _Joiner:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def decode(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise TreeError(f"{_text(path[:4])}/…: nested more than {MAX_DEPTH} deep.")
        if isinstance(value, list):
            return [self.decode(item, (*path, str(i))) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (tag, content), *_ = value.items()
            if tag.startswith("$"):
                return self._tagged(tag, content, path)
        return {key: self.decode(item, (*path, key)) for key, item in value.items()}

    def _tagged(self, tag: str, content: Any, path: tuple[str, ...]) -> Any:
        try:
            match tag:
                case "$tensor":
                    return self._tensors[content]
                case "$array":
                    return self._tensors[content].numpy()
                case "$view":
                    return self._view(*content)
                case "$tuple":
                    return tuple(self.decode(item, (*path, str(i))) for i, item in enumerate(content))
                case "$bytes":
                    return bytes.fromhex(content)
                case "$int":
                    return int(content)
                case "$float":
                    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
                case "$dict" | "$ordered" | "$counter":
                    pairs = [(self.decode(k, (*path, "(key)")), self.decode(v, (*path, str(k)))) for k, v in content]
                    if tag == "$counter":
                        return Counter(dict(pairs))
                    return dict(pairs) if tag == "$dict" else OrderedDict(pairs)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise TreeError(f"{_text(path)}: {tag} cannot be read ({error}).") from error
        raise TreeError(f"{_text(path)}: unknown tag {tag!r}.")

    def _view(self, name: str, dtype: str, shape: list[int], stride: list[int], offset: int) -> Tensor:
        memory = self._tensors[name].untyped_storage()
        # Checked here: `set_` makes room for a view that does not fit, and what it finds there is nobody's.
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else -1
        if min(0, *shape, *stride, offset) < 0 or (last + 1) * DTYPES[dtype].itemsize > memory.nbytes():
            raise ValueError("it looks beyond its memory")
        return torch.empty(0, dtype=DTYPES[dtype]).set_(memory, offset, shape, stride)


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory and no more than that."""
    strided = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return strided and tensor.dtype in NAMES


def _text(path: tuple[str, ...]) -> str:
    return "/".join(path) or "(root)"
