"""Turn Ctrl-C and SIGTERM into requests: training finishes its step, saves, and says how to go on.

Before training there is nothing to save. There, Ctrl-C ends the process at once, with one line.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """End the process after a run that stopped as asked, with everything saved. A sweep ends with it.

    number: the signal's. exit_code: what a shell reports for a process that this signal ended.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


# The Ctrl-Cs that this process has received, as signal numbers.
_PRESSED: list[int] = []


def remember() -> None:
    """Make every Ctrl-C from here on raise KeyboardInterrupt, as Python does, and let `pressed` report it.

    A library may catch KeyboardInterrupt and raise an error of its own. `pressed` tells the two apart.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _raise)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Delay Ctrl-C until this block ends, for the import of torch: an exception in its C++ parts aborts the process.

    Raises: KeyboardInterrupt at the end, if Ctrl-C was pressed.
    """
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
    """Whether Ctrl-C was pressed since `remember`, whatever error came of it."""
    return bool(_PRESSED)


def say(interrupt: KeyboardInterrupt) -> int:
    """Print why the process stopped to stderr. Returns: its exit code."""
    print(f"\n{str(interrupt) or 'Stopped.'}", file=sys.stderr)
    return getattr(interrupt, "exit_code", 128 + signal.SIGINT)


def _raise(number: int, _frame: FrameType | None) -> None:
    _PRESSED.append(number)
    raise KeyboardInterrupt


@dataclass
class Stop:
    """A request to stop: the number of the signal that made it, or None while there is none."""

    signal: int | None = None


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM inside this block into a request. A second one acts at once, as without it.

    Outside the main thread, which some sweep launchers use, Python allows no handlers, and signals are left alone.
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


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does, so that it cleans up."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number, "Stopped.")

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process, and with it its loading workers on systems that have process groups."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
