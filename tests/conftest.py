"""What the tests share: a zygote that runs train.py and resume.py at the price of a fork."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moments import Strike

# A process that was started in the background ignores Ctrl-C, one that was started by nohup a closed terminal, and so
# would every process that the tests start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = [f"epoch_{epoch:04d}_step_{2 * epoch:08d}" for epoch in range(1, 4)]  # of the checkpoints of `directory`


# Files that take longest. They begin first, or one worker would end with them while the other has nothing left to do.
LONGEST = ("exact", "matrix", "resume", "durability", "readme", "anywhere", "workers", "compile", "controls", "saves")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@dataclass
class Ended:
    """How a command ended. status: its exit code, or the negative number of the signal that ended it."""

    status: int
    seconds: float
    output: str


class Zygote:
    """Forks a child of a warm process for each command; see tests/zygote.py."""

    def __init__(self, folder: Path, repository: Path = REPOSITORY) -> None:
        self._folder, self._count = folder, 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_"))}
        self._process = subprocess.Popen(
            [sys.executable, str(repository / "tests" / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )
        self._read()

    def run(
        self,
        script: str,
        *arguments: str,
        kill_after: float | None = None,
        once: Path | None = None,
        again_after: float | None = None,
        signal: int = signal.SIGKILL,
        umask: int | None = None,
        temporary: Path | None = None,
        disk: Path | None = None,
        strike: Strike | None = None,
        **fault: Any,
    ) -> Ended:
        """once: the signal waits until this file holds something. again_after: seconds to a second signal.

        temporary: what everything takes for the system's temporary directory. disk: a directory whose disk does what
        `fault` says; see tests/disk.py. strike: what happens at which moment of the training; see tests/moments.py.
        """
        self._count += 1
        output = self._folder / f"output-{self._count}.txt"
        output.touch()  # a child may be killed before it opens it
        order = {
            "script": script,
            "arguments": list(arguments),
            "output": str(output),
            "kill_after": kill_after if kill_after is not None or once is None else 0.0,
            "once": str(once) if once else None,
            "again_after": again_after,
            "signal": int(signal),
            "disk": str(disk) if disk else None,
            "strike": dataclasses.asdict(strike) if strike else None,
            "fault": fault,
            "umask": umask,
            "temporary": str(temporary) if temporary else None,
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return Ended(answer["status"], answer["seconds"], output.read_text())

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


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    one = Zygote(tmp_path_factory.mktemp("zygote"))
    yield one
    one.close()


FAULTY = {
    "raising": "{error: bug, at: 3",
    "filling": "{at: null, limit: 8000",
    "slow": "{seconds: 0.3",
    "swallowing": "{_partial_: false",
    "thawing": "{epoch: 1",
    "remembering": "{registered: true, name: count",
    "unfreezing": "{_partial_: false",
    "drawing": "{_partial_: false",
    "double": "{_partial_: false",
    "lazy": "{_partial_: false",
}
SOURCES = {
    "drawing": "samples: 50, ",
    "stream": "samples: 50, buffer: 0, ",
    "sized": "samples: 50, buffer: 0, length: null, ",
    "plain": "",
}


@dataclass(frozen=True)
class Workshop:
    """A repository of its own, so that default directories can be used: this one's code, and faulty.py, sources.py."""

    root: Path
    zygote: Zygote

    def run(self, script: str, *arguments: str, **signals: Any) -> Ended:
        return self.zygote.run(script, *arguments, **signals)

    def left(self) -> list[str]:
        """What lies under runs/ and sweeps/, these included."""
        found = [path for name in ("runs", "sweeps") for path in self.root.glob(f"{name}/**")]
        return [str(path.relative_to(self.root)) for path in found]

    def clear(self) -> None:
        for name in ("runs", "sweeps"):
            shutil.rmtree(self.root / name, ignore_errors=True)


@pytest.fixture(scope="session")
def the_workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    root = tmp_path_factory.mktemp("workshop")
    copy_repository(root)
    shutil.copy(REPOSITORY / "tests" / "faulty.py", root / "src" / "project" / "models")
    for name, arguments in FAULTY.items():
        target = f"_target_: project.models.faulty.{name.capitalize()}"
        (root / "conf" / "model" / f"{name}.yaml").write_text(f"{arguments}, {target}}}")
    shutil.copy(REPOSITORY / "tests" / "sources.py", root / "src" / "project" / "data")
    for name, arguments in SOURCES.items():
        target = f"_target_: project.data.sources.{name.capitalize()}"
        (root / "conf" / "data" / f"{name}.yaml").write_text(f"dataset: {{{arguments}{target}}}")
    zygote = Zygote(tmp_path_factory.mktemp("outputs"), root)
    yield Workshop(root, zygote)
    zygote.close()


@pytest.fixture
def workshop(the_workshop: Workshop) -> Workshop:
    the_workshop.clear()
    return the_workshop


@pytest.fixture(scope="session")
def trained(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    small = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=2", "data.batch_size=16")
    three = ("trainer.max_epochs=3", "checkpoint.keep_last=9")
    ended = the_workshop.run("train.py", *small, *three, f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    assert [path.name for path in sorted((directory / "checkpoints").iterdir())] == NAMES
    return directory


@pytest.fixture
def directory(trained: Path, tmp_path: Path) -> Path:
    """A run of three epochs and as many checkpoints, for a test to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def copy_repository(root: Path) -> None:
    for name in ("train.py", "resume.py"):
        shutil.copy(REPOSITORY / name, root)
    for name in ("conf", "src", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


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
