"""Turn Ctrl-C, SIGTERM and SIGUSR1 into requests: training finishes its step, saves, and says how to go on.

Before training there is nothing to save, so Ctrl-C and SIGUSR1 end the process at once, with one line.
A scheduler sends SIGUSR1, or SIGTERM with `resume=auto`, to a process that it will start again. The process then exits
with 75.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ends the process because a signal asked for that. In a sweep it ends the whole sweep, not one job alone.

    number: the signal's. exit_code: 75 if the process is to be started again, otherwise what a shell reports for a
    process that this signal ended.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = _exit_code(number)


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: try again later
# Windows has no SIGUSR1.
_USR1: tuple[int, ...] = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
# Signals that ask a training to stop.
_STOPPING = (signal.SIGINT, signal.SIGTERM, *_USR1)
# Signals that end a process at once before training begins. `requeue` adds SIGTERM.
_AT_ONCE: list[int] = [signal.SIGINT, *_USR1]
# Signals that this process received: those that acted at once, and those that asked a training to stop.
_PRESSED: list[int] = []
_ASKED: list[int] = []


def _exit_code(number: int) -> int:
    return TRY_AGAIN if number in _USR1 or (number == signal.SIGTERM and number in _AT_ONCE) else 128 + number


def remember() -> None:
    """Make Ctrl-C and SIGUSR1 raise KeyboardInterrupt from here on, and let `pressed` report them.

    A library may catch KeyboardInterrupt and raise an error of its own. `pressed` tells such an error from others.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _AT_ONCE:
            signal.signal(number, _raise)


def requeue() -> None:
    """Take SIGTERM from here on as a request to stop and be started again, as SIGUSR1 always is."""
    if threading.current_thread() is threading.main_thread() and signal.SIGTERM not in _AT_ONCE:
        _AT_ONCE.append(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _raise)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Delay Ctrl-C until this block ends, for the import of torch: an exception in its C++ parts aborts the process.

    Raises: KeyboardInterrupt at the end, if Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda number, _frame: _PRESSED.append(number)) for each in _AT_ONCE}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if _PRESSED:
        raise KeyboardInterrupt


def pressed() -> bool:
    """Whether a signal has acted at once since `remember`, whatever error came of it."""
    return bool(_PRESSED)


def asked() -> int | None:
    """Return the number of the last signal that asked a training to stop; None if there was none.

    The signal counts even if the training reached its planned end.
    """
    return _ASKED[-1] if _ASKED else None


def last() -> int:
    """Return the number of the last signal that acted at once; Ctrl-C's if there was none."""
    return _PRESSED[-1] if _PRESSED else signal.SIGINT


def say(interrupt: KeyboardInterrupt) -> int:
    """Print why the process stopped to stderr. Returns: its exit code."""
    print(f"\n{str(interrupt) or 'Stopped.'}", file=sys.stderr)
    code: int = getattr(interrupt, "exit_code", None) or _exit_code(last())
    return code


def _raise(number: int, _frame: FrameType | None) -> None:
    _PRESSED.append(number)
    raise KeyboardInterrupt


@dataclass
class Stop:
    """A request to stop: the number of the signal that made it, or None while there is none."""

    signal: int | None = None


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 in this block into a request. A second one acts as it did before.

    Outside the main thread, which some sweep launchers use, Python allows no handlers, and signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        _ASKED.append(number)
        for each in _STOPPING:
            signal.signal(each, before[each])
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"\n{name}: finishing this step, then saving. Once more stops now.", file=sys.stderr, flush=True)

    for number in _STOPPING:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in _STOPPING:
            signal.signal(number, before[number])


def note(pass_on: Callable[[int], None] | None = None) -> None:
    """Take SIGINT, SIGTERM and SIGUSR1 from here on as requests to stop, which `asked` reports.

    pass_on: called with the number of the first signal; a second signal acts as it did before this call. None notes
    every signal and does nothing else, for a process whose parent decides when to end it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}

    def handle(number: int, _frame: FrameType | None) -> None:
        _ASKED.append(number)
        if pass_on is not None:
            for each in _STOPPING:
                signal.signal(each, before[each])
            pass_on(number)

    for number in _STOPPING:
        signal.signal(number, handle)


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
