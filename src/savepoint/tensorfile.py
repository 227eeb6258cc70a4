"""Tensors in one file, in the safetensors format, written and read byte by byte here.

The file: 8 bytes with the header's length (little-endian), the header (JSON: name → dtype, shape, data_offsets, and
`__metadata__`, text to text), then the tensors' bytes without holes. Any safetensors reader opens it.
Source: the format's own description, https://github.com/huggingface/safetensors#format.

Why not the library's `save_file`: it leaves the file unsynced, with mode 0600 whatever the umask, and orders metadata
at random, so that equal contents have unequal digests; and the digest of what is written is best taken while writing.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from savepoint import strict
from savepoint.errors import CheckpointError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_DIMENSIONS = 64  # torch's own limit; a longer shape would cost minutes to multiply out
METADATA = "__metadata__"  # the one name in a header that no tensor can have


@dataclass(frozen=True)
class Written:
    """What a file on the disk must be: its size in bytes and the SHA-256 of its bytes."""

    size: int
    sha256: str


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """Write a new file, fsynced. Equal tensors and metadata give equal bytes, in every process.

    tensors: any device, any strides, of the dtypes above; written contiguous, in row-major order.
    """
    assert METADATA not in tensors, "no reader could open that file"
    # Widest first keeps every tensor aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entries[name] = {
            "dtype": NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for chunk in (len(header).to_bytes(8, "little"), header):
            file.write(chunk)
            digest.update(chunk)
        for name in names:
            if tensors[name].numel():
                data = _bytes(tensors[name])
                file.write(data)
                digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return Written(size=8 + len(header) + end, sha256=digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    assert sys.byteorder == "little", "the format is little-endian"
    # A lazy conjugate or negation is only a flag: written as it lies in memory, it would save other numbers.
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read(data: bytearray, *, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata from a whole file's bytes. The tensors lie in `data`; nothing is copied.

    Everything is checked before it is used, since the file may come from a stranger.
    Raises: CheckpointError, with `name`, for whatever is not exactly what `write` could have written.
    """
    header, start = read_header(data, name=name)
    metadata = header.pop(METADATA, {})
    tensors, spans = {}, [(0, 0)]
    for key, entry in header.items():
        tensors[key], span = _tensor(data, start, key, entry, name)
        spans.append(span)
    spans.sort()
    if any(before[1] != after[0] for before, after in pairwise(spans)) or start + spans[-1][1] != len(data):
        raise CheckpointError(f"{name}: its tensors do not fill the file from end to end.")
    return tensors, metadata


def read_header(data: bytes | bytearray, *, name: str) -> tuple[dict[str, Any], int]:
    """The header, its metadata checked, and the offset at which the tensors' bytes begin."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else MAX_HEADER
    if length >= MAX_HEADER or 8 + length > len(data):
        raise CheckpointError(f"{name}: not a safetensors file, or cut short.")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=strict.unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name}: its header is not an object.")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{name}: its metadata is not text.")
    return header, 8 + length


def _tensor(data: bytearray, start: int, key: str, entry: Any, name: str) -> tuple[Tensor, tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
            raise ValueError("not a shape")
        plain = all(type(number) is int and 0 <= number < 2**48 for number in (*shape, begin, end))
        count = 1
        for size in shape:
            count *= size
        if not plain or set(entry) != {"dtype", "shape", "data_offsets"} or end - begin != count * dtype.itemsize:
            raise ValueError("shape and offsets disagree")
        if start + end > len(data):
            raise ValueError("it ends beyond the file")
        if count == 0:
            return torch.empty(shape, dtype=dtype), (begin, end)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: sizes that torch cannot multiply
        raise CheckpointError(f"{name}: tensor {key!r} is described wrongly ({error}).") from error
    if dtype is torch.bool and data[start + begin : start + end].strip(b"\x00\x01"):
        raise CheckpointError(f"{name}: tensor {key!r} holds booleans that are neither 0 nor 1.")
    if (start + begin) % dtype.itemsize:
        data, start = data[start + begin : start + end], -begin  # not aligned: another writer's file, so copy
    tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin)
    return tensor.reshape(shape), (begin, end)
