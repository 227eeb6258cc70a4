"""Warm interpreters: fork a process that has imported what is slow to import, in place of starting Python each time.

torch takes two seconds to import, MLflow four, ClearML two, and Aim one. A test that asks for one of the fixtures
`warm` and `nursery`, or for a `Warm` of its own, says so with its name; all others start Python as a person does. A
child is run by a command line, with modules, arguments, environment and standard files of its own, and has everything
of a new process except that what the warm one has imported is there already.

Run as a program this is the warm interpreter: for each connection to its socket it takes an order and three standard
files, forks a child that does the order, and answers with its process id and later with its exit status.
Needs pidfds, which Linux has: elsewhere fresh interpreters do the same.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parents[2]
POSSIBLE = hasattr(os, "pidfd_open")
Popen = subprocess.Popen  # the real one, whatever stands in for it

# What a run imports, and nothing of the engine's: a child takes that from the place that its command line names.
LIBRARIES = ("torch._dynamo", "hydra._internal.hydra", "hydra.core.plugins", "torch.utils.data", "rich.progress")
TRACKING = (
    *("savepoint.trackers.plot", "savepoint.trackers.worker"),
    *("tools.warm:make_store", "tools.warm:import_aim", "tools.warm:import_clearml"),
)


class Warm:
    """Warm interpreters, one for each hash seed that a child asks for. Each one is started when it is first used."""

    def __init__(self, folder: Path, *ready: str) -> None:
        """folder: where its sockets lie. ready: modules to import, and functions to call: `module:function`."""
        self._folder, self._ready = folder, ready or LIBRARIES
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, seed: str = "random") -> Path:
        """Start the interpreter with this PYTHONHASHSEED unless it runs. Returns: the path of its socket."""
        path = self._folder / f"s-{seed}"
        if seed not in self._processes:
            command = [sys.executable, "-P", __file__, str(path), *self._ready]
            environment = os.environ | {"PYTHONHASHSEED": seed}
            self._processes[seed] = Popen(command, stdin=subprocess.PIPE, env=environment)
        while not path.exists():
            assert self._processes[seed].poll() is None, "the warm interpreter ended"
            time.sleep(0.01)
        return path

    def popen(self, command: Sequence[Any], *, env: Mapping[str, str] | None = None, **files: Any) -> Any:
        """Stand in for `subprocess.Popen` of a command that begins with `sys.executable`."""
        seed = (env or {}).get("PYTHONHASHSEED", "random")
        return Forked(self.start(seed), command, env=env, **files) if POSSIBLE else Popen(command, env=env, **files)

    def run(self, command: Sequence[Any], **more: Any) -> "subprocess.CompletedProcess[str]":
        """Do what `subprocess.run` does with `capture_output=True, text=True`."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self.popen(command, stdout=out, stderr=err, **more).wait()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(command, status, *texts)

    @contextlib.contextmanager
    def used(self, module: str) -> Iterator[None]:
        """Let this module, which calls `subprocess.Popen`, have its processes from here."""
        with patch(f"{module}.subprocess", _like_subprocess(self.popen)):
            yield

    def close(self) -> None:
        for process in self._processes.values():
            # Killed, not told by the end of its input: a process that a test forked may hold the other end open.
            process.kill()
            process.communicate()


class Nursery(Warm):
    """Forks the processes that talk to a tracker's store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *TRACKING)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Let this process's trackers have their processes from here."""
        with stand_in(self.start()) if POSSIBLE else contextlib.nullcontext():
            yield


def stand_in(path: Path | str) -> Any:
    """Let this process's trackers have their processes from a nursery. path: its socket."""

    def popen(command: Sequence[Any], **more: Any) -> Forked:
        return Forked(path, command, **more)

    return patch("savepoint.trackers.process.subprocess", _like_subprocess(popen))


def _like_subprocess(popen: Any) -> SimpleNamespace:
    names = ("PIPE", "DEVNULL", "STDOUT", "TimeoutExpired", "run")
    return SimpleNamespace(Popen=popen, **{name: getattr(subprocess, name) for name in names})


class Forked:
    """A child of a warm interpreter, with what the engine and the tests use of a subprocess.Popen."""

    def __init__(
        self,
        path: Path | str,
        command: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Any = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        start_new_session: bool = False,
        bufsize: int = -1,
    ) -> None:
        assert command[0] == sys.executable
        self.returncode: int | None = None
        self.stdin = self.stdout = None
        opened: list[int] = []  # here, for the child alone

        def file(asked: Any, own: int) -> int:
            if asked == subprocess.DEVNULL:
                opened.append(os.open(os.devnull, os.O_RDWR))
                return opened[-1]
            if asked == subprocess.PIPE:
                reading, writing = os.pipe()
                if own == 0:
                    self.stdin = os.fdopen(writing, "wb", buffering=0)
                else:
                    self.stdout = os.fdopen(reading, "rb", buffering=0)
                opened.append(reading if own == 0 else writing)
                return opened[-1]
            return own if asked is None else int(asked if isinstance(asked, int) else asked.fileno())

        files = [file(stdin, 0), file(stdout, 1)]
        files.append(files[1] if stderr == subprocess.STDOUT else file(stderr, 2))
        order = {
            "arguments": [str(each) for each in command[1:]],
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or os.getcwd()),
            "parent": os.getpid(),
            "session": start_new_session,
        }
        self._warm = socket.socket(socket.AF_UNIX)
        self._warm.connect(str(path))
        # Opened here: this process may be killed before its child could open it.
        opened.append(os.pidfd_open(os.getpid()))
        socket.send_fds(self._warm, [b" "], [*files, opened[-1]])
        self._warm.sendall(json.dumps(order).encode() + b"\n")
        for one in opened:
            os.close(one)
        self._told = self._warm.makefile("r")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._warm], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._warm], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([], timeout or 0)
            self.returncode = int(self._told.readline())
            self._told.close()
            self._warm.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # reaped, and not told yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def live(order: dict[str, Any], files: list[int]) -> None:
    """Be what the order says: a process with these standard files, in its directory, session and environment.

    files: the three standard ones, and a pidfd of the process that asked.
    """
    code = 1
    try:
        *standard, asking = files
        for number, file in enumerate(standard):
            os.dup2(file, number)
            os.close(file)
        if order["session"]:
            os.setsid()
        os.environ.clear()
        os.environ.update(order["env"])
        tempfile.tempdir = None  # it comes from the environment
        os.chdir(order["cwd"])
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        # The parent is whoever asked. Readable as soon as it is gone, also where nobody has reaped it.
        os.getppid = lambda: 1 if select.select([asking], [], [], 0)[0] else order["parent"]
        code = interpret(order["arguments"])
    finally:
        os._exit(code)


def interpret(arguments: list[str]) -> int:
    """Do what `python ARGUMENTS` does, up to its exit handlers. Returns: the exit code."""
    safe = arguments[0] == "-P"
    first, *rest = arguments[safe:]
    searched = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]

    def go(place: str, argv: list[str], act: Any) -> None:
        sys.path[:] = [*([] if safe else [place]), *searched, *BASE]
        sys.argv = argv
        act()

    def code() -> None:
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)

    try:
        if first == "-c":
            go("", ["-c", *rest[1:]], code)
        elif first == "-m":
            warnings.filterwarnings("ignore", "(?s).*found in sys.modules", RuntimeWarning)  # imported beforehand
            go(os.getcwd(), rest, lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True))
        else:
            assert not first.startswith("-"), first
            go(str(Path(first).resolve().parent), [first, *rest], lambda: runpy.run_path(first, run_name="__main__"))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def make_store() -> None:
    """Make a store of MLflow's, since the first one of a process loads its migrations."""
    from savepoint.trackers.mlflow import store

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "mlflow.db")
        order = {"database": str(database), "lock": f"{database}.lock", "artifacts": folder, "experiment": ""}
        store.connect(order | {"uri": f"sqlite:///{database}"})


def import_aim() -> None:
    """Import Aim where it is installed. It takes a second."""
    if importlib.util.find_spec("aim"):
        importlib.import_module("aim")


def import_clearml() -> None:
    """Import ClearML where it is installed, as the tracker does. It takes two seconds."""
    if importlib.util.find_spec("clearml"):
        for name in ("clearml.storage.helper", "clearml.backend_interface.base", "clearml.utilities.plotly_reporter"):
            importlib.import_module(name)


BASE = [*sys.path]  # without this script's directory: it is started with -P


def main() -> None:
    place, *ready = sys.argv[1:]
    sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]
    os.environ.update({"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"})
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    gc.disable()  # it would search all of torch, again and again
    for name in ready:
        module, _, function = name.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    gc.collect()  # or each child would
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{place}.new")
    listening.listen()
    os.rename(f"{place}.new", place)  # there is no moment at which it is there and refuses
    asked: dict[int, socket.socket] = {}
    while True:
        ready_now, _, _ = select.select([0, woken, listening], [], [])
        if 0 in ready_now:  # the end of the tests
            os._exit(0)
        if woken in ready_now:
            os.read(woken, 4096)
            reap(asked)
        if listening in ready_now:
            connection, _ = listening.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 4)
            order = json.loads(connection.makefile().readline())
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (listening, connection, *asked.values()):
                    one.close()
                live(order, files)
            for one in files:
                os.close(one)
            asked[pid] = connection
            connection.sendall(f"{pid}\n".encode())


def reap(asked: dict[int, socket.socket]) -> None:
    """Tell each process that asked for a child which has ended."""
    while asked:
        pid, raw = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with asked.pop(pid) as connection, contextlib.suppress(OSError):  # the one that asked may be gone
            connection.sendall(f"{os.waitstatus_to_exitcode(raw)}\n".encode())


if __name__ == "__main__":
    main()
