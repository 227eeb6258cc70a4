"""python -m savepoint sync: the tracker gets what it lacks of a run, once."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.warm import Nursery
from tools.workshop import NAMES, Workshop

from savepoint import __main__, runs


@pytest.fixture
def tracked(
    workshop: Workshop, directory: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery
) -> Iterator[runs.Run]:
    """A finished run of three epochs in the workshop, of which MLflow knows nothing."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(__main__, "REPOSITORY", workshop.root)
    place = workshop.root / "runs" / "2026-01-01" / "000001-ab001122"
    shutil.copytree(directory, place)
    run = runs.read(place)
    run.update(id="ab001122", status="finished")
    text = (place / "config.yaml").read_text()
    assert "  kind: none\n" in text
    (place / "config.yaml").write_text(text.replace("  kind: none\n", "  kind: mlflow\n"))
    yield run
    for path in workshop.root.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(workshop.root / "mlartifacts", ignore_errors=True)


def query(root: Path, text: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as database:
        return database.execute(text).fetchall()


def test_what_the_tracker_lacks_is_sent_once(
    workshop: Workshop, tracked: runs.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["sync", "ab00"], ["sync", "--all"]):
        assert __main__.main(arguments) == 0
        assert "run ab001122  everything is stored" in capsys.readouterr().out
    ((tracker_id, status),) = query(workshop.root, "select run_uuid, status from runs")
    assert runs.read(tracked.directory).tracker_id == tracker_id and status == "FINISHED"
    steps = query(workshop.root, "select step from metrics where key = 'val/loss' order by step")
    assert [step for (step,) in steps] == [2, 4, 6]
    tags = dict(query(workshop.root, "select key, value from tags"))
    assert tags["savepoint.run_id"] == "ab001122" and tags["command"].startswith("train.py ")
    assert dict(query(workshop.root, "select key, value from params"))["model.hidden"] == "[8]"
    stored = workshop.root / "mlartifacts" / str(tracker_id) / "artifacts"
    assert sorted(path.name for path in (stored / "checkpoints").iterdir()) == NAMES
    assert {"config.yaml", "metrics.jsonl", "run.json", "loss.png"} <= {path.name for path in stored.iterdir()}


def test_what_cannot_be_sent_is_told(
    workshop: Workshop, tracked: runs.Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        assert __main__.main(["sync", *arguments]) == 2
        return capsys.readouterr().err

    assert "Which run? python -m savepoint sync <run> | --all" in refused()
    assert "Which run?" in refused("--everything")
    # A store that can never work: said at once, and nothing is lost.
    assert __main__.main(["sync", "ab00", f"tracker.uri=sqlite:///{tmp_path}"]) == 1
    told = capsys.readouterr().out
    assert "run ab001122  MLflow has not stored 21 of 21 points" in told and "is a directory" in told, told
    config = tracked.directory / "config.yaml"
    config.write_text(config.read_text().replace("  kind: mlflow\n", "  kind: none\n"))
    assert "Run ab001122 was not tracked. To send it nevertheless: add tracker=mlflow" in refused("ab00")
    assert __main__.main(["sync", "--all"]) == 0
    assert "run ab001122  left out: Run ab001122 was not tracked." in capsys.readouterr().out
