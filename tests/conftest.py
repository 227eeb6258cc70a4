"""What the tests share: a zygote that runs train.py and resume.py at the price of a fork."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Ended:
    """How a command ended. status: its exit code, or the negative number of the signal that ended it."""

    status: int
    seconds: float
    output: str


class Zygote:
    """Forks a child of a warm process for each command; see tests/zygote.py."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_"))}
        self._process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )
        self._read()

    def run(self, script: str, *arguments: str, kill_after: float | None = None, signal: int = signal.SIGKILL) -> Ended:
        self._count += 1
        output = self._folder / f"output-{self._count}.txt"
        order = {
            "script": script,
            "arguments": list(arguments),
            "output": str(output),
            "kill_after": kill_after,
            "signal": int(signal),
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return Ended(answer["status"], answer["seconds"], output.read_text())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _read(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the zygote ended"
        return json.loads(line)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    one = Zygote(tmp_path_factory.mktemp("zygote"))
    yield one
    one.close()


def command(script: str, *arguments: str, cwd: Path = REPOSITORY, **environment: str) -> Ended:
    """Run a script as a person would: a fresh interpreter, from the repository's root."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_"))}
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
