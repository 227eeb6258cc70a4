"""A sweep: one command, many runs, one table; no job takes another with it."""

import csv
import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tools.processes import Ended
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs
from savepoint.runs import sweep
from savepoint.runs.sweep import Result

QUICK = ("tracker=none", "trainer.threads=1", "data.limit_batches=4", "data.batch_size=32", "trainer.max_epochs=2")


def start(workshop: Workshop, *arguments: str) -> tuple[Ended, Path]:
    ended = workshop.run("train.py", "-m", *QUICK, *arguments)
    (directory,) = (workshop.root / "sweeps").glob("*/*")
    return ended, directory


def table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_sweep_has_a_directory_for_each_job_and_a_table_with_the_best_first(workshop: Workshop) -> None:
    ended, directory = start(workshop, "optimizer=adam,sgd", "seed=1,2")
    assert ended.status == 0, ended.output
    assert re.fullmatch(r"\d{6}-[a-z][0-9a-f]{7}", directory.name)
    assert {path.name for path in directory.iterdir()} == {
        *("0", "1", "2", "3"),
        *("sweep.json", "multirun.yaml", "results.csv"),
    }
    made = runs.all_runs(workshop.root)
    assert len({one.id for one in made}) == 4 and {one.record["sweep"] for one in made} == {directory.name[7:]}
    rows = table(directory)
    assert list(rows[0]) == ["job", "optimizer", "seed", "best val/loss", "epoch", "status", "run"]
    assert {(row["optimizer"], row["seed"]) for row in rows} == {(a, b) for a in ("adam", "sgd") for b in "12"}
    losses = [float(row["best val/loss"]) for row in rows]
    assert losses == sorted(losses) and {row["status"] for row in rows} == {"finished"}
    shown = [line.split() for line in ended.output.splitlines()]
    assert [list(row.values()) for row in rows] == [
        line for line in shown if line and line[-1] in {one.id for one in made}
    ][-4:]


def test_child_of_a_sweep_resumes_alone(workshop: Workshop) -> None:
    _, directory = start(workshop, "seed=1,2")
    (first, _) = runs.all_runs(workshop.root)
    ended = workshop.run("resume.py", f"run={first.id}", "trainer.max_epochs=3")
    assert ended.status == 0 and "  3/3 " in ended.output, ended.output
    assert runs.read(directory / "0").record["status"] == "finished"


def test_refused_job_loses_no_other_and_is_in_the_table(workshop: Workshop) -> None:
    ended, directory = start(workshop, "trainer.max_epochs=-1,1,2")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert ended.output.splitlines()[-1] == "error: trainer.max_epochs=-1: must be at least 1."
    assert [(row["job"], row["status"]) for row in table(directory)] == [
        ("2", "finished"),
        ("1", "finished"),
        ("0", "refused"),
    ]
    assert not (directory / "0" / "run.json").exists()


def test_job_with_a_bug_loses_no_other_and_is_in_the_table(workshop: Workshop) -> None:
    ended, directory = start(workshop, "model=raising,mlp")
    assert ended.status == 70 and "RuntimeError: a bug in the model" in ended.output, ended.output
    assert [(row["model"], row["status"]) for row in table(directory)] == [("mlp", "finished"), ("raising", "failed")]


def test_sweep_that_cannot_be_composed_is_refused_whole_and_leaves_nothing(workshop: Workshop) -> None:
    ended = workshop.run("train.py", "-m", *QUICK, "optimizer=adam,nope")
    assert ended.status == 2 and ended.output.startswith("error: optimizer=adam,nope: optimizer has no option nope")
    assert workshop.left() == []


def test_no_file_of_a_sweep_holds_a_secret(workshop: Workshop) -> None:
    ended, directory = start(workshop, "+model.password=hunter2", "seed=1,2")
    assert ended.status == 2, ended.output
    assert [row["status"] for row in table(directory)] == ["refused", "refused"]
    assert [path for path in directory.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []


def test_ctrl_c_ends_the_whole_sweep_and_still_shows_its_table(workshop: Workshop, tmp_path: Path) -> None:
    config = ("trainer.max_epochs=500", "trainer.log_every_n_steps=1", "seed=1,2,3", f"hydra.sweep.dir={tmp_path}")
    signals = {"once": tmp_path / "0" / "metrics.jsonl", "signal": signal.SIGINT}
    ended = workshop.run("train.py", "-m", *QUICK, *config, **signals)
    assert ended.status == 130 and "Traceback" not in ended.output, ended.output
    assert [row["status"] for row in table(tmp_path)] == ["interrupted", "not begun", "not begun"]
    assert f"sweep {tmp_path}" in ended.output and not (tmp_path / "1").exists()


def test_jobs_in_directories_of_other_names_are_in_the_table(workshop: Workshop) -> None:
    ended, directory = start(workshop, "seed=1,2", "hydra.sweep.subdir=seed_${seed}")
    assert ended.status == 0, ended.output
    assert {row["job"] for row in table(directory)} == {"seed_1", "seed_2"}


def test_mlflow_shows_a_sweep_as_one_parent_with_its_runs(workshop: Workshop, nursery: Nursery, tmp_path: Path) -> None:
    store = ("tracker=mlflow", f"tracker.uri=sqlite:///{tmp_path}/mlflow.db")
    with workshop.zygote.tracking(nursery):
        ended, _ = start(workshop, *store, "trainer.max_epochs=1", "seed=1,2")
    assert ended.status == 0, ended.output
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        parents = database.execute("select value from tags where key = 'mlflow.parentRunId'").fetchall()
        status = dict(database.execute("select run_uuid, status from runs"))
    assert len(parents) == 2 and len(set(parents)) == 1
    assert len(status) == 3 and set(status.values()) == {"FINISHED"} and parents[0][0] in status
    jobs = runs.all_runs(workshop.root)
    assert {one.tracker_id for one in jobs} == status.keys() - {parents[0][0]}
    for one in jobs:
        logged = (one.directory / "train.log").read_text()
        assert not [other.tracker_id for other in jobs if other is not one and other.tracker_id in logged]
    shown = ended.output.splitlines()[-1]
    assert shown.startswith("to look at it: python -m savepoint ui tracker.uri=") and shown.endswith(
        f"/runs/{parents[0][0]}?workflowType=machine_learning"
    )


# The table


def a_job(directory: Path, number: int, *, mode: str, losses: list[object]) -> None:
    job = directory / str(number)
    job.mkdir(parents=True)
    (job / "config.yaml").write_text(f"checkpoint: {{monitor: val/loss, mode: {mode}}}")
    record = {"id": f"run{number}", "status": "finished", "overrides": [f"seed={number}", "optimizer=sgd"]}
    record |= {"name": None, "started": "", "tracker": None, "parents": [], "sweep": None}
    (job / "run.json").write_text(json.dumps(record))
    lines = [{"step": 1, "epoch": epoch, "val/loss": loss} for epoch, loss in enumerate(losses, start=1)]
    (job / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("mode", "best_first"), [("min", "3 0 10 2 1"), ("max", "2 10 0 3 1")])
def test_results_are_ranked_by_the_monitor_and_nan_never_wins(tmp_path: Path, mode: str, best_first: str) -> None:
    for number, losses in {0: [5, 2], 1: ["nan"], 2: ["inf", 4.0], 3: [1, "nan", 3], 10: [6, 3]}.items():
        a_job(tmp_path, number, mode=mode, losses=losses)
    assert [result.number for result in sweep.results(tmp_path)] == best_first.split()


def test_table_shows_only_what_differs_between_the_jobs(tmp_path: Path) -> None:
    a_job(tmp_path, 0, mode="min", losses=[2])
    sweep.note_refused_job(tmp_path / "1", ["seed=1", "optimizer=sgd"], "no")
    path, text = sweep.write_sweep_table(tmp_path)
    assert path.read_text().splitlines()[0] == "job,seed,best val/loss,epoch,status,run"
    assert text.splitlines()[2].split() == ["1", "1", "refused"]
    assert sweep.sweep_status(tmp_path) == "failed"
    assert sweep.results(tmp_path)[1] == Result("1", "refused", {"seed": "1", "optimizer": "sgd"})
