"""The points in metrics.jsonl, as a tracker wants them: each value with its key, step and time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_CHUNK = 4 * 2**20  # bytes; bounds what is held in memory while a tracker is down


class Point(NamedTuple):
    key: str
    step: int
    value: float
    milliseconds: int  # since 1970


def points(line: bytes) -> list[Point]:
    """One line's points; a line that a damaged disk garbled has none.

    >>> points(b'{"step": 23, "time": 1.5, "val/loss": "nan"}')
    [Point(key='val/loss', step=23, value=nan, milliseconds=1500)]
    """
    try:
        values = json.loads(line)
        step, milliseconds = int(values.pop("step")), int(values.pop("time") * 1000)
        return [Point(key, step, float(value), milliseconds) for key, value in values.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def count(path: Path) -> int:
    """How many points the file holds."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(len(points(line)) for line in file if line.endswith(b"\n"))


class Follower:
    """Reads a growing file once, line by whole line.

    It holds on to the file that it opened first: when a killed run is resumed, another file takes its name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._offset = 0

    def open(self) -> None:
        """Hold on to the file, if there is one yet."""
        if self._file is None and self._path.exists():
            self._file = open(self._path, "rb")  # noqa: SIM115 - followed for as long as the process lives

    def read(self) -> Iterator[list[Point]]:
        """The points that were not read yet, in lists. A list counts as read once the next one is asked for."""
        self.open()
        while self._file:
            self._file.seek(self._offset)
            lines = self._file.read(_CHUNK)
            end = lines.rfind(b"\n") + 1
            if end == 0:
                return
            yield [point for line in lines[:end].split(b"\n") for point in points(line)]
            # Not before: if the tracker refused them, they are read and sent again.
            self._offset += end

    def close(self) -> None:
        if self._file:
            self._file.close()
