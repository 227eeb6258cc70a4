"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves, and says how to go on."""

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
