"""A disk that can be watched, cut off at any moment, and made to fail: the calls of `os` that change it, wrapped.

`install` replaces them in this process, for everything under one directory. Each call has two moments, its beginning
and its end, and a write a third between its halves. They are counted over all threads, so a walk that ends the process
at the n-th moment, for every n, needs to know nothing about what is written, in which order, or by whom.

The real system calls under the directory are these and no others; `strace` is how to see that (test_durability.py).
"""

import builtins
import errno
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

BY_PATH = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "truncate", "link", "symlink", "chmod")
BY_DESCRIPTOR = ("pwrite", "pwritev", "fsync", "fdatasync", "ftruncate", "posix_fallocate", "fchmod")
FULL = (errno.ENOSPC, errno.EDQUOT)


class Moment(NamedTuple):
    """phase: `begin`, then `half` and `end`, or `fail`. creates: whether an `open` may make a file.

    note: the new name of what is renamed; how many bytes were written.
    """

    phase: str
    call: str
    path: str
    note: str = ""
    creates: bool = False


@dataclass(frozen=True)
class Fault:
    """What happens, and when. Without one, calls are only noted.

    at: the moment, counted from 1, at which the process is killed; for a failure, the call from which calls fail.
    error: the errno they fail with. calls: how many; None: all from there on, except that a full disk deletes, and
    syncs what it holds. vanish: what is deleted there and then. short: writes take one half only. log: where to note
    each moment, one a line.
    """

    at: int | None = None
    error: int | None = None
    calls: int | None = 1
    vanish: str | None = None
    short: bool = False
    log: str | None = None


class Disk:
    """Watches everything under `root`, a directory's absolute path."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self._root, self._fault = str(root), fault
        self._paths: dict[int, str] = {}
        self._lock = threading.RLock()
        self._counted = self._begun = 0
        self._own = threading.local()  # set while this thread does something to the disk for the test itself
        self.real = {name: getattr(os, name) for name in ("open", "close", "write", *BY_PATH, *BY_DESCRIPTOR)}
        self._real_open = builtins.open

    def install(self) -> None:
        for name in BY_PATH:
            setattr(os, name, self._by_path(name))
        for name in BY_DESCRIPTOR:
            setattr(os, name, self._by_descriptor(name))
        os.open, os.close, os.write = self._os_open, self._os_close, self._os_write
        os.writev = lambda descriptor, parts: self._os_write(descriptor, b"".join(parts))
        builtins.open = io.open = self._open

    def _watched(self, path: str) -> bool:
        return (path + "/").startswith(self._root + "/") and not getattr(self._own, "busy", False)

    def _moment(self, moment: Moment) -> None:
        with self._lock:
            self._note(moment)
            self._counted += 1
            if moment.phase == "begin":
                self._begun += 1
                self._fail(moment)
            if self._fault.error is None and self._fault.vanish is None and self._counted == self._fault.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, moment: Moment) -> None:
        if self._fault.log:
            line = " ".join((moment.phase, moment.call, moment.path, moment.note)).rstrip() + "\n"
            log = self.real["open"](self._fault.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self.real["write"](log, line.encode())
            self.real["close"](log)

    def _fail(self, moment: Moment) -> None:
        fault, number = self._fault, self._begun
        if fault.at is None or number < fault.at:
            return
        if fault.vanish is not None and number == fault.at:
            self._own.busy = True
            shutil.rmtree(fault.vanish)
            self._own.busy = False
        if fault.error is None or (fault.calls is not None and number >= fault.at + fault.calls):
            return
        harmless = moment.call in ("unlink", "remove", "rmdir", "fsync") or (
            moment.call == "open" and not moment.creates
        )
        if fault.calls is None and fault.error in FULL and harmless:
            return
        if fault.calls is None and fault.error == errno.EROFS and moment.call == "open" and not moment.creates:
            return  # a disk that is mounted to be read can be read
        self._note(moment._replace(phase="fail"))
        named = (moment.path,) if moment.call == "open" or moment.call in BY_PATH else ()
        raise OSError(fault.error, os.strerror(fault.error), *named)

    def _path(self, path: Any, directory: int | None = None) -> str:
        name = os.fsdecode(path)
        return os.path.abspath(name if directory is None else os.path.join(self._paths.get(directory, "?"), name))  # noqa: PTH100, PTH118

    def _by_path(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(path: Any, *arguments: Any, **keywords: Any) -> Any:
            if isinstance(path, int):
                return real(path, *arguments, **keywords)
            found = self._path(path, keywords.get("dir_fd"))
            two = name in ("rename", "replace", "link", "symlink")
            target = self._path(arguments[0], keywords.get("dst_dir_fd")) if two else ""
            if not self._watched(found) and not (two and self._watched(target)):
                return real(path, *arguments, **keywords)
            self._moment(Moment("begin", name, found, target))
            result = real(path, *arguments, **keywords)
            self._moment(Moment("end", name, found, target))
            return result

        return call

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(descriptor: Any, *arguments: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = self._paths.get(number, "")
            if not self._watched(path):
                return real(descriptor, *arguments)
            self._moment(Moment("begin", name, path))
            result = real(descriptor, *arguments)
            self._moment(Moment("end", name, path))
            return result

        return call

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        found = self._path(path, dir_fd)
        if not self._watched(found):
            descriptor: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            self._paths.pop(descriptor, None)
            return descriptor
        moment = Moment("begin", "open", found, creates=bool(flags & os.O_CREAT))
        self._moment(moment)
        descriptor = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        self._paths[descriptor] = found
        self._moment(moment._replace(phase="end"))
        return descriptor

    def _os_close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        self.real["close"](descriptor)

    def _os_write(self, descriptor: int, data: Any) -> int:
        path, real = self._paths.get(descriptor, ""), self.real["write"]
        if not self._watched(path):
            return real(descriptor, data)
        view = memoryview(data).cast("B")
        first = len(view) // 2
        self._moment(Moment("begin", "write", path))
        written: int = real(descriptor, view[:first]) if first else 0
        self._moment(Moment("half", "write", path))
        if not (self._fault.short and first) and written == first:
            written += real(descriptor, view[first:])
        self._moment(Moment("end", "write", path, str(written)))
        return written

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **keywords: Any) -> Any:
        """The builtin `open`, whose files write through `os.write`."""
        path = self._paths.get(file, "") if isinstance(file, int) else self._path(file)
        if not set(mode) & set("wxa+") or not self._watched(path):
            return self._real_open(file, mode, buffering, *arguments, **keywords)
        closes = keywords.pop("closefd", True)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closes, lambda *given: os.open(*given, 0o666))
        raw.closing = lambda: self._paths.pop(raw.fileno(), None)
        if buffering == 0:
            return raw
        buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return (
            buffer if "b" in mode else io.TextIOWrapper(buffer, *arguments, **keywords, line_buffering=buffering == 1)
        )


class _Raw(io.FileIO):
    closing: Callable[[], object] | None = None

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self.fileno(), size)
        return size

    def close(self) -> None:
        if not self.closed and self.closing:
            self.closing()
        super().close()
