"""Write and read tensors in one file, in the safetensors format. Any safetensors reader opens it.

A file is 8 bytes with the header's length (little-endian), the header (JSON: name → dtype, shape, data_offsets, and
`__metadata__`, text to text), then the tensors' bytes without holes.
Source: https://github.com/huggingface/safetensors#format.

The library's `save_file` would not do: it does not sync the file, ignores the umask, and orders metadata at random, so
that equal contents have different digests.
"""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from savepoint import trust
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
# Bytes, the format's own limit.
MAX_HEADER = 100_000_000
# torch's own limit. Multiplying out a much longer shape, from a stranger's file, would take minutes.
MAX_DIMENSIONS = 64
# Bytes that are copied at a time, where a tensor's memory differs from its bytes in the file.
PIECE = 8 * 2**20
# The one name in a header that no tensor can have.
METADATA = "__metadata__"


@dataclass(frozen=True)
class Written:
    """A file's entry in the manifest: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Header:
    """A file's header. entries: each tensor's dtype, shape and offsets, unchecked. start: its size in bytes."""

    entries: dict[str, Any]
    metadata: dict[str, str]
    start: int


class Plan:
    """A file that is not written yet. Equal tensors and metadata give equal bytes in every process.

    The arguments are dense tensors of a dtype in `DTYPES`, on any device, with any strides, and the file's metadata.
    The tensors are written row-major.
    header: the file's first bytes. tensors: in the order in which their bytes follow; referred to, not copied.
    bytes: the number of bytes after the header.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        # Wide elements first: every tensor then begins at a multiple of its element size.
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        described = tuple((name, tensors[name].dtype, tensors[name].shape) for name in names)
        self.header, self.bytes = _header(described, tuple(sorted(metadata.items())))
        self.tensors = [tensors[name] for name in names]

    def with_tensors(self, tensors: list[Tensor]) -> "Plan":
        """Return a plan of the same file whose bytes come from other memory: the bytes of `tensors`, in order."""
        other = copy(self)
        other.tensors = tensors
        return other

    def chunks(self) -> "Chunks":
        """Return the file's bytes."""
        return Chunks(self.header, self.tensors)


class Chunks:
    """The bytes of a file that is not written yet. Several threads may iterate over them at the same time.

    Contiguous tensors on the CPU are not copied. Others are copied by each iteration, in pieces of `PIECE` bytes.
    """

    def __init__(self, header: bytes, tensors: Iterable[Tensor]) -> None:
        # Threads that call torch for every tensor wait for each other. So this makes the views once, before there are
        # threads.
        filled = (tensor for tensor in tensors if tensor.numel())
        self._parts = [memoryview(header), *(_bytes(each) if _in_place(each) else each for each in filled)]

    def __iter__(self) -> Iterator[memoryview]:
        for part in self._parts:
            if isinstance(part, memoryview):
                yield part
            else:
                yield from _pieces(part)

    def sha256(self) -> str:
        """Return the whole file's SHA-256 in hexadecimal. Other threads run meanwhile."""
        digest = hashlib.sha256()
        for chunk in self:
            digest.update(chunk)
        return digest.hexdigest()


# Cached because all checkpoints of a run have the same two headers.
@functools.lru_cache(maxsize=4)
def _header(
    described: tuple[tuple[str, torch.dtype, torch.Size], ...], metadata: tuple[tuple[str, str], ...]
) -> tuple[bytes, int]:
    """Return the header's bytes, its length included, and the number of bytes that follow it."""
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in described:
        assert nameable(name), f"no reader should open a file with a tensor named {name!r}"
        start, end = end, end + shape.numel() * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def nameable(name: str) -> bool:
    """Whether a tensor may have this name. A reader that makes a file of each tensor must stay inside its folder."""
    return (
        name != METADATA
        and not name.startswith(("/", "\\"))
        and "\0" not in name
        and (".." not in name or ".." not in re.split(r"[/\\]", name))
    )


def _in_place(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds its bytes as the file does."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """Yield copies of a tensor's bytes, in order, in parts of about PIECE at most."""
    size = tensor.numel() * tensor.element_size()
    if size <= PIECE:
        yield _bytes(tensor)
    elif len(tensor) == 1:
        yield from _pieces(tensor[0])
    else:
        for rows in torch.split(tensor, max(1, PIECE * len(tensor) // size)):
            yield from _pieces(rows)


def _bytes(tensor: Tensor) -> memoryview:
    assert sys.byteorder == "little", "the format is little-endian"
    # A lazy conjugate or negation is only a flag. Its memory holds other numbers.
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Not `reshape`: a contiguous tensor may have any stride in dimensions of size 1, which `view` then refuses.
    array: Any = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def read_header(data: bytes | trust.Memory, *, name: str) -> Header:
    """Read a file's header and check its metadata. `read_tensors` checks its entries.

    data: at least the header's bytes. name: what errors call the file.
    Raises: CheckpointError if it is not a header.
    """
    length = int.from_bytes(data[:8], "little")
    if length >= MAX_HEADER or 8 + length > len(data):
        raise CheckpointError(f"{name}: not a safetensors file, or cut short.")
    try:
        entries = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=trust.unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header cannot be read ({error}).") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{name}: its header is not an object.")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{name}: its metadata is not text.")
    return Header(entries, metadata, 8 + length)


def read_tensors(data: trust.Memory, header: Header, *, name: str) -> dict[str, Tensor]:
    """Return the tensors that a header describes, as views into `data`, the whole file's bytes.

    A stranger may have written the file, so everything is checked before it is used. name: what errors call the file.
    Raises: CheckpointError if an entry is malformed, or if the tensors do not fill the file without holes.
    """
    tensors, spans = {}, [(0, 0)]
    for key, entry in header.entries.items():
        if not nameable(key):
            raise CheckpointError(f"{name}: it has a tensor named {key!r}.")
        tensors[key], span = _tensor(data, header.start, key, entry, name)
        spans.append(span)
    spans.sort()
    if any(before[1] != after[0] for before, after in pairwise(spans)) or header.start + spans[-1][1] != len(data):
        raise CheckpointError(f"{name}: its tensors do not fill the file from end to end.")
    return tensors


def _tensor(data: trust.Memory, start: int, key: str, entry: Any, name: str) -> tuple[Tensor, tuple[int, int]]:
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
    # torch raises RuntimeError for sizes whose product does not fit 64 bits.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name}: tensor {key!r} is described wrongly ({error}).") from error
    if dtype is torch.bool and data[start + begin : start + end].strip(b"\x00\x01"):
        raise CheckpointError(f"{name}: tensor {key!r} holds booleans that are neither 0 nor 1.")
    if (start + begin) % dtype.itemsize:
        # Another program wrote this file, and left the tensor unaligned.
        data, start = bytearray(data[start + begin : start + end]), -begin
    tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin)
    return tensor.reshape(shape), (begin, end)
