"""Runs train.py or resume.py, whose process gets a signal while another thread of it writes a checkpoint.

`signalled.py PATTERN SIGNAL TIMES SCRIPT …`: at the background's first sync of a path in which PATTERN is found, the
signal is sent so often, each time once the one before has been noticed. Then the disk takes a while longer.
"""

import importlib
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from savepoint.system import signals

SLOW = 0.2  # seconds, in which a process that does not wait for the disk is gone
DEADLINE = 60.0


def install(pattern: str, number: int, times: int) -> None:
    sync, met = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if threading.current_thread() is not threading.main_thread() and not met and re.search(pattern, path):
            met.append(path)
            for _ in range(times):
                send(number)
            time.sleep(SLOW)
        sync(descriptor)

    os.fsync = fsync


def send(number: int) -> None:
    """Send it, and wait until this process has noticed: the first changes the handlers, the second Ctrl-C raises."""
    handler, pressed, begun = signal.getsignal(number), signals.pressed(), time.monotonic()
    os.kill(os.getpid(), number)
    while signal.getsignal(number) is handler and signals.pressed() == pressed:
        assert time.monotonic() - begun < DEADLINE, "nobody noticed the signal"
        # What comes just before the main thread falls asleep, waiting for this one, wakes it no more.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        time.sleep(0.001)


def main() -> int:
    pattern, number, times, *sys.argv = sys.argv[1:]
    signal.signal(signal.SIGALRM, lambda *_: None)
    install(pattern, int(number), int(times))
    return importlib.import_module(sys.argv[0].removesuffix(".py")).main()
