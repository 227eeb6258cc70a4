"""The values in metrics.jsonl and system.jsonl as points, as a tracker stores them: key, step, value and time."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# The files of a run that hold points. Each has at most one line per step.
FILES = ("metrics.jsonl", "system.jsonl")
# Bytes that are read at a time. This bounds the memory that a long history takes while the tracker is down.
_CHUNK = 4 * 2**20


class Point(NamedTuple):
    """One value of one metric. milliseconds: since 1970, UTC."""

    key: str
    step: int
    value: float
    milliseconds: int


def points(line: bytes) -> list[Point]:
    """Return the points of one line, or none if a damaged disk has garbled the line.

    >>> points(b'{"step": 23, "time": 1.5, "val/loss": "nan"}')
    [Point(key='val/loss', step=23, value=nan, milliseconds=1500)]
    """
    try:
        values = json.loads(line)
        step, milliseconds = int(values.pop("step")), int(values.pop("time") * 1000)
        return [Point(key, step, float(value), milliseconds) for key, value in values.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def count(run_dir: Path) -> int:
    """Return the number of points in the files of a run."""
    total = 0
    for name in FILES:
        with contextlib.suppress(FileNotFoundError), open(run_dir / name, "rb") as file:
            total += sum(len(points(line)) for line in file if line.endswith(b"\n"))
    return total


def evaluation_points(path: Path) -> list[Point]:
    """Return the points of an evaluations.jsonl, which may be absent.

    A key begins with the split and the overrides of the evaluation: `test/loss`, `test data=other/loss`.
    """
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            evaluation = json.loads(line)
            step, milliseconds = int(evaluation["step"]), int(evaluation["time"] * 1000)
            prefix = " ".join([evaluation["split"], *evaluation["overrides"]])
            found += [
                Point(f"{prefix}/{name}", step, float(value), milliseconds)
                for name, value in evaluation["values"].items()
            ]
    return found


class Follower:
    """Reads a growing file, each whole line once.

    The file stays open, because another file takes its name when a killed run is resumed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._offset = 0

    def open(self) -> None:
        """Open the file, if it exists by now and is not open yet."""
        if self._file is None and self._path.exists():
            self._file = open(self._path, "rb")  # noqa: SIM115 - stays open for as long as the process lives

    def read(self) -> Iterator[list[Point]]:
        """Yield the points of new lines in lists. A list counts as read only when the next one is requested."""
        self.open()
        while self._file:
            self._file.seek(self._offset)
            lines = self._file.read(_CHUNK)
            end = lines.rfind(b"\n") + 1
            if end == 0:
                return
            yield [point for line in lines[:end].split(b"\n") for point in points(line)]
            # After the yield: points that the tracker refused are read and sent again.
            self._offset += end

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
