"""The process beside this one that talks to MLflow: orders in, answers out, and never a call that waits for it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Where MLflow gives up on a server that does not answer. Its own defaults block a call for minutes.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}

Message = dict[str, Any]


class Worker:
    """Started at once; `end` has to be called. Its pipes never block, so no thread of ours has to wait at them."""

    def __init__(self, order: Message, *, log: Path | None) -> None:
        self._log = log
        self._log_is_new = log is not None and not log.exists()
        self._outgoing = bytearray()
        self._incoming = b""
        with _opened(log) as stderr:
            self._process = subprocess.Popen(
                # -P: a directory called mlflow in the current directory is not MLflow.
                [sys.executable, "-P", "-m", "savepoint.trackers.mlflow_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env=_environment(),
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)
        self.send(order | {"parent": os.getpid()})

    @property
    def died(self) -> bool:
        return self._process.poll() is not None

    @property
    def idle(self) -> bool:
        """Whether every order has left this process."""
        return not self._outgoing

    def send(self, order: Message) -> None:
        self._outgoing += json.dumps(order).encode() + b"\n"
        self._write()

    def exchange(self) -> list[Message]:
        """Write what the pipe takes, and return the answers that it holds."""
        self._write()
        with contextlib.suppress(OSError):  # nothing there, or nobody: `died` tells them apart
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
        """Wait for the one answer to the first order. Raises: TimeoutError; RuntimeError if there will be none."""
        deadline = time.monotonic() + timeout_seconds
        try:
            while time.monotonic() < deadline:
                died = self.died
                for message in self.exchange():
                    return message
                if died:
                    raise RuntimeError("its process ended early")
                time.sleep(0.005)
        finally:
            self.end()
        raise TimeoutError(f"not done within {timeout_seconds:g} s")

    def end(self) -> None:
        """Stop it now. A kill harms nothing that is stored; `mlflow_store.connect` sees to what it could."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
        with contextlib.suppress(OSError):
            if self._log and self._log.stat().st_size == 0:
                self._log.unlink()

    def remove_log(self) -> None:
        if self._log and self._log_is_new:
            self._log.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[2])  # the checkout that runs, whatever an editable install points at
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return _PATIENCE | os.environ | {"PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextlib.contextmanager
def _opened(log: Path | None) -> Iterator[IO[bytes] | int]:
    if log is None:
        yield subprocess.DEVNULL
        return
    with open(log, "ab") as file:
        yield file
