"""Turn Ctrl-C, SIGTERM and SIGUSR1 into requests: training finishes its step, saves, and says how to go on.

A file asks for the same: `stop` in a run's directory ends that run, and in a sweep's directory all jobs that train.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ends the process because a signal asked for that. In a sweep it ends the whole sweep, not one job alone.

    number: the signal's, or FILE. exit_code: 75 if the process is to be started again; 0 after a stop file, which
    nobody should start again; otherwise what a shell reports for a process that this signal ended.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 0 if number == FILE else exit_code(number)


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: try again later
# Windows has no SIGUSR1.
_USR1: tuple[int, ...] = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
_USR2: tuple[int, ...] = (signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()
# Signals that ask a training to stop.
_STOPPING = (signal.SIGINT, signal.SIGTERM, *_USR1)
# The name of a stop file. FILE stands for it where a signal's number is expected.
STOP_FILE, FILE = "stop", 0
# Everything that can ask a training to stop.
REQUESTS = (*_STOPPING, *_USR2, FILE)
_LOOK_SECONDS = 1.0
# Signals that end a process at once before training begins. `requeue` adds SIGTERM.
_AT_ONCE: list[int] = [signal.SIGINT, *_USR1]
# Signals that this process received: those that acted at once, and those that asked a training to stop.
_PRESSED: list[int] = []
_ASKED: list[int] = []
# Stop files of this process, whichever run it trains.
_FILES: list[Path] = []
# The handlers that `note` has replaced.
_NOTED: dict[int, Any] = {}


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal asked to stop."""
    return (
        TRY_AGAIN if number in (*_USR1, *_USR2) or (number == signal.SIGTERM and number in _AT_ONCE) else 128 + number
    )


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
    """Return the number of the last signal that asked a training to stop, also if that reached its end; else None.

    A stop file of `obey` counts as SIGTERM.
    """
    if _ASKED:
        return _ASKED[-1]
    return signal.SIGTERM if any(path.exists() for path in _FILES) else None


def last() -> int:
    """Return the number of the last signal that acted at once; Ctrl-C's if there was none."""
    return _PRESSED[-1] if _PRESSED else signal.SIGINT


def say(interrupt: KeyboardInterrupt) -> int:
    """Print why the process stopped to stderr. Returns: its exit code."""
    print(f"\n{str(interrupt) or 'Stopped.'}", file=sys.stderr)
    return interrupt.exit_code if isinstance(interrupt, Interrupted) else exit_code(last())


def _raise(number: int, _frame: FrameType | None) -> None:
    _PRESSED.append(number)
    raise KeyboardInterrupt


class Stop:
    """A request to stop: the number of the signal that made it, FILE for the run's stop file, None while there is none.

    A stop file of `obey` counts as SIGTERM.
    """

    def __init__(self, number: int | None = None, *, file: Path | None = None, quiet: bool = False) -> None:
        """Take a request that is there already, and the run's stop file, which need not exist.

        quiet: whether to print nothing when a request comes.
        """
        self._number, self._file, self._quiet = number, file, quiet
        self._look_at = time.monotonic()

    @property
    def signal(self) -> int | None:
        """Return what asked to stop. Cheap enough for every step: files are looked for once a second."""
        if self._number is None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            if self._file is not None and self._file.exists():
                self.signal = FILE
            elif any(path.exists() for path in _FILES):
                self.signal = signal.SIGTERM
            if self._number is not None:
                self.announce(f"{STOP_FILE}: {_FINISHING}")
        return self._number

    @signal.setter
    def signal(self, number: int) -> None:
        self._number = number

    @property
    def asked(self) -> int | None:
        """Return what is known of a request to stop. Where several processes train, they may not agree on it yet."""
        return self.signal

    def agree(self) -> int | None:
        """Return what asked to stop, once all processes that train together agree on it."""
        return self.signal

    def announce(self, words: str) -> None:
        """Print that training is about to stop."""
        if not self._quiet:
            print(f"\n{words}", file=sys.stderr, flush=True)


_FINISHING = "finishing this step, then saving."


def name_of(number: int) -> str:
    """Return what people call a request to stop."""
    return {signal.SIGINT: "Ctrl-C", FILE: STOP_FILE}.get(number) or signal.Signals(number).name


@contextlib.contextmanager
def watch(file: Path | None = None, *, quiet: bool = False) -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 in this block into a request. A second one acts as it did before.

    Outside the main thread, which some sweep launchers use, Python allows no handlers, and signals are left alone.
    file: the run's stop file, which need not exist. quiet: whether to print nothing when a request comes.
    """
    stop = Stop(asked() if _NOTED else None, file=file, quiet=quiet)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = _stopping()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        _ASKED.append(number)
        for each in numbers:
            signal.signal(each, before[each])
        stop.announce(f"{name_of(number)}: {_FINISHING} Once more stops now.")

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _stopping() -> tuple[int, ...]:
    """Return the signals that ask a training to stop. SIGUSR2 is one where a launcher, submitit, handles it."""
    return (*_STOPPING, *(number for number in _USR2 if callable(signal.getsignal(number))))


def note(act: Callable[[int], None] | None = None) -> None:
    """Take the signals that stop a training, from here on, as requests that `asked` reports.

    act: called with the number of the first signal; a second signal acts as it did before this call. None notes
    every signal and does nothing else, for a process whose parent decides when to end it.
    """
    if threading.current_thread() is not threading.main_thread() or _NOTED:
        return
    _NOTED.update({number: signal.getsignal(number) for number in _stopping()})

    def handle(number: int, _frame: FrameType | None) -> None:
        _ASKED.append(number)
        if act is not None:
            for each, handler in _NOTED.items():
                signal.signal(each, handler)
            act(number)

    for number in _NOTED:
        signal.signal(number, handle)


def hand_back() -> None:
    """After a job of a sweep was stopped by a signal, do what its launcher needs, so that the job can be started again.

    submitit handles SIGUSR2 itself, and queues the job. After SIGTERM, SLURM starts a job again if it was preempted.
    submitit would take a job that returns for one that has ended, so this process then ends without a result.
    """
    handler = _NOTED.get(asked() or 0)
    if asked() in _USR2 and callable(handler):
        handler(asked(), None)
    if _ASKED and _ASKED[-1] == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
        sys.exit(exit_code(signal.SIGTERM))


def obey(file: Path) -> None:
    """Stop whatever this process trains once a file exists."""
    if file not in _FILES:
        _FILES.append(file)


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
