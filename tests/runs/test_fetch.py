"""A run whose directory is gone goes on from the tracker alone: the same run there, its history whole, the same bits."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff

SMALL = ("trainer.threads=1", "model.hidden=[8]", "data.limit_batches=4", "data.batch_size=16", "model.dropout=0.1")


@pytest.fixture
def store(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, the_nursery: Nursery) -> Iterator[Path]:
    """The workshop's own MLflow store. Gone with the test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with workshop.zygote.tracking(the_nursery):
        yield workshop.root
    for path in workshop.root.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(workshop.root / "mlartifacts", ignore_errors=True)


def points(root: Path) -> list[tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", timeout=20)) as database:
        return database.execute("select key, step from metrics order by key, step").fetchall()


def tracked(workshop: Workshop) -> tuple[str, Path]:
    """Train two epochs with MLflow, and remove the run. Returns: the tracker's id of it, and its artifacts."""
    ended = workshop.run("train.py", *SMALL, "trainer.max_epochs=2", "checkpoint.keep_last=9")
    assert ended.status == 0, ended.output
    (run,) = runs.all_runs(workshop.root)
    assert run.tracker_id is not None
    shutil.rmtree(workshop.root / "runs")
    return run.tracker_id, workshop.root / "mlartifacts" / run.tracker_id / "artifacts"


def test_a_run_goes_on_from_the_tracker_alone(workshop: Workshop, store: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert (
        workshop.run("train.py", *SMALL, "trainer.max_epochs=4", "tracker=none", f"hydra.run.dir={whole}").status == 0
    )
    tracker_id, artifacts = tracked(workshop)
    # The upload of the newest checkpoint was cut short.
    newest, first = (artifacts / "checkpoints" / f"epoch_000{n}_step_0000000{4 * n}" for n in (2, 1))
    (newest / "manifest.json").unlink()
    ended = workshop.run("resume.py", f"run={tracker_id[:8]}", "trainer.max_epochs=4")
    assert ended.status == 0 and f"resumed from {first.name}" in ended.output, ended.output
    assert f"fetched 1 checkpoints into {workshop.root}" in ended.output
    (run,) = runs.all_runs(workshop.root)
    assert run.tracker_id == tracker_id and run.record["status"] == "finished"
    assert diff.diff_runs(runs.read(whole), run) == []
    found = points(store)
    steps = [line["step"] for line in runs.read_history(run.metrics)]
    assert [step for key, step in found if key == "val/loss"] == steps == [4, 8, 12, 16]
    assert len(set(found)) == len(found), "no point twice"


def test_a_damaged_checkpoint_is_named_and_a_run_that_is_incomplete_is_refused(workshop: Workshop, store: Path) -> None:
    tracker_id, artifacts = tracked(workshop)
    newest = artifacts / "checkpoints" / "epoch_0002_step_00000008"
    (newest / "state.json").write_text("{}")
    ended = workshop.run("train.py", *SMALL, "tracker=none", "trainer.max_epochs=1", f"init_from={tracker_id}")
    assert ended.status == 0 and "epoch_0001_step_00000004" in ended.output, ended.output

    shutil.rmtree(workshop.root / "runs")
    record = json.loads((artifacts / "run.json").read_text())
    for text, words in (
        (json.dumps(record | {"id": "x1234567"}), "is tagged as"),
        ("[", "its run.json cannot be read"),
        (None, "has no run.json, so it cannot be continued"),
    ):
        (artifacts / "run.json").unlink()
        if text is not None:
            (artifacts / "run.json").write_text(text)
        ended = workshop.run("resume.py", f"run={tracker_id}")
        assert ended.status == 2 and f"error: The tracker's run {tracker_id}" in ended.output, ended.output
        assert words in ended.output and workshop.left() == ["runs"], (ended.output, workshop.left())
