"""Run train.py, resume.py and the programs of this package: in a fresh interpreter, or at the price of a fork."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.moments import Strike
from tools.warm import POSSIBLE, Nursery

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Ended:
    """How a command ended. status: its exit code, or the negative number of the signal that ended it."""

    status: int
    seconds: float
    output: str


class Zygote:
    """Forks a child of a warm process for each command; see tests/tools/zygote.py."""

    def __init__(
        self, folder: Path, repository: Path = REPOSITORY, preload: tuple[str, ...] = (), **variables: str
    ) -> None:
        """preload: modules that the warm process imports too. variables: of the environment, for it and its children."""
        self._folder, self._count = folder, 0
        self._nursery: Nursery | None = None
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_", "CLEARML_"))
        }
        self._process = subprocess.Popen(
            [sys.executable, str(repository / "tests" / "tools" / "zygote.py"), *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONUNBUFFERED": "1"} | variables,
        )
        self._read()

    def run(
        self,
        script: str,
        *arguments: str,
        kill_after: float | None = None,
        once: Path | None = None,
        again_after: float | None = None,
        signal: int = 9,  # SIGKILL, a name that Windows lacks
        umask: int | None = None,
        temporary: Path | None = None,
        disk: Path | None = None,
        strike: Strike | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **fault: Any,
    ) -> Ended:
        """environment: variables beside the zygote's. once: the signal waits until this file holds something. again_after: seconds to a second signal.

        temporary: what everything takes for the system's temporary directory. disk: a directory whose disk does what
        `fault` says; see tests/tools/disk.py. strike: what happens at which moment of the training; see tests/tools/moments.py.
        """
        self._count += 1
        output = self._folder / f"output-{self._count}.txt"
        output.touch()  # a child may be killed before it opens it
        answer = self._ask(
            script,
            arguments,
            output,
            kill_after=kill_after if kill_after is not None or once is None else 0.0,
            once=str(once) if once else None,
            again_after=again_after,
            signal=int(signal),
            disk=str(disk) if disk else None,
            strike=dataclasses.asdict(strike) if strike else None,
            fault=fault,
            umask=umask,
            temporary=str(temporary) if temporary else None,
            cwd=str(cwd) if cwd else None,
            environment=dict(environment or {}),
        )
        return Ended(answer["status"], answer["seconds"], output.read_text())

    def start(
        self, script: str, *arguments: str, output: Path | str, errors: Path | str | None = None, **environment: str
    ) -> "Started":
        """Start a command and do not wait for its end. output, errors: where its two streams go: a file, pipe or tty."""
        order = {"background": True, "errors": errors and str(errors), "environment": environment}
        return Started(self._ask(script, arguments, output, **order)["pid"], self)

    def wait(self, pid: int) -> int:
        """Wait for the end of a command that was started. Returns: its exit code, negative for a signal."""
        return int(self._say({"pid": pid})["status"])

    def _ask(self, script: str, arguments: tuple[str, ...], output: Path | str, **order: Any) -> dict:
        nothing = ("kill_after", "strike", "disk", "umask", "temporary", "cwd", "errors", "background")
        nursery = str(self._nursery.start()) if self._nursery and POSSIBLE else None
        command = {"script": script, "arguments": list(arguments), "output": str(output), "nursery": nursery}
        return self._say(dict.fromkeys(nothing) | {"environment": {}} | command | order)

    def _say(self, order: dict) -> dict:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    @contextlib.contextmanager
    def tracking(self, nursery: Nursery) -> Iterator[None]:
        """Let the runs of this block have their trackers' processes from a nursery."""
        self._nursery = nursery
        yield
        self._nursery = None

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _read(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the zygote ended"
        return json.loads(line)


@dataclass
class Started:
    """A command that `Zygote.start` has started."""

    pid: int
    zygote: Zygote

    def wait(self) -> int:
        return self.zygote.wait(self.pid)

    def kill(self) -> None:
        os.kill(self.pid, 9)  # SIGKILL, as above


def command(script: str, *arguments: str, cwd: Path = REPOSITORY, **environment: str) -> Ended:
    """Run a script as a person would: a fresh interpreter, from the repository's root."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_", "CLEARML_"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        cwd=cwd,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Ended(done.returncode, time.monotonic() - started, done.stdout)
