"""Digest any sample or batch: equal data have equal digests, in every process and on every machine."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest_of(value: Any) -> str:
    """Compute the SHA-256 of a value's types, shapes and bits, in hexadecimal.

    Understands tensors, arrays, numbers, text, None and nested mappings, lists and tuples of them. Any other object
    counts by its class alone, because its text may hold a memory address.
    """
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def spread(count: int) -> Iterator[int]:
    """Yield the numbers below `count`, each once, in an order whose first few already lie far apart.

    Source: Kronecker's sequence of the golden ratio, with a step that is rounded so that every number is visited.
    """
    step = max(1, round(count * 0.6180339887498949))
    while math.gcd(step, count) > 1:
        step += 1
    return (index * step % count for index in range(count))


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        bits = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"tensor {value.dtype} {list(value.shape)} ".encode() + bits.tobytes())
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        digest.update(f"array {value.dtype.str} {list(value.shape)} ".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _add(digest, key)
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)} ".encode())
        for item in value:
            _add(digest, item)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        digest.update(f"{type(value).__name__} {value!r} ".encode(errors="surrogatepass"))
    else:
        digest.update(f"{type(value).__module__}.{type(value).__qualname__} ".encode())
