"""Start loading workers, notice when one dies, and end them with the process that needs them."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from types import TracebackType

from torch._C import _error_if_any_worker_fails
from torch.utils.data._utils import signal_handling

# Keeps torch from installing a handler that raises as soon as a worker is killed, wherever the main thread happens to
# be, for example in the middle of a save. Without that handler the next batch raises, at most five seconds later.
signal_handling._SIGCHLD_handler_set = True

_DEATH = "DataLoader worker (pid"  # the beginning of torch's messages about a dead worker
PR_SET_PDEATHSIG = 1  # from Linux's prctl(2)
DYING_SECONDS = 0.05  # a dying process closes its pipes first, and ends within this time


def start(_worker: int) -> None:
    """Prepare a worker process: ignore signals that the main process handles, and end with that process."""
    # Ctrl-C and a cluster's SIGTERM reach the whole process group. The main process decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _say
    if sys.platform == "linux":
        # The kernel ends the worker with the main process. torch checks only between batches, which may take hours.
        system_calls = ctypes.CDLL(None)
        system_calls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and system_calls.getppid() != parent.pid:
            os._exit(1)  # it was killed before the kernel knew, and its connections would stay open here


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, unless it is about a closed pipe: the process that closed the pipe has said why."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def worker_death(error: BaseException) -> str | None:
    """Return torch's message about a dead worker if that is this error or one of its causes, otherwise None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and str(cause).startswith(_DEATH):
            return str(cause).strip().removesuffix(".")
        cause = cause.__cause__ or cause.__context__
    return None


def end_workers() -> None:
    """Kill all workers after training has failed. Raises: torch's RuntimeError if one of them had died before."""
    time.sleep(DYING_SECONDS)
    try:
        _error_if_any_worker_fails()
    finally:
        _kill()


def _kill() -> None:
    """Kill the workers, also at exit: Python would send them SIGTERM, which they ignore, and wait for ever."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join()


atexit.register(_kill)
