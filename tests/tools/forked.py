"""Fork the short trainings of `verify --exact` from warm processes, one for each hash seed, in place of fresh interpreters.

A test that trains three times pays for no import of torch. Processes of unlike hash seeds are unlike in what matters
here: the order of their sets and the addresses of their objects.

Run as a program it is such a warm process: for each JSON line `{"order": path, "output": path}` on stdin it forks a
child that does the order, and prints first the child's process id and later its exit status.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

Popen = subprocess.Popen  # the real one, whatever stands in for it


class Warm:
    """The warm processes, by hash seed. Each one is started when it is first asked for."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        """preload: modules that the warm processes import too."""
        self._preload = preload
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def popen(self, command: list[str], *, env: dict[str, str], stdout: Any, **_: Any) -> "Forked":
        """Stand in for the subprocess.Popen of `savepoint.exact.workplace`."""
        seed = env["PYTHONHASHSEED"]
        if seed not in self._processes:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._processes[seed] = Popen([sys.executable, "-P", __file__, *self._preload], env=env, text=True, **pipes)
        return Forked(self._processes[seed], {"order": command[-1], "output": stdout.name})

    @contextmanager
    def used(self) -> Iterator[None]:
        with patch("savepoint.exact.workplace.subprocess.Popen", self.popen):
            yield

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()


class Forked:
    """A child of a warm process, with what `savepoint.exact.workplace` uses of a subprocess.Popen."""

    def __init__(self, warm: "subprocess.Popen[str]", order: dict[str, str]) -> None:
        assert warm.stdin
        self._warm, self._status = warm, None
        warm.stdin.write(json.dumps(order) + "\n")
        warm.stdin.flush()
        self.pid = self._read()

    def wait(self) -> int:
        if self._status is None:
            self._status = self._read()
        return self._status

    def _read(self) -> int:
        assert self._warm.stdout
        return int(self._warm.stdout.readline())


def main() -> None:
    gc.disable()  # it would search all of torch, again and again
    import torch._dynamo  # noqa: F401  # by the first optimizer of a process, and it takes seconds

    from savepoint.exact import trace

    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.collect()  # or each child would
    gc.enable()

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                output = os.open(order["output"], os.O_WRONLY | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                status = trace.main([order["order"]])
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
