"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves, and says how to go on.

Before the loop there is nothing to save: there Ctrl-C ends the process at once, in one line.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and did, with everything saved. It ends a sweep too, as Ctrl-C should."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # what a shell reports for a process that the signal ended


_PRESSED: list[int] = []


def remember() -> None:
    """From here on a Ctrl-C raises KeyboardInterrupt, as always, and `pressed` knows of it.

    Raised inside the import of a library, or while one tidies up, it can come out as that library's own error.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _raise)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Around the import of torch, whose C++ parts abort the process if an exception comes: Ctrl-C acts at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: _PRESSED.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if _PRESSED:
        raise KeyboardInterrupt


def pressed() -> bool:
    """Whether Ctrl-C has ended what this process was doing, whatever error came of it."""
    return bool(_PRESSED)


def say(interrupt: KeyboardInterrupt) -> int:
    """The last words of a process that was stopped, and its exit code."""
    print(f"\n{str(interrupt) or 'Stopped.'}", file=sys.stderr)
    return getattr(interrupt, "exit_code", 128 + signal.SIGINT)


def _raise(number: int, _frame: FrameType | None) -> None:
    _PRESSED.append(number)
    raise KeyboardInterrupt


@dataclass
class Stop:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: int | None = None


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM is noted, the second of them acts at once, as if nobody watched.

    In a thread, where Python allows no handlers (some sweep launchers), signals are left as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        for each in numbers:
            signal.signal(each, before[each])
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"\n{name}: finishing this step, then saving. Once more stops now.", file=sys.stderr, flush=True)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])
