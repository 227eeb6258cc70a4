"""Files that are on the disk whole or not at all.

`flush` alone leaves bytes in the kernel, and a rename can reach the disk before the bytes it names: so every write here
is followed by fsync of the file, and every rename by fsync of the directory that holds the name.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a lock that another process holds answers, by system
_WINDOW = 8 * 2**20  # bytes that are written at a time, after which the disk is asked to begin
_MOST_PARTS = 1024  # that one call may write: Linux's limit
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would turn line ends into its own


def write(path: Path, chunks: bytes | Iterable[bytes | memoryview]) -> int:
    """Write a new file, wait until its bytes are on the disk, and return how many. Its mode follows the umask."""
    size = begun = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        for parts in _gathered([chunks] if isinstance(chunks, bytes) else chunks):
            size += sum(map(len, parts))
            _write(descriptor, parts)
            if size - begun >= _WINDOW:
                _begin(descriptor, begun, size - begun)
                begun = size
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # neither call names it
        raise
    finally:
        os.close(descriptor)
    return size


def _gathered(chunks: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """As much as one call writes: many small chunks, or a part of a large one. Nothing is copied."""
    parts: list[memoryview] = []
    room = _WINDOW
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            part, rest = rest[:room], rest[room:]
            parts.append(part)
            room -= len(part)
            if not room or len(parts) == _MOST_PARTS:
                yield parts
                parts, room = [], _WINDOW
    if parts:
        yield parts


def _write(descriptor: int, parts: list[memoryview]) -> None:
    """All parts in one call, where the system has one: with a call for each, threads would wait for each other."""
    while parts:
        count = os.writev(descriptor, parts) if hasattr(os, "writev") else os.write(descriptor, parts[0])
        done = 0
        while done < len(parts) and count >= len(parts[done]):
            count -= len(parts[done])
            done += 1
        parts = parts[done:]
        if count:  # the system may take less than it is given: a disk that is nearly full does
            parts[0] = parts[0][count:]


def _begin(descriptor: int, offset: int, count: int) -> None:
    """Let the disk work while the rest is on its way: by itself, Linux leaves nearly all of it until fsync.

    Linux begins to write what it is told that nobody will need again. Advice only: it makes nothing durable.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)


def replace(path: Path, data: bytes) -> None:
    """Give `path` new contents atomically: a reader sees the old file or the new one, also after a power cut."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        hidden.unlink(missing_ok=True)
        write(hidden, data)
        os.replace(hidden, path)
    finally:
        # Only still there if the write failed, and then the disk may be full: leave nothing behind.
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed `replace` of this file left. Call it only where no other process can be replacing it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it, as far as the disk lets it. Follows no link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sync_directory(path: Path) -> None:
    """Wait until the names in this directory are on the disk. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


class Lock:
    """An advisory lock on a file, freed by the system when the process ends, however it ends.

    A POSIX lock and not flock's: a forked data loading worker would inherit that one, and outlive its killed parent by
    the seconds in which the run should already be resumed.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 - held for as long as the lock is

    def acquire(self) -> bool:
        """Take the lock; False if another process holds it. Raises: OSError where the file system has no locks."""
        try:
            if os.name == "nt":
                import msvcrt

                self._file.seek(0)
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            else:
                import fcntl

                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            error.filename = self._file.name
            raise
        return True

    def release(self) -> None:
        self._file.close()
