"""Split nested state into (tensors, JSON), and join it again, exactly.

A tree is nested lists, tuples and dicts of the values that optimizers, schedulers and generators keep in their state.
`split` returns named tensors for a tensor file, and a value that strict JSON can hold. `join` is its inverse: types,
types of keys, order, shared tensors, the sign of a zero and the bits of a NaN in a tensor come back. A value that JSON
has no word for becomes an object with one key that begins with "$":

    {"$tensor": name}  {"$view": …}  …              tensors: see `encoding`
    {"$array": node}  {"$scalar": node}             a NumPy array, a NumPy number; node: that of its tensor
    {"$tuple": [...]}  {"$bytes": "hex"}  {"$int": "decimal"}  {"$float": "nan" | "inf" | "-inf"}
    {"$complex": [real, imaginary]}
    {"$dict": [[key, value], ...]}                 a dict with a key that is not a string, or begins with "$"
    {"$ordered": [[key, value], ...]}  {"$counter": [[key, value], ...]}

Two things are not kept. A list or dict that stands in two places comes back as two. Gradients (`.grad`) are lost,
because they are never state. Two tensor objects with the same memory, shape and strides become one object.
"""

import functools
import math
from collections import Counter, OrderedDict
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from savepoint import parallel
from savepoint.checkpoint import encoding

MAX_DEPTH = encoding.MAX_DEPTH
# Larger integers lose digits in readers that hold every number as a double.
MAX_EXACT = 2**53
# Characters that stay as they are in a tensor's name. Others become %XX, so that each key is one part of the path.
_NAMEABLE = "".join(chr(code) for code in range(32, 127) if chr(code) not in "/\\%")
_KEYS = (str, int, float, bool, bytes, type(None))


class TreeError(TypeError):
    """A value that cannot be saved or loaded exactly. The message begins with the value's path."""


def split(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a tree into named tensors and a value that strict JSON can hold.

    The tensors are the tree's own, not copies, except those made from NumPy arrays.
    Raises: TreeError for a value that `join` could not give back exactly, or nested more than 64 deep.
    """
    splitter = _Splitter()
    values = splitter.encode(tree, ())
    return splitter.tensors(), values


def join(tensors: dict[str, Tensor], values: Any) -> Any:
    """Join the results of `split` into a tree that equals the original.

    Raises: TreeError if a tensor is missing, or if `values` holds an object that `split` does not write.
    """
    return _Joiner(tensors).decode(values, ())


class _Splitter:
    def __init__(self) -> None:
        # Tensors by id: each with the path where it was found first, and its node, which `tensors` fills in.
        self._leaves: dict[int, tuple[Tensor, tuple[str, ...], dict[str, Any]]] = {}

    def tensors(self) -> dict[str, Tensor]:
        """Encode the tensors that `encode` found. Call this last: all must be known to see which share memory."""
        encoder = encoding.Encoder([tensor for tensor, _, _ in self._leaves.values()])
        for tensor, path, node in self._leaves.values():
            try:
                node.update(encoder.encode(tensor, _name(path)))
            except ValueError as error:
                raise TreeError(f"{_text(path)}: cannot save {error}.") from None
        return encoder.tensors

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise TreeError(f"{_text(path[:4])}/…: nested more than {MAX_DEPTH} deep, or in a circle.")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if abs(value) < MAX_EXACT else {"$int": self._decimal(value, path)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is complex:
            return {"$complex": [self.encode(value.real, path), self.encode(value.imag, path)]}
        if kind is list:
            return self._items(value, path)
        if kind is tuple:
            return {"$tuple": self._items(value, path)}
        if kind is bytes:
            return {"$bytes": value.hex()}
        if kind in (dict, OrderedDict, Counter):
            return self._mapping(value, path)
        if kind in (Tensor, torch.nn.Parameter) or parallel.is_cut(value):
            return self._tensor(value, path)
        if kind is np.ndarray:
            return {"$array": self._array(value, path)}
        if isinstance(value, np.generic):
            return {"$scalar": self._array(value, path)}
        raise TreeError(
            f"{_text(path)}: cannot save {kind.__module__}.{kind.__qualname__} exactly. "
            "State holds tensors, NumPy arrays, numbers, strings, None, lists, tuples and dicts of them."
        )

    def _decimal(self, value: int, path: tuple[str, ...]) -> str:
        try:
            return str(value)
        except ValueError:
            # Python refuses to convert more than 4,300 digits, here and when the file is read.
            raise TreeError(f"{_text(path)}: cannot save an integer of {value.bit_length()} bits.") from None

    def _items(self, value: list[Any] | tuple[Any, ...], path: tuple[str, ...]) -> list[Any]:
        # A generator's state is hundreds of integers. Building a path for each would take most of the time.
        if set(map(type, value)) == {int} and max(map(abs, value)) < MAX_EXACT:
            return list(value)
        return [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]

    def _mapping(self, value: dict[Any, Any], path: tuple[str, ...]) -> Any:
        if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        tag = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}[type(value)]
        pairs = []
        for key, item in value.items():
            _check_key(key, path)
            pairs.append([self.encode(key, (*path, "(key)")), self.encode(item, (*path, str(key)))])
        return {tag: pairs}

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> Any:
        return self._leaves.setdefault(id(tensor), (tensor, path, {}))[2]

    def _array(self, array: Any, path: tuple[str, ...]) -> Any:
        try:
            # A copy with the same strides, because torch warns about read-only arrays.
            tensor = torch.from_numpy(np.array(array, order="K"))
        except (TypeError, ValueError):
            # torch has no tensors of objects, of text, or of another byte order.
            raise TreeError(f"{_text(path)}: cannot save a NumPy array of {array.dtype!r}.") from None
        return self._tensor(tensor, path)


class _Joiner:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._decoder = encoding.Decoder(tensors)

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
        if any(key.startswith("$") for key in value):
            raise TreeError(f"{_text(path)}: an object with a tag has no other key.")
        return {key: self.decode(item, (*path, key)) for key, item in value.items()}

    def _tagged(self, tag: str, content: Any, path: tuple[str, ...]) -> Any:
        try:
            if tag in encoding.TAGS:
                return self._decoder.decode(tag, content)
            match tag:
                case "$array":
                    return self._array(content)
                case "$scalar":
                    return self._array(content)[()]
                case "$tuple":
                    return tuple(self.decode(item, (*path, str(i))) for i, item in enumerate(content))
                case "$bytes":
                    return bytes.fromhex(content)
                case "$int" if isinstance(content, str):
                    return int(content)
                case "$float":
                    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
                case "$complex":
                    real, imaginary = (self.decode(item, path) for item in content)
                    return complex(real, imaginary)
                case "$dict" | "$ordered" | "$counter":
                    pairs = [(self.decode(k, (*path, "(key)")), self.decode(v, (*path, str(k)))) for k, v in content]
                    if len(dict(pairs)) != len(pairs):
                        raise ValueError("a key appears twice")
                    if tag == "$counter":
                        return Counter(dict(pairs))
                    return dict(pairs) if tag == "$dict" else OrderedDict(pairs)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
            raise TreeError(f"{_text(path)}: {tag} cannot be read ({error}).") from error
        raise TreeError(f"{_text(path)}: unknown tag {tag!r}.")

    def _array(self, node: Any) -> Any:
        # The first checkpoints hold the tensor's name instead of a node.
        if isinstance(node, str):
            node = {"$tensor": node}
        ((tag, content),) = node.items()
        return self._decoder.decode(tag, content).numpy()


def _check_key(key: Any, path: tuple[str, ...]) -> None:
    if type(key) is tuple:
        for each in key:
            _check_key(each, path)
    elif type(key) not in _KEYS:
        raise TreeError(f"{_text(path)}: cannot save a key of type {type(key).__qualname__}.")


def _text(path: tuple[str, ...]) -> str:
    return "/".join(path) or "(root)"


def _name(path: tuple[str, ...]) -> str:
    """Return a tensor's name for a path. No part is empty or `..`, so a reader that makes files stays in its folder."""
    return "/".join(map(_quoted, path)) or "(root)"


# Cached because quoting took most of the time of a split, and every save has the same keys.
@functools.lru_cache(maxsize=2**14)
def _quoted(part: str) -> str:
    quoted = quote(part, safe=_NAMEABLE, errors="surrogatepass") or "%"
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted
