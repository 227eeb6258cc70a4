"""Read files that a stranger may have written. A file that is odd in any way is an error before it is used."""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from savepoint.errors import CheckpointError

Memory = bytearray | mmap.mmap  # what a file is read into
CHUNK = 8 * 2**20  # bytes that are read at a time
MAX_JSON = 256 * 2**20  # bytes; a state.json beyond it is refused before it is read
_BEGINNING = 4096  # bytes of a file in which `read_member` looks first


def read_file(path: Path, *, exactly: int | None = None, at_most: int | None = None) -> Memory:
    """Read a plain file. Its size is checked before memory is taken.

    exactly, at_most: the allowed size in bytes.
    Raises: CheckpointError that names the file if it is missing, a link, a pipe or a device, has another size, or
    changes while it is read.
    """
    return _read(path, exactly, at_most, None)


def read_digested(path: Path, *, exactly: int) -> tuple[Memory, str]:
    """Read a plain file, and compute its SHA-256 in another thread meanwhile. The errors are those of `read_file`.

    exactly: the size that the file must have, in bytes. Returns: the contents, and the digest in hexadecimal.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as hasher:
        data = _read(path, exactly, None, lambda chunk: hasher.submit(digest.update, chunk))
    return data, digest.hexdigest()


def map_file(path: Path, *, exactly: int) -> Memory:
    """Return a plain file as memory that is read where it is looked at. Nothing that is written there reaches the file.

    exactly: the size that the file must have, in bytes. The errors are those of `read_file`.
    """
    with _opened(path, exactly, None) as (descriptor, size):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) if size else bytearray()


def _read(
    path: Path, exactly: int | None, at_most: int | None, on_chunk: Callable[[memoryview], object] | None
) -> Memory:
    with _opened(path, exactly, at_most) as (descriptor, size):
        data, before = _memory(size), os.fstat(descriptor)
        view, done = memoryview(data), 0
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            while count := file.readinto(view[done : done + CHUNK]):
                if on_chunk is not None:
                    on_chunk(view[done : done + count])
                done += count
        after = os.fstat(descriptor)
        if done != size or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
            raise CheckpointError(f"{path}: changed while it was read.")
        return data


@contextlib.contextmanager
def _opened(path: Path, exactly: int | None, at_most: int | None) -> Iterator[tuple[int, int]]:
    """Open a plain file of an allowed size during the block. Yields: the descriptor, and the size in bytes."""
    descriptor = None
    try:
        # Non-blocking: opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | _PLAIN)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: missing, or not a plain file.")
        if exactly is not None and found.st_size != exactly:
            raise CheckpointError(f"{path}: {found.st_size} bytes, and the manifest says {exactly}.")
        if at_most is not None and found.st_size > at_most:
            raise CheckpointError(f"{path}: {found.st_size} bytes, more than such a file ever has.")
        yield descriptor, found.st_size
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT):
            raise CheckpointError(f"{path}: missing, or not a plain file.") from error
        raise CheckpointError(f"{path}: {error.strerror}.") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _memory(size: int) -> Memory:
    """Allocate memory for a file. A large one is mapped: a bytearray would be filled with zeros first."""
    if size < CHUNK:
        return bytearray(size)
    if os.name == "nt":
        return mmap.mmap(-1, size)
    # Private. Python's default is shared, which is slower to allocate, and a forked process would write into it.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def parse_json(data: Memory, path: Path) -> dict[str, Any]:
    """Parse an object in strict JSON: no NaN, no duplicate keys.

    path: the file, for the error. Raises: CheckpointError for anything else.
    """
    if len(data) > MAX_JSON:
        raise CheckpointError(f"{path}: {len(data)} bytes, more than such a file ever has.")
    try:
        value = json.loads(bytes(data), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not strict JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not an object.")
    return value


def read_member(path: str, key: str) -> Any:
    """Return one value of the object in a JSON file; None if there is no such key.

    If the value lies in the beginning of the file, nothing else is read. The errors are those of `read_file` and
    `parse_json`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _PLAIN)
        try:
            text = os.read(descriptor, _BEGINNING)
        finally:
            os.close(descriptor)
        return _member(text.decode(errors="ignore"), key)
    except (OSError, ValueError, RecursionError):
        return parse_json(read_file(Path(path), at_most=MAX_JSON), Path(path)).get(key)


def _member(text: str, key: str) -> Any:
    """Find a value in the beginning of a JSON object. Raises: ValueError unless it and a sign after it are there."""
    at = 0
    while opened := _KEY.match(text, at):
        value, at = _DECODER.raw_decode(text, opened.end())
        # A number may go on behind the cut, so a comma or a brace has to follow it.
        if opened[1] == key and _END.match(text, at):
            return value
    raise ValueError("not in the beginning")


_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys. Pass it to `json.loads(object_pairs_hook=…)`, which would let the last one win."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


# What precedes a value of an object: a brace or a comma, the key, and a colon.
_KEY = re.compile(r'\s*[{,]\s*"([^"\\]*)"\s*:\s*', re.ASCII)
_END = re.compile(r"\s*[,}]", re.ASCII)
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
