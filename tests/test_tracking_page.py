"""docs/tracking.md is true: its commands run, and put runs where it says."""

import contextlib
import importlib.util
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import pages
from tools.kept import offline_session
from tools.processes import REPOSITORY
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import __main__, runs
from savepoint.trackers.aim.contents import stored_id

PAGE = REPOSITORY / "docs" / "tracking.md"
QUICK = ("trainer.threads=1", "data.limit_batches=2")


@pytest.fixture
def place(workshop: Workshop, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The current directory of the page's commands, which is not the repository's root. Stores are gone with the test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("AIM_REPO", raising=False)
    monkeypatch.delenv("CLEARML_OFFLINE_MODE", raising=False)
    monkeypatch.setattr(__main__, "REPOSITORY", workshop.root)
    monkeypatch.chdir(tmp_path)
    with workshop.zygote.tracking(nursery):
        yield tmp_path
    for path in workshop.root.glob("mlflow.db*"):
        path.unlink()
    for folder in ("mlartifacts", "tracked", ".aim", "aimartifacts", "sessions"):
        shutil.rmtree(workshop.root / folder, ignore_errors=True)


@pytest.fixture
def clearml() -> Iterator[Any]:
    """A stand-in for the server that `clearml-init` would ask for. None where ClearML is not installed."""
    if importlib.util.find_spec("clearml") is None:
        yield None
        return
    from tools.clearml_server import ClearmlServer

    server = ClearmlServer()
    yield server
    server.stop()


def share_schema(root: Path, place: Path) -> None:
    """Give the page's other stores a schema, once the first store has one: MLflow takes seconds to make each."""
    for database in (root / "tracked" / "mlflow.db", place / "mine.db"):
        if (root / "mlflow.db").exists() and not database.exists():
            database.parent.mkdir(exist_ok=True)
            with (
                contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store,
                contextlib.closing(sqlite3.connect(database)) as copy,
                copy,
            ):
                store.backup(copy)
                for table in ("metrics", "latest_metrics", "params", "tags", "logged_models", "model_versions", "runs"):
                    copy.execute(f"delete from {table}")


def stored(database: Path) -> list[str]:
    """The ids of the runs that a store has all of, in their order."""
    query = "select value from tags join runs using (run_uuid) where key = 'savepoint.run_id' and status = 'FINISHED'"
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as store:
        return [run_id for (run_id,) in store.execute(f"{query} order by start_time")]


def test_the_commands_of_the_page_run(
    workshop: Workshop, place: Path, clearml: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outputs: list[str] = []
        environment = clearml.environment if clearml else {}
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"  # where no server listens from here on
    for first, *arguments in pages.read(PAGE).commands:
        share_schema(workshop.root, place)
        if first in ("pip", "clearml-init"):
            continue  # some environments have the package, others have not; and the other command asks for keys
        if first == "export":
            monkeypatch.setenv(*arguments[0].split("=", 1))
        elif arguments[0] == "train.py":
            meant = [each.replace("http://127.0.0.1:5999", nobody) for each in arguments[1:]]
            ended = workshop.run("train.py", *meant, *QUICK, environment=environment)
            assert ended.status == 0, ended.output
            outputs.append(ended.output)
        elif arguments[2] != "ui":  # which tests/test_readme.py serves
            assert __main__.main(arguments[2:]) == 0
    said = capsys.readouterr().out
    found = runs.all_runs(workshop.root)
    first, model, quiet, elsewhere, offline, aimed, asked, carried = (run.id for run in found)
    assert stored(workshop.root / "mlflow.db") == [first, model, quiet]
    assert stored(workshop.root / "tracked" / "mlflow.db") == [elsewhere]
    # Tracked runs alone, and the environment's store is the one of the current directory.
    assert stored(place / "mine.db") == [elsewhere, first, model, offline]
    assert f"run {quiet}  left out: Run {quiet} was not tracked." in said
    (shown,) = re.findall(r"^```text\n(.*?)\n```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert [run.record["status"] for run in found[-4:]] == ["finished"] * 4
    assert shown.replace("http://127.0.0.1:5999", nobody) in outputs[-4]
    if importlib.util.find_spec("aim"):
        assert found[-3].tracker_id == stored_id("run", aimed) and "Aim" not in outputs[-3], outputs[-3]
    else:
        assert "tracker=aim needs a package that is not installed" in outputs[-3]
    if clearml is None:
        assert all("tracker=clearml needs a package that is not installed" in output for output in outputs[-2:])
    else:
        assert len(clearml.tasks) == 1, outputs[-2]
        (task,) = clearml.tasks.values()
        assert task["tags"] == [f"run {asked}"] and task["status"] == "completed", outputs[-2]
        assert f"{clearml.address}/projects/{task['project']}/" in outputs[-2]
        assert offline_session(workshop.root / "sessions" / f"{carried}.zip").status == "finished", outputs[-1]
    check_what_mlflow_shows(workshop.root, found[0])


def check_what_mlflow_shows(root: Path, run: runs.Run) -> None:
    """Compare what the store has of the page's first run with the page's list."""
    artifacts = root / "mlartifacts" / str(run.tracker_id) / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {
        *("loss.png", "config.yaml", "environment.txt", "metrics.jsonl", "run.json", "checkpoints")
    }
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store:
        tags, params = (dict(store.execute(f"select key, value from {table}")) for table in ("tags", "params"))
    assert {"savepoint.run_id", "savepoint.run_dir", "command"} <= tags.keys() and "optimizer.lr" in params
