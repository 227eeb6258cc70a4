"""Show a run while it trains: a table row for each evaluation, a bar with rate and ETA on a terminal, and train.log."""

import contextlib
import copy
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from savepoint.trust import redact

REFRESH_SECONDS = 0.1
PLAIN_WIDTH = 80  # columns, where the output is no terminal
NUMBER_WIDTH = 8  # columns that any number fits into
NAME_WIDTH = 16  # columns; a longer name is shortened
SPEED = "system/samples_per_second"
log = logging.getLogger("savepoint")


class Progress(Protocol):
    """Shows how far a run is."""

    def advance(self, *, epoch: int, step: int) -> None:
        """Note that an update is done. The loop calls this at every step, so it has to cost next to nothing."""
        ...

    def row(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Show what an evaluation measured."""
        ...


class Table:
    """One row of text for each evaluation under one header, never wider than `width` columns.

    Metrics that do not fit are left out: losses stay longest, then metrics of validation.
    epochs, steps: the planned end, which decides the width of the first two columns.
    """

    def __init__(self, *, width: int, epochs: int | None, steps: int) -> None:
        self._width, self._planned = width, f"/{epochs}" if epochs else ""
        digits = len(str(steps))
        self._first = max(len("epoch"), 2 * len(str(epochs)) + 1 if epochs else digits), max(len("step"), digits)
        self._columns: dict[str, int] = {}
        self._names: set[str] = set()

    def rows(self, *, epoch: int, step: int, values: Mapping[str, float]) -> list[str]:
        """Lay out the row of an evaluation, and a header before a row with new metrics."""
        header = [] if values.keys() <= self._names else [self._header(values)]
        cells = [_number(values[name], size) if name in values else "" for name, size in self._columns.items()]
        return [*header, self._row(f"{epoch}{self._planned}", str(step), cells)]

    def _header(self, values: Mapping[str, float]) -> str:
        room, chosen = self._width - sum(self._first) - 1, []
        for name in sorted(values, key=_rank):
            room -= 1 + max(NUMBER_WIDTH, len(_short(name)))
            if room < 0:
                break
            chosen.append(name)
        self._names |= {*values}
        self._columns = {name: max(NUMBER_WIDTH, len(_short(name))) for name in values if name in chosen}
        return self._row("epoch", "step", [_short(name) for name in self._columns])

    def _row(self, epoch: str, step: str, cells: list[str]) -> str:
        sizes = (*self._first, *self._columns.values())
        return " ".join(cell.rjust(size) for cell, size in zip((epoch, step, *cells), sizes))[: self._width]


class _Plain:
    """Progress for files and pipes: the table alone."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def advance(self, *, epoch: int, step: int) -> None:
        pass

    def row(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        for row in self._table.rows(epoch=epoch, step=step, values=values):
            log.info("%s", row)


class _Bar(_Plain):
    """Progress for terminals: the table above a bar.

    The training loop draws the bar, at most every tenth of a second. A thread would compete with training.
    """

    def __init__(self, table: Table, epochs: int | None, bar: Any, task: Any) -> None:
        super().__init__(table)
        self._planned = f"/{epochs}" if epochs else ""
        self._bar, self._task, self._next = bar, task, 0.0

    def advance(self, *, epoch: int, step: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REFRESH_SECONDS
            rate = self._bar.tasks[0].speed or 0.0
            self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}{self._planned}", rate=rate)
            self._bar.refresh()

    def row(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step)
        # The bar shows the speed.
        shown = {name: value for name, value in values.items() if name != SPEED}
        super().row(epoch=epoch, step=step, values=shown)


@contextlib.contextmanager
def show(*, epochs: int | None, steps: int, done: int) -> Iterator[Progress]:
    """Follow a run from update `done` to update `steps`. epochs: None if only the steps are planned."""
    if not sys.stdout.isatty():
        yield _Plain(Table(width=PLAIN_WIDTH, epochs=epochs, steps=steps))
        return
    from rich import progress  # takes 0.1 s, which a run without a terminal need not pay

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        progress.TextColumn("{task.fields[rate]:,.0f}/s"),
        progress.TimeRemainingColumn(),
        auto_refresh=False,
        speed_estimate_period=10,
    )
    with bar:
        table = Table(width=bar.console.width, epochs=epochs, steps=steps)
        yield _Bar(table, epochs, bar, bar.add_task("", total=steps, completed=done, rate=0.0))


@contextlib.contextmanager
def logs(directory: Path) -> Iterator[None]:
    """Send log messages to the terminal, and with the time and without secrets to the run's train.log."""
    terminal = logging.StreamHandler(_Stdout())
    terminal.setFormatter(_Shown())
    terminal.addFilter(lambda record: not record.exc_info)  # Python prints the traceback itself
    file = _File(directory / "train.log", encoding="utf-8")
    file.setFormatter(_Redacted(directory))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (terminal, file):
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in (terminal, file):
            root.removeHandler(handler)
            with contextlib.suppress(OSError):  # the last line may not fit on a full disk
                handler.close()
        root.setLevel(level)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that the disk refuses: it must neither end the run nor print a traceback."""


class _Stdout:
    """Write to the current sys.stdout. While a bar is shown, rich replaces it by a stream that writes above the bar."""

    def write(self, text: str) -> None:
        with _ignoring_closed_pipe():
            sys.stdout.write(text)

    def flush(self) -> None:
        with _ignoring_closed_pipe():
            sys.stdout.flush()


@contextlib.contextmanager
def _ignoring_closed_pipe() -> Iterator[None]:
    """Go on training when the reader has closed the pipe, as in `python train.py | head`. train.log has the rest."""
    try:
        yield
    except OSError as error:
        # Windows says EINVAL where others say EPIPE.
        if not isinstance(error, BrokenPipeError) and (os.name != "nt" or error.errno != errno.EINVAL):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Shown(logging.Formatter):
    """Format for the terminal: paths below the working directory are shown relative to it."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(_with_paths(record, _from_here))


class _Redacted(logging.Formatter):
    """Format for train.log: without secrets, and with `<run>` for the run directory, since runs may be moved."""

    def __init__(self, directory: Path) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._own = str(directory.absolute())

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(_with_paths(record, Path.absolute))).replace(self._own, "<run>")


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _with_paths(record: logging.LogRecord, show: Callable[[Path], Path]) -> logging.LogRecord:
    changed = copy.copy(record)
    if isinstance(record.args, tuple):
        changed.args = tuple(show(value) if isinstance(value, Path) else value for value in record.args)
    return changed


def _rank(name: str) -> tuple[bool, bool, bool]:
    """Return the sort key of a metric: losses first, then metrics of validation; learning rates and speed last."""
    return name not in ("train/loss", "val/loss"), not name.startswith("val/"), name.startswith(("lr", "system/"))


def _short(name: str) -> str:
    """Shorten a name to NAME_WIDTH columns. The middle is left out, because long names often differ at their ends.

    >>> _short("val/precision_at_10"), _short("val/accuracy")
    ('val/preci..at_10', 'val/accuracy')
    """
    name = "samples/s" if name == SPEED else name
    return name if len(name) <= NAME_WIDTH else f"{name[:9]}..{name[-5:]}"


def _number(value: float, width: int) -> str:
    """Format a number in four significant digits, and in fewer where those are wider than `width` columns.

    Numbers from 1,000 on are rounded to whole ones if those fit.

    >>> _number(0.123456, 8), _number(-1.23456e-05, 8), _number(123456.0, 8), _number(1.23456e9, 8)
    ('0.1235', '-1.2e-05', '123,456', '1.23e+09')
    """
    formats = ",.0f" if abs(value) >= 1000 else ".4g", ".4g", ".3g", ".2g", ".1g"
    return next(text for each in formats if len(text := f"{value:{each}}") <= width)
