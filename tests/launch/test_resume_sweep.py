"""A sweep that was interrupted is resumed by its id: what is done is skipped, the rest ends in the same bits."""

import collections
import csv
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from tools.moments import Strike
from tools.share import some
from tools.stores import query
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff
from savepoint.runs import sweep as sweeps

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=3", "data.batch_size=32")
CONFIG = (*SMALL, "trainer.max_epochs=2", "data.dataset.augment=true", "optimizer.lr=0.01,0.1", "seed=1,2")


def table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "run"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A sweep that nothing interrupted, and the number of moments that its training has."""
    directory, count = tmp_path_factory.mktemp("whole") / "sweep", tmp_path_factory.mktemp("count") / "moments"
    ended = the_workshop.run("train.py", "-m", *CONFIG, f"hydra.sweep.dir={directory}", strike=Strike(count=str(count)))
    assert ended.status == 0, ended.output
    return directory, int(count.read_text())


def begin(workshop: Workshop, at: int, how: str) -> Path:
    """Start a sweep that is interrupted. Returns: its directory."""
    ended = workshop.run("train.py", "-m", *CONFIG, strike=Strike(at, how))
    assert ended.status != 0, ended.output
    (directory,) = (workshop.root / "sweeps").glob("*/*")
    return directory


TRIALS = [*range(6)]


@pytest.mark.parametrize("trial", some(TRIALS, lambda trial: trial < 2))
def test_a_sweep_that_was_killed_anywhere_ends_in_the_same_table_and_bits(
    workshop: Workshop, whole: tuple[Path, int], trial: int
) -> None:
    chance = random.Random(f"{SEED} {trial}")
    expected, moments = whole
    hows = ("kill", "term", "ctrl-c")
    directory = begin(workshop, chance.randint(1, moments - 20), chance.choice(hows))
    ended = workshop.run("resume.py", "run=latest-sweep", strike=Strike(chance.randint(1, moments // 2), "kill"))
    assert ended.status in (0, -signal.SIGKILL), ended.output
    ended = workshop.run("resume.py", f"run={runs.sweep_of(directory).id}")
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    assert table(directory) == table(expected), f"SAVEPOINT_TEST_SEED={SEED}"
    for number in range(4):
        pair = [runs.read(sweep / str(number)) for sweep in (expected, directory)]
        assert diff.diff_runs(*pair) == [], f"job {number}; SAVEPOINT_TEST_SEED={SEED}"


def test_what_has_not_begun_is_in_the_table_and_the_command_that_goes_on_is_told(
    workshop: Workshop, whole: tuple[Path, int]
) -> None:
    directory = workshop.root / "sweeps" / "today" / "000000-sweep001"
    at = Strike(whole[1] // 3, "ctrl-c")
    ended = workshop.run("train.py", "-m", *CONFIG, f"hydra.sweep.dir={directory}", strike=at)
    assert ended.status == 130, ended.output
    assert [row["status"] for row in table(directory)] == ["finished", "interrupted", "not begun", "not begun"]
    assert "3 of 4 jobs have not finished. To go on: python resume.py run=sweep001\n" in ended.output
    record = json.loads((directory / "sweep.json").read_bytes())
    assert record["command"] == [*CONFIG] and len(record["jobs"]) == 4
    assert record["jobs"][3][-2:] == ["optimizer.lr=0.1", "seed=2"]
    # By a prefix of the id, and by the directory: what is done is left alone.
    ended = workshop.run("resume.py", "run=swee")
    assert ended.status == 0 and ended.output.count("finished before") == 1, ended.output
    commands = [len(runs.read(directory / str(number)).record["commands"]) for number in range(4)]
    assert commands == [1, 2, 1, 1]
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*/checkpoints/*/*")}
    ended = workshop.run("resume.py", f"run={directory}")
    assert ended.status == 0 and ended.output.count("finished before") == 4, ended.output
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/checkpoints/*/*")} == before


def test_a_signal_in_the_last_moments_of_a_job_ends_the_sweep_too(workshop: Workshop, whole: tuple[Path, int]) -> None:
    directory = begin(workshop, whole[1] // 4 - 10, "ctrl-c")
    assert [row["status"] for row in table(directory)] == ["finished", "not begun", "not begun", "not begun"]


def test_the_tracker_has_one_parent_and_each_point_once(
    workshop: Workshop, whole: tuple[Path, int], nursery: Nursery, schema: Path, tmp_path: Path
) -> None:
    shutil.copy(schema, tmp_path / "mlflow.db")
    store = ("tracker=mlflow", f"tracker.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    config = (*store, *CONFIG[1:], f"hydra.sweep.dir={tmp_path / 'sweep'}")
    with workshop.zygote.tracking(nursery):
        ended = workshop.run("train.py", "-m", *config, strike=Strike(whole[1] // 3, "kill"))
        assert ended.status == -signal.SIGKILL, ended.output
        runs.read(tmp_path / "sweep" / "0").update(tracker=None)  # as if nobody had heard its id
        ended = workshop.run("resume.py", f"run={tmp_path / 'sweep'}", store[1])
    assert ended.status == 0 and "has not stored" not in ended.output, ended.output
    statuses = query(tmp_path, "select status, count(*) from runs group by status")
    assert statuses == [("FINISHED", 5)], "four jobs and their parent"
    assert query(tmp_path, "select count(distinct value) from tags where key = 'mlflow.parentRunId'") == [(1,)]
    for number in range(4):
        run = runs.read(tmp_path / "sweep" / str(number))
        logged = [
            (key, line["step"])
            for line in runs.read_history(run.metrics)
            for key in line
            if key not in ("step", "time")
        ]
        shown = query(tmp_path, "select key, step from metrics where run_uuid = ?", run.tracker_id)
        assert collections.Counter(shown) == collections.Counter(logged)


def test_failed_and_refused_jobs_are_tried_again_where_that_is_asked_for(workshop: Workshop, tmp_path: Path) -> None:
    config = (*SMALL[:2], "data.limit_batches=4", "model=raising,mlp", "trainer.max_epochs=-1,1")
    assert workshop.run("train.py", "-m", *config, f"hydra.sweep.dir={tmp_path}").status != 0
    kinds = ["finished", "refused", "failed", "refused"]
    assert sorted(row["status"] for row in table(tmp_path)) == sorted(kinds)
    ended = workshop.run("resume.py", f"run={tmp_path}")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert ended.output.count("refused before; retry=failed") == 2 and "failed before; retry=failed" in ended.output
    assert f"3 of 4 jobs have not finished. To go on: python resume.py run={tmp_path.name} retry=failed" in ended.output
    ended = workshop.run("resume.py", f"run={tmp_path}", "retry=failed")
    assert ended.status != 0 and "a bug in the model" in ended.output, ended.output
    assert "trainer.max_epochs=-1: must be at least 1." in ended.output
    assert sorted(row["status"] for row in table(tmp_path)) == sorted(kinds)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run=latest-sweep",), "There are no sweeps yet under "),
        (("run={sweep}", "optimizer.lr=3"), "optimizer.lr=3: a sweep is resumed with its own overrides."),
        (("run={sweep}", "retry=all"), "retry=all: a sweep is resumed with its own overrides."),
    ],
    ids=["none", "an override", "a wrong retry"],
)
def test_what_cannot_be_is_one_line(
    workshop: Workshop, whole: tuple[Path, int], arguments: tuple[str, ...], told: str
) -> None:
    typed = [each.format(sweep=whole[0]) for each in arguments]
    ended = workshop.run("resume.py", *typed)
    assert ended.status == 2 and ended.output.startswith(f"error: {told}") and ended.output.count("\n") == 1, (
        ended.output
    )


def test_a_record_that_is_damaged_is_named(workshop: Workshop, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"command": [1], "jobs": [], "started": ""}', '{"command": "x"}'):
        (tmp_path / "sweep.json").write_text(text)
        ended = workshop.run("resume.py", f"run={tmp_path}")
        assert ended.status == 2 and f"{tmp_path / 'sweep.json'} cannot be read: " in ended.output, ended.output


def test_jobs_are_added_to_a_sweep_and_resumed_with_it(workshop: Workshop, whole: tuple[Path, int]) -> None:
    directory = begin(workshop, 2, "kill")
    more = "+jobs=seed=3,1 optimizer.lr=0.01 data.dataset.augment=false"
    ended = workshop.run("resume.py", "run=latest-sweep", more, strike=Strike(whole[1] + 4, "kill"))
    assert ended.status == -signal.SIGKILL, ended.output
    assert {result.number for result in runs.results(directory)} == {"0", "1", "2", "3", "1-0", "1-1"}
    ended = workshop.run("resume.py", "run=latest-sweep", "+jobs=model.hidden=[4] seed=1 optimizer.lr=0.01")
    assert ended.status == 0 and ended.output.count("finished before") == 4, ended.output
    rows = {row["job"]: row for row in table(directory)}
    assert [row for job, row in sorted(rows.items()) if job in "0123"] and len(rows) == 7
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert [rows[job]["seed"] for job in ("1-0", "1-1", "2-0")] == ["3", "1", "1"]
    assert [rows[job]["data.dataset.augment"].lower() for job in ("3", "1-0")] == ["true", "false"]
    for number in range(4):
        assert diff.diff_runs(*(runs.read(sweep / str(number)) for sweep in (whole[0], directory))) == []
    added = json.loads((directory / "sweep.json").read_bytes())["added"]
    assert [len(batch["jobs"]) for batch in added] == [2, 1]
    order = [path.name for path in sorted((path for path in directory.iterdir() if path.is_dir()), key=sweeps._order)]
    assert order == ["0", "1", "2", "3", "1-0", "1-1", "2-0"]


def test_jobs_that_cannot_be_composed_are_not_added(workshop: Workshop) -> None:
    directory = workshop.root / "sweeps" / "today" / "000000-sweep002"
    ended = workshop.run("train.py", "-m", *SMALL, "trainer.max_epochs=1", "seed=1,2", f"hydra.sweep.dir={directory}")
    assert ended.status == 0, ended.output
    before = (directory / "sweep.json").read_bytes()
    for more, words in (("sed=3", "sed"), ("seed='", "quotation"), ("seed", "seed")):
        ended = workshop.run("resume.py", "run=sweep002", f"+jobs={more}")
        assert ended.status == 2 and words in ended.output.splitlines()[-1] and "Traceback" not in ended.output, (
            ended.output
        )
        assert (directory / "sweep.json").read_bytes() == before
