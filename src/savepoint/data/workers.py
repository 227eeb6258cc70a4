"""Loading workers: how they begin, and how they end, if need be by the kernel for lack of memory."""

import atexit
import ctypes
import multiprocessing
import signal
import sys
import time
from types import TracebackType

from torch._C import _error_if_any_worker_fails
from torch.utils.data._utils import signal_handling

# Or torch raises, as soon as one is killed, wherever the main thread happens to be: while it saves, say, or cleans up.
# So the next batch tells, five seconds later at most. Torch installs its handler unless this says that it has.
signal_handling._SIGCHLD_handler_set = True

_TOLD = "DataLoader worker (pid"  # how each of torch's errors about one begins
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
DYING_SECONDS = 0.05  # from the end of a process's pipes, which is noticed first, to its own


def start(_worker: int) -> None:
    """What a worker does first."""
    # A Ctrl-C or a cluster's SIGTERM reaches the whole process group: the main process decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _say
    if sys.platform == "linux":
        # With a main process that was killed, at once: torch looks for it between two batches, and one may take hours.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What its threads fail with. That the other end of a pipe is gone is no news: whoever ended it said why."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def worker_death(error: BaseException) -> str | None:
    """What torch says of the worker whose end this error comes of; None if it comes of something else.

    It may be one among the errors that led to this one.
    """
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, RuntimeError) and str(each).startswith(_TOLD):
            return str(each).strip().removesuffix(".")
        each = each.__cause__ or each.__context__
    return None


def end_workers() -> None:
    """End the workers of a training that failed, at once. Raises: RuntimeError, torch's, if one of them was killed."""
    time.sleep(DYING_SECONDS)
    try:
        _error_if_any_worker_fails()
    finally:
        _kill()


def _kill() -> None:
    """At the exit of the process as well: Python would send them SIGTERM, and wait for them for ever."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join()


atexit.register(_kill)
