"""A file named `stop` asks a run, one job of a sweep, or all jobs to stop: nothing is lost, and the rest goes on."""

import csv
from pathlib import Path

import pytest
from tools.share import some
from tools.stores import wait_for
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff

SMALL = ("tracker=none", "trainer.threads=1", "data.limit_batches=3", "data.batch_size=32")


def test_a_stop_file_stops_a_run_until_it_is_deleted(workshop: Workshop, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = (*SMALL, "model.hidden=[8]", "trainer.max_epochs=2", "data.dataset.augment=true")
    assert workshop.run("train.py", *config, f"hydra.run.dir={whole}").status == 0
    stopped.mkdir()
    (stopped / "stop").touch()
    ended = workshop.run("train.py", *config, f"hydra.run.dir={stopped}")
    assert ended.status == 0, "nobody is to start it again"
    assert "stop: finishing this step, then saving." in ended.output
    assert f"Nothing is lost. It goes on once {stopped / 'stop'} is deleted." in ended.output
    assert runs.read(stopped).record["status"] == "interrupted"
    ended = workshop.run("resume.py", f"run={stopped}")
    name = runs.read(stopped).id
    assert ended.status == 2
    assert ended.output == f"error: Run {name} was stopped by a file. To go on, delete it: {stopped / 'stop'}\n"
    (stopped / "stop").unlink()
    assert workshop.run("resume.py", f"run={stopped}").status == 0
    assert diff.diff_runs(runs.read(whole), runs.read(stopped)) == []


@pytest.mark.parametrize("place", some(["job", "sweep"], lambda place: place == "job"))
def test_a_stop_file_stops_one_job_of_a_sweep_or_all(workshop: Workshop, tmp_path: Path, place: str) -> None:
    config = (*SMALL, "data.limit_batches=1", "model=slow", "trainer.max_epochs=4", "seed=1,2")
    started = workshop.start("train.py", "-m", *config, output=tmp_path / "output")
    wait_for(lambda: [*workshop.root.glob("sweeps/*/*/0/metrics.jsonl")])
    (directory,) = workshop.root.glob("sweeps/*/*")
    file = directory / ("0" if place == "job" else "") / "stop"
    file.touch()
    status = started.wait()
    with open(directory / "results.csv", newline="") as table:
        found = {row["job"]: row["status"] for row in csv.DictReader(table)}
    if place == "job":
        assert (status, found) == (0, {"0": "stopped", "1": "finished"})
        ended = workshop.run("resume.py", "run=latest-sweep")
        assert f"stopped by a file; to go on with it, delete {file}" in ended.output
        file.unlink()
    else:
        assert (status, found) == (143, {"0": "interrupted", "1": "not begun"})
    ended = workshop.run("resume.py", "run=latest-sweep")
    assert ended.status == 0, ended.output
    assert [runs.read(directory / job).record["status"] for job in "01"] == ["finished", "finished"]
    assert not file.exists(), "a resume forgets that all were to stop"
