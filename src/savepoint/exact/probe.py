"""Read values of any kind: their state, their contents, and a few words about them. Nothing is changed."""

import collections
import contextlib
import random
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from savepoint import parallel
from savepoint.data import digest_of
from savepoint.errors import UserError

DEPTH, ITEMS = 6, 64  # levels of nesting, and items of a sequence, that are looked at
VALUES = 2**20  # a larger tensor is sampled
PLAIN = bool | int | float | complex | str | bytes | None
ADDRESS = re.compile(r" at 0x[0-9a-f]+|\b0x[0-9a-f]+")


def digest(value: Any) -> str:
    """Return a digest of a value of any kind. Raises: UserError if a tensor has values that cannot be read."""
    try:
        return digest_of(contents(value))[:16]
    except RuntimeError as error:
        # Skipping the value could hide a difference.
        raise UserError(f"A value of the class {type(value).__name__} cannot be compared: {error}") from error


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested mappings and sequences, each with its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple) and 0 < len(value) <= ITEMS:
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, value


def contents(value: Any, depth: int = 0) -> Any:
    """Convert a value to plain data that `digest_of` reads whole: objects as their attributes, sets in order."""
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.generic | PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return [contents(each, depth + 1) for each in value.reshape(-1)] if value.dtype == object else value
    if depth > DEPTH:
        return None
    if isinstance(value, Mapping):
        return [[contents(key, depth + 1), contents(each, depth + 1)] for key, each in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return [contents(each, depth + 1) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(text, value))
    return [type(value).__qualname__, {name: contents(each, depth + 1) for name, each in attributes(value).items()}]


def _tensor(value: Tensor) -> Any:
    """Convert the kinds of tensors that have no plain values. Meta and fake tensors have a shape and nothing else.

    Of a tensor that is cut among ranks, each rank reads its own part.
    """
    value = parallel.own(value)
    if value.is_meta or isinstance(value, FakeTensor):
        return [type(value).__qualname__, str(value.dtype), list(value.shape), list(value.stride())]
    if value.is_nested:
        return [type(value).__qualname__, *(_tensor(each) for each in value.unbind())]
    if value.is_quantized:
        return [str(value.dtype), value.int_repr(), value.dequantize()]
    return value


def few_words(value: Any) -> str:
    """Describe a tensor or array: its value if it has only one, otherwise the number of its values."""
    if not isinstance(value, Tensor):
        return str(value.item()) if value.size == 1 else f"an array of {value.size} values"
    readable = value.layout is torch.strided and _tensor(value) is value
    return str(value.item()) if readable and value.numel() == 1 else f"a tensor of {value.numel()} values"


def sample(value: Any) -> Any:
    """Sample a large tensor or array: every n-th value and the sum, which shows a change between sampled values."""
    value = parallel.own(value)
    if isinstance(value, Tensor) and value.layout is torch.strided and value.numel() > VALUES:
        return value.detach().reshape(-1)[:: -(-value.numel() // VALUES)], value.detach().sum()
    if isinstance(value, np.ndarray) and value.size > VALUES and value.dtype.kind in "biufc":
        return value.reshape(-1)[:: -(-value.size // VALUES)], value.sum()
    return str(value) if isinstance(value, np.ndarray) and value.dtype == object else value


def generator_state(value: Any) -> Any:
    """Return the state of a random generator, or None for any other value."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.BitGenerator):
        return value.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, random.Random):
        return None if isinstance(value, random.SystemRandom) else value.getstate()
    return value.get_state() if isinstance(value, torch.Generator) else None


def position(value: Any, depth: int = 0) -> str:
    """Describe an opaque object: the position of a file or an iterator, otherwise its repr without addresses."""
    if hasattr(value, "tell"):
        with contextlib.suppress(OSError, ValueError):
            return str(value.tell())
    # Python's own iterators reveal their position only through __reduce__, which warns from 3.12 on.
    if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools") and depth < DEPTH:
        with contextlib.suppress(TypeError), warnings.catch_warnings(action="ignore"):
            return f"{type(value).__name__}({_items(value.__reduce__(), depth)})"
    return text(value)


def _items(value: Any, depth: int) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(_items(each, depth) for each in value[:ITEMS])
    return position(value, depth + 1) if isinstance(value, Iterator) else text(value)


def text(value: Any) -> str:
    return ADDRESS.sub("", repr(value))


def attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots included."""
    slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
    named = {name: getattr(value, name) for name in slots if hasattr(type(value), name) and _has(value, name)}
    return named | dict(getattr(value, "__dict__", {}))


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return () if isinstance(slots, Mapping) else (slots,) if isinstance(slots, str) else tuple(slots)


def _has(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name), types.MemberDescriptorType) and hasattr(value, name)
