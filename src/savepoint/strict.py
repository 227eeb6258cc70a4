"""Files that a stranger may have written: what is odd about them is an error before any of it is used."""

import json
from pathlib import Path
from typing import Any

from savepoint.errors import CheckpointError

MAX_JSON = 256 * 2**20  # bytes; a state.json beyond it is refused before it is read


def read(path: Path, *, exactly: int | None = None, at_most: int | None = None) -> bytearray:
    """A file's bytes. Its size is checked before memory is taken. A link, a pipe or a device is no part of this."""
    try:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: missing, or not a plain file.")
        size = path.stat().st_size
        if exactly is not None and size != exactly:
            raise CheckpointError(f"{path}: {size} bytes, and the manifest says {exactly}.")
        if at_most is not None and size > at_most:
            raise CheckpointError(f"{path}: {size} bytes, more than such a file ever has.")
        data = bytearray(size)
        with open(path, "rb", buffering=0) as file:
            view, done = memoryview(data), 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
        if done != size:
            raise CheckpointError(f"{path}: became shorter while it was read.")
        return data
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}.") from error


def parse(data: bytearray, path: Path) -> dict[str, Any]:
    """An object in strict JSON: no NaN, no key twice. path: for the error."""
    if len(data) > MAX_JSON:
        raise CheckpointError(f"{path}: {len(data)} bytes, more than such a file ever has.")
    try:
        value = json.loads(bytes(data), object_pairs_hook=unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not strict JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not an object.")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=…)`: a key that stands twice is an error, not the last one's victory."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result
