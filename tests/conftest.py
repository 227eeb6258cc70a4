"""Fixtures, and the order of the test files. What tests share otherwise is in tests/tools/."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

# Before torch is imported. Two workers with two threads each would keep off each other's cores: a fifth of all time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tools.processes import Zygote
from tools.stores import MLFLOW, wait_for
from tools.warm import Nursery, Warm
from tools.workshop import NAMES, Workshop, open_workshop

from savepoint import __main__, system, trackers

# A process that was started in the background ignores Ctrl-C, and one that was started by nohup ignores a closed
# terminal. Every process that the tests start would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The tests start hundreds of interpreters. Without byte code on the disk each one compiles the engine's source again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # and pytest would rewrite the asserts of a hundred files, in each of its processes

# Files that take longest. They begin first, or one worker would end with them while the other has nothing left to do.
LONGEST = (
    "comparison",
    "parallel_page",
    "ddp",
    "fsdp",
    "recipes",
    "readme",
    "first_steps",
    "resume",
    "trackers",
    "reproduce",
    "start",
    "resume_command",
    "compile",
    "requeue",
    "fork",
    "accelerator",
    "controls",
    "matrix",
    "changed_data",
    "workers",
    "saves",
    "durability",
    "optimizers",
    "no_pickle",
    "anywhere",
    "copies",
    "fetch",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from walking through all of torch, while the tests are collected and later."""
    with system.memory.permanent():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session")
def the_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    one = Nursery(tmp_path_factory.mktemp("nursery"))
    yield one
    one.close()


@pytest.fixture
def nursery(the_nursery: Nursery) -> Iterator[Nursery]:
    """The trackers of this process have their processes from a warm one."""
    with the_nursery.serving():
        yield the_nursery


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs a command line of Python without its seconds of importing torch."""
    one = Warm(tmp_path_factory.mktemp("warm"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow's without runs: making one takes seconds."""
    root = tmp_path_factory.mktemp("schema")
    (root / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = trackers.open(MLFLOW, run_dir=root / "run", run_id="ab12cd34", repository=root)
        wait_for((root / "mlflow.db").exists)
        tracker.abandon()
    return root / "mlflow.db"


@pytest.fixture(scope="session")
def the_workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with open_workshop(tmp_path_factory.mktemp("workshop"), tmp_path_factory.mktemp("outputs")) as one:
        yield one


@pytest.fixture(scope="session")
def zygote(the_workshop: Workshop) -> Zygote:
    """The workshop's: one warm process for all tests, in a repository without git, which each run would ask five times."""
    return the_workshop.zygote


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


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, which the command line takes for its own, where it is always UTC."""
    monkeypatch.setattr(__main__, "REPOSITORY", tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for group in ("model", "optimizer", "scheduler"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, once it has ended well."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert __main__.main([*arguments]) == 0
        return capsys.readouterr().out

    return run
