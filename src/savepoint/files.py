"""Files that are on the disk whole or not at all.

`flush` alone leaves bytes in the kernel, and a rename can reach the disk before the bytes it names: so every write here
is followed by fsync of the file, and every rename by fsync of the directory that holds the name.
"""

import contextlib
import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a new file and wait until its bytes are on the disk. Its mode follows the umask."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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


def sync_directory(path: Path) -> None:
    """Wait until the names in this directory are on the disk. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
        """Take the lock; False if another process holds it."""
        try:
            if os.name == "nt":
                import msvcrt

                self._file.seek(0)
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            else:
                import fcntl

                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        self._file.close()
