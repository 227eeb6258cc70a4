"""What a person sees while a run trains: a bar with rate and ETA on a terminal, one plain line an epoch elsewhere."""

import contextlib
import copy
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from savepoint.trust import redact

REFRESH_SECONDS = 0.1
log = logging.getLogger("savepoint")


class Progress(Protocol):
    def advance(self, *, epoch: int, step: int) -> None:
        """An update is done. Called on every step, so it costs next to nothing."""
        ...

    def epoch(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """An epoch is done, and this is what was logged for it."""
        ...


class _Lines:
    """For files and pipes: one line an epoch."""

    def __init__(self, epochs: int | None) -> None:
        self._of = f"/{epochs}" if epochs else ""

    def advance(self, *, epoch: int, step: int) -> None:
        pass

    def epoch(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        own = {name: value for name, value in values.items() if not name.startswith("system/")}
        shown = "  ".join(f"{name} {_number(value)}" for name, value in own.items())
        log.info("epoch %d%s  step %d  %s%s", epoch, self._of, step, shown, self._rate(values))

    def _rate(self, values: Mapping[str, float]) -> str:
        return f"  {values['system/samples_per_second']:,.0f} samples/s"


class _Bar(_Lines):
    """For terminals. Drawn by the loop itself, at most every tenth of a second: no thread competes with training."""

    def __init__(self, epochs: int | None, bar: Any, task: Any) -> None:
        super().__init__(epochs)
        self._bar, self._task, self._next = bar, task, 0.0

    def advance(self, *, epoch: int, step: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REFRESH_SECONDS
            rate = self._bar.tasks[0].speed or 0.0
            self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}{self._of}", rate=rate)
            self._bar.refresh()

    def epoch(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step)
        super().epoch(epoch=epoch, step=step, values=values)

    def _rate(self, values: Mapping[str, float]) -> str:
        return ""  # the bar shows it


@contextlib.contextmanager
def show(*, epochs: int | None, steps: int, done: int) -> Iterator[Progress]:
    """Follow a run from update `done` to update `steps`."""
    if not sys.stdout.isatty():
        yield _Lines(epochs)
        return
    from rich import progress  # 0.1 s that a run without a terminal need not pay

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
        yield _Bar(epochs, bar, bar.add_task("", total=steps, completed=done, rate=0.0))


@contextlib.contextmanager
def logs(directory: Path) -> Iterator[None]:
    """What is logged goes to the terminal as it is, and to the run's train.log with the time, without secrets."""
    terminal = logging.StreamHandler(_Stdout())
    terminal.setFormatter(_Shown())
    terminal.addFilter(lambda record: not record.exc_info)  # a traceback is for the file; Python prints it anyway
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
            with contextlib.suppress(OSError):  # a full disk, on which the last line did not fit
                handler.close()
        root.setLevel(level)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that the disk refuses is worth neither the run nor a traceback on the terminal."""


class _Stdout:
    """Whatever stdout is at the moment: while a bar is shown, rich puts a stream there that writes above the bar."""

    def write(self, text: str) -> None:
        with _whoever_reads():
            sys.stdout.write(text)

    def flush(self) -> None:
        with _whoever_reads():
            sys.stdout.flush()


@contextlib.contextmanager
def _whoever_reads() -> Iterator[None]:
    """`python train.py | head` goes on training when head has seen enough; train.log has the rest."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Shown(logging.Formatter):
    """A path is shown relative to where the person is, if it lies there."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(_with_paths(record, _from_here))


class _Redacted(logging.Formatter):
    """Without secrets, and without the run directory's own path: the log moves with it."""

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


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
