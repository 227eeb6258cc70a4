"""Fork the processes that talk to MLflow from a warm one, in place of fresh interpreters that import MLflow each time.

The import takes four seconds, and a run waits for it at its end. A test that asks for the fixture `nursery` says so
with its name; all others, and the first tests of a tracker, start the process as a person's run does.

Run as a program it is the warm process: for each connection to its socket it takes the order and the three standard
files of a worker, forks a child that is the worker, and answers with its process id and later with its exit status.
Needs pidfds, which Linux has: elsewhere `Nursery.used` changes nothing.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parents[2]
POSSIBLE = hasattr(os, "pidfd_open")
Popen = subprocess.Popen  # the real one, whatever stands in for it


class Nursery:
    """The warm process. It is started when it is first used."""

    def __init__(self, folder: Path) -> None:
        """folder: where its socket lies."""
        self.path = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Path:
        """Start the process unless it runs. Returns: the path of its socket, for `stand_in`."""
        if self._process is None:
            self._process = Popen([sys.executable, "-P", __file__, str(self.path)], stdin=subprocess.PIPE)
            while not self.path.exists():
                assert self._process.poll() is None, "the nursery ended"
                time.sleep(0.01)
        return self.path

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Let this process's trackers have their workers from here."""
        with stand_in(self.start()) if POSSIBLE else contextlib.nullcontext():
            yield

    def close(self) -> None:
        if self._process is not None:
            # Killed, not told by the end of its input: a process that a test forked may hold the other end open.
            self._process.kill()
            self._process.communicate()


def stand_in(path: Path | str) -> Any:
    """Patch the subprocess module of `savepoint.trackers.mlflow.process`. path: a nursery's socket."""

    def popen(_: list[str], *, stderr: Any, env: dict[str, str], **__: Any) -> Forked:
        return Forked(path, stderr.fileno(), env)

    return patch("savepoint.trackers.mlflow.process.subprocess", SimpleNamespace(PIPE=subprocess.PIPE, Popen=popen))


class Forked:
    """A child of the nursery, with what `savepoint.trackers.mlflow.process` and the tests use of a subprocess.Popen."""

    def __init__(self, path: Path | str, stderr: int, env: dict[str, str]) -> None:
        orders, outgoing = os.pipe()
        incoming, answers = os.pipe()
        self.stdin, self.stdout = os.fdopen(outgoing, "wb", buffering=0), os.fdopen(incoming, "rb", buffering=0)
        self._status: int | None = None
        self._nursery = socket.socket(socket.AF_UNIX)
        self._nursery.connect(str(path))
        order = {"parent": os.getpid(), "env": env, "cwd": os.getcwd()}
        socket.send_fds(self._nursery, [b" "], [orders, answers, stderr])
        self._nursery.sendall(json.dumps(order).encode() + b"\n")
        for one in (orders, answers):
            os.close(one)
        self._told = self._nursery.makefile("r")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        if self._status is None and select.select([self._nursery], [], [], 0)[0]:
            self.wait()
        return self._status

    def wait(self) -> int:
        if self._status is None:
            self._status = int(self._told.readline())
            self._told.close()
            self._nursery.close()
        return self._status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def grow_up(order: dict, files: list[int]) -> None:
    """Become the worker: its standard files, environment, directory and parent, which is not the nursery."""
    from savepoint.trackers.mlflow import worker

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.stdin = os.fdopen(0)
    # Readable as soon as the training process is gone, also where nobody has reaped it.
    training = os.pidfd_open(order["parent"])
    os.getppid = lambda: 1 if select.select([training], [], [], 0)[0] else order["parent"]
    worker.main()


def warm_up() -> None:
    """Import what a worker imports, and make a store, since the first one of a process loads its migrations."""
    from savepoint import system

    with system.memory.permanent():
        import savepoint.trackers.plot  # noqa: F401
        from savepoint.trackers.mlflow import mirror, store  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "mlflow.db")
        order = {"database": str(database), "lock": f"{database}.lock", "artifacts": folder}
        store.connect(order | {"uri": f"sqlite:///{database}"})
    assert threading.active_count() == 1, "a fork would lose the other threads"


def main() -> None:
    sys.path[:0] = [str(REPOSITORY / "src")]
    os.environ.update({"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"})
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    warm_up()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen()
    asked: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, woken, listening], [], [])
        if 0 in ready:  # the end of the tests
            os._exit(0)
        if woken in ready:
            os.read(woken, 4096)
            reap(asked)
        if listening in ready:
            connection, _ = listening.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 3)
            order = json.loads(connection.makefile().readline())
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (listening, connection, *asked.values()):
                    one.close()
                grow_up(order, files)
            for one in files:
                os.close(one)
            asked[pid] = connection
            connection.sendall(f"{pid}\n".encode())


def reap(asked: dict[int, socket.socket]) -> None:
    """Tell each training process whose worker has ended."""
    while asked:
        pid, raw = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with asked.pop(pid) as connection, contextlib.suppress(OSError):  # the training process may be gone
            connection.sendall(f"{os.waitstatus_to_exitcode(raw)}\n".encode())


if __name__ == "__main__":
    main()
