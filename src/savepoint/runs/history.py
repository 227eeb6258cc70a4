"""metrics.jsonl: the local truth of every value that a run logged, one JSON object a line.

A tracker is a view of this file. Non-finite values are the strings "nan", "inf" and "-inf", since JSON has no word for
them; `float()` reads them back.
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
    """The file, open for appending. `lines` is how many it holds, or will: those that a full disk refused are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = len(read_history(path))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the run is
        self._pending = b""
        self._turn = threading.Lock()

    def append(self, *, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add one line. It is with the system at once, and on the disk after `sync`."""
        line: dict[str, object] = {"step": step, "epoch": epoch, "time": time.time()}
        for name, value in values.items():
            line[name] = value if math.isfinite(value) else str(float(value))
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        with self._turn:
            self._pending += text
            self.lines += 1
            # A disk that refuses a line costs no training: it is written before the next one, and `sync` tells.
            with contextlib.suppress(OSError):
                self._write()

    def sync(self) -> None:
        """Wait until every line is on the disk. Before a manifest is written: it counts on them.

        Raises: OSError if the disk refuses a line, or somebody removed the file.
        """
        try:
            with self._turn:
                self._write()
            # Not in turn: the next line of a training that goes on need not wait for the disk.
            os.fsync(self._file.fileno())
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError as error:
            error.filename = str(self.path)
            raise

    def _write(self) -> None:
        while self._pending:  # torn where the disk became full: what follows completes the line
            self._pending = self._pending[os.write(self._file.fileno(), self._pending) :]

    def close(self) -> None:
        # It writes nothing that `append` has not tried to: on a full disk, that has already raised.
        with contextlib.suppress(OSError):
            self._file.close()


def read_history(path: Path) -> list[dict[str, object]]:
    """Every whole line. A last line that a kill tore is not one.

    Raises: UserError that names the line, where somebody has edited the file.
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
                    f"{path}: line {number} is no JSON ({error}). Mend it by hand, or take it from the tracker."
                ) from error
    return lines


def cut_history(path: Path, *, lines: int) -> None:
    """Keep the first `lines` lines: those that the checkpoint knows. The rest will be logged again, with equal values.

    A new file takes the old one's name, since a tracker's process of a killed run may still be reading the old one.
    """
    if not path.exists():
        return
    kept = path.read_bytes().splitlines(keepends=True)[:lines]
    system.files.replace(path, b"".join(line for line in kept if line.endswith(b"\n")))
