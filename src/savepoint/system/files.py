"""Files that are on the disk whole or not at all.

A plain write leaves bytes in the kernel's memory, and a rename can reach the disk before the bytes do. So every write
here is followed by an fsync of the file, and every rename by an fsync of the directory.
"""

import contextlib
import errno
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

# Error numbers that systems give for a lock that another process holds.
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Bytes that one system call writes at most.
_WINDOW = 8 * 2**20
# Buffers that one system call writes at most: Linux's IOV_MAX.
_MOST_PARTS = 1024
# Without this flag, Windows would change line ends.
_BINARY = getattr(os, "O_BINARY", 0)
# How long a rename is retried. Windows refuses it while another process, such as a virus scanner, has the file open.
PATIENCE_SECONDS = 10.0 if os.name == "nt" else 0.0
# The fields of C's `struct flock`, and their types as the `struct` module writes them. None where they are not known.
_LOCK_LAYOUT = {
    "linux": (("l_type", "l_whence", "l_start", "l_len", "l_pid"), "hhqqi0q"),
    "darwin": (("l_start", "l_len", "l_pid", "l_type", "l_whence"), "qqihh"),
}.get(sys.platform)


def write(path: Path, chunks: bytes | Iterable[bytes | memoryview]) -> int:
    """Write a new file and wait until it is on the disk. Returns: its size in bytes. The umask decides its mode.

    Raises: FileExistsError if the file exists; OSError, with the path, if the disk refuses. A part may be left.
    """
    return write_together({path: chunks})[path]


def write_together(files: Mapping[Path, bytes | Iterable[bytes | memoryview]]) -> dict[Path, int]:
    """Write new files and wait until all of them are on the disk, as `write` does for one. Returns: their sizes.

    Much cheaper than one `write` after the other: the first fsync finds every file written, so the file system makes
    all of them durable in one go, and the other fsyncs have nothing left to do.
    """
    sizes: dict[Path, int] = {}
    with contextlib.ExitStack() as opened:
        descriptors = {}
        for path, chunks in files.items():
            descriptors[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
            opened.callback(os.close, descriptors[path])
            with _naming(path):
                sizes[path] = _write_chunks(descriptors[path], chunks)
        for path, descriptor in descriptors.items():
            with _naming(path):
                os.fsync(descriptor)
    return sizes


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an OSError the path, which os.writev and os.fsync do not know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _write_chunks(descriptor: int, chunks: bytes | Iterable[bytes | memoryview]) -> int:
    """Write all chunks, and ask the disk to begin after each window and at the end. Returns: the number of bytes."""
    size = started = 0
    for parts in _windows([chunks] if isinstance(chunks, bytes) else chunks):
        size += sum(map(len, parts))
        _write(descriptor, parts)
        if size - started >= _WINDOW:
            _start_writeback(descriptor, started, size - started)
            started = size
    _start_writeback(descriptor, started, size - started)
    return size


def _windows(chunks: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """Group small chunks, and split large ones, into lists for one system call each. Copies nothing."""
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
    """Write all parts in one system call, where there is one. With a call for each, threads wait for each other."""
    while parts:
        count = os.writev(descriptor, parts) if hasattr(os, "writev") else os.write(descriptor, parts[0])
        done = 0
        while done < len(parts) and count >= len(parts[done]):
            count -= len(parts[done])
            done += 1
        parts = parts[done:]
        # A system call may write less than it is given. A disk that is nearly full does that.
        if count:
            parts[0] = parts[0][count:]


def _start_writeback(descriptor: int, offset: int, count: int) -> None:
    """Ask Linux to begin writing to the disk now, beside the next window. Otherwise fsync has nearly all the work.

    Linux begins to write pages when it is told that nobody will read them again. This makes nothing durable.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)


def replace(path: Path, data: bytes) -> None:
    """Give a file new contents atomically. A reader sees the old file or the new one, even after a power cut.

    Raises: OSError if the disk refuses. The old file is then unchanged, unless only the last fsync failed.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        hidden.unlink(missing_ok=True)
        write(hidden, data)
        patiently(os.replace, hidden, path)
    finally:
        # It exists only if the write or the rename failed. The disk may be full, so leave nothing behind.
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
    sync_directory(path.parent)


def patiently(rename: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Call os.rename or os.replace. On Windows, retry while another process has one of the files open.

    Raises: OSError if the disk refuses, on Windows after ten seconds.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return rename(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left while replacing this file. Call it only while no process replaces it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its contents. Follows no link, and ignores what the disk refuses."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sync_directory(path: Path) -> None:
    """Wait until the names in this directory are on the disk. Raises: OSError, with the path, if the disk refuses."""
    # Windows has no such call, and needs none.
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on a file. Linux and macOS tell this without the lock being taken.

    The process that holds the lock must not ask: a POSIX lock does not keep its own process out, and ends when that
    process closes any file of that name. Raises: OSError if the file system has no locks.
    """
    if not path.exists():
        return False
    if _LOCK_LAYOUT is None:
        lock = Lock(path)
        try:
            return not lock.acquire()
        finally:
            lock.release()
    import fcntl

    with open(path, "rb") as file:
        # Taking the lock for a moment instead could refuse a run that is being resumed at that moment.
        asked = {"l_type": fcntl.F_WRLCK, "l_whence": 0, "l_start": 0, "l_len": 0, "l_pid": 0}
        names, layout = _LOCK_LAYOUT
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *(asked[name] for name in names)))
        return bool(struct.unpack(layout, answer)[names.index("l_type")] != fcntl.F_UNLCK)


class Lock:
    """An advisory lock on a file. The system frees it when the process ends, however it ends.

    It is a POSIX lock, not flock's: a forked data loading worker would inherit flock's, and hold it for seconds after
    its parent was killed, when the run should already be resumed.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 - held for as long as the lock is

    def acquire(self) -> bool:
        """Take the lock. Returns: False if another process has it. Raises: OSError if the file system has no locks."""
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
        """Free the lock and close its file."""
        self._file.close()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file while the block runs. The file is made if it is missing. Waits for the lock without limit.

    Raises: OSError if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path)
    try:
        while not lock.acquire():
            time.sleep(0.05)
        yield
    finally:
        lock.release()
