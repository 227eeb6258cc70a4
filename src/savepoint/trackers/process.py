"""Start the tracker's process from the training process, send it orders and read its answers, without ever blocking."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from savepoint.errors import UserError

Message = dict[str, Any]
LOG = "tracker.log"  # in the directory of the run, or of the sweep


class Worker:
    """A running worker process. Its pipes are non-blocking, so the training process needs no thread to serve them.

    order: the first message to the worker. log: the file to which the worker's stderr is appended.
    environment: variables that the worker gets unless they are set already.
    Call `end` when done. Raises: UserError if this Python has no non-blocking pipes.
    """

    def __init__(self, order: Message, *, log: Path | None, environment: Mapping[str, str]) -> None:
        if not hasattr(os, "set_blocking"):
            raise UserError("A tracker needs Python 3.12 or newer on Windows. Or train with tracker=none.")
        self.log = log
        self._outgoing = bytearray()
        self._incoming = b""
        with open(log or os.devnull, "ab") as stderr:
            self._process = subprocess.Popen(
                # -P: do not import a directory called mlflow that lies in the current directory.
                [sys.executable, "-P", "-m", "savepoint.trackers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env=_environment(environment),
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)
        self.send(order | {"parent": os.getpid()})

    @property
    def died(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def idle(self) -> bool:
        """Whether the pipe has taken every order."""
        return not self._outgoing

    def send(self, order: Message) -> None:
        """Queue an order, and write what the pipe takes now."""
        self._outgoing += json.dumps(order).encode() + b"\n"
        self._write()

    def exchange(self) -> list[Message]:
        """Write what the pipe takes now, and return the answers that have arrived."""
        self._write()
        with contextlib.suppress(OSError):  # a broken pipe: `died` is True then
            while chunk := self._stdout.read(65536):
                self._incoming += chunk
        *lines, self._incoming = self._incoming.split(b"\n")
        return [json.loads(line) for line in lines]

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while self._outgoing:
                written = self._stdin.write(self._outgoing)
                if not written:
                    return  # the pipe is full
                del self._outgoing[:written]

    def ask(self, timeout_seconds: float) -> Message:
        """Wait for the answer to the first order, then end the process.

        Raises: TimeoutError; RuntimeError if the process ends without an answer.
        """
        deadline = time.monotonic() + timeout_seconds
        try:
            while time.monotonic() < deadline:
                died = self.died  # asked before the pipe is read, which may hold a dead process's last messages
                for message in self.exchange():
                    return message
                if died:
                    raise RuntimeError("its process ended early")
                time.sleep(0.005)
        finally:
            self.end()
        raise TimeoutError(f"not done within {timeout_seconds:g} s")

    def end(self) -> None:
        """Kill the process, and remove its log if the log is empty. A kill harms nothing that is stored."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
        with contextlib.suppress(OSError):
            if self.log and self.log.stat().st_size == 0:
                self.log.unlink()


def _environment(wanted: Mapping[str, str]) -> dict[str, str]:
    # This checkout's code comes first, even if an editable install points at another checkout.
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**wanted, **os.environ, "PYTHONPATH": path}
