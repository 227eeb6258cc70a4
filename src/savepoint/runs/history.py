"""Read and write metrics.jsonl: every value that a run logged, one JSON object a line. Trackers mirror this file.

system.jsonl has lines of the same form, with what the machine did meanwhile. Nothing depends on it.

JSON has no word for non-finite values. They are the strings "nan", "inf" and "-inf", which `float()` reads back.
"""

import contextlib
import errno
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from savepoint import system
from savepoint.errors import UserError


class History:
    """metrics.jsonl, open for appending. `lines` counts its lines, with those that a full disk has not taken yet.

    Raises: UserError if a line of the file is not JSON; OSError if the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = len(read_history(path))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the run is
        self._pending = b""
        self._lock = threading.Lock()

    def append(self, *, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add one line. Other processes can read it at once. It survives a power cut only after `sync`.

        step, epoch: updates and epochs completed. values: by the name of the metric.
        """
        line: dict[str, object] = {"step": step, "epoch": epoch, "time": time.time()}
        for name, value in values.items():
            line[name] = value if math.isfinite(value) else str(float(value))
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._pending += text
            self.lines += 1
            # A full disk must not stop training here. The line stays pending, and `sync` raises if it cannot write it.
            with contextlib.suppress(OSError):
                self._write()

    def sync(self) -> None:
        """Wait until every line is on the disk. A checkpoint calls this before it counts on the lines.

        Raises: OSError if the disk refuses a line, or if the file was removed.
        """
        try:
            with self._lock:
                self._write()
            # The lock is free here, so that training can append the next line meanwhile.
            os.fsync(self._file.fileno())
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError as error:
            error.filename = str(self.path)
            raise

    def _write(self) -> None:
        # A disk that becomes full may take a part of a line. What remains is written after it, and completes it.
        while self._pending:
            self._pending = self._pending[os.write(self._file.fileno(), self._pending) :]

    def close(self) -> None:
        """Close the file. `sync` has already reported a disk that refuses a line."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_history(path: Path) -> list[dict[str, object]]:
    """Read every whole line; [] if there is no file. A last line that a kill tore, without a newline, is left out.

    Raises: UserError that names the line, if one is not JSON.
    """
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise UserError(
                    f"{path}: line {number} is not JSON ({error}). Mend it by hand, or take it from the tracker."
                ) from error
    return lines


def append_usage(path: Path, *, step: int, values: Mapping[str, float]) -> None:
    """Add a line to a run's system.jsonl. A line that the disk refuses is dropped."""
    line = json.dumps({"step": step, "time": time.time(), **values}).encode() + b"\n"
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        file.write(line)


def cut_usage(path: Path, *, step: int) -> None:
    """Keep the lines up to the step from which a resumed run goes on, so that each step has one line at most."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    system.files.replace(path, b"".join(line for line in kept if line.endswith(b"\n")))


def cut_history(path: Path, *, lines: int) -> None:
    """Keep the first `lines` lines, those that a checkpoint counts on. The resumed run logs the others again.

    The file is replaced by a shorter one, not truncated: the tracker's process of a run that was killed may still be
    reading it.
    """
    if not path.exists():
        return
    kept = path.read_bytes().splitlines(keepends=True)[:lines]
    system.files.replace(path, b"".join(line for line in kept if line.endswith(b"\n")))
