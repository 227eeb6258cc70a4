"""A search by Optuna: its jobs, its study, a resume to the same jobs and bits, and its wrong settings."""

import csv
import sys
from pathlib import Path

import pytest
from tools import pages
from tools.moments import Strike
from tools.processes import REPOSITORY
from tools.share import some
from tools.stores import query
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff
from savepoint.errors import UserError
from savepoint.launch import search

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=2", "trainer.max_epochs=1")
SEARCH = ("hydra/sweeper=optuna", "optimizer=adam,sgd", "hydra.sweeper.n_jobs=2")
CONFIG = (*SEARCH, *SMALL)


def table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "run"} for row in csv.DictReader(file)]


# Optuna chooses the first ten at random, and those after them from results.
@pytest.mark.parametrize("trials", some((5, 13), lambda trials: trials == 5))
def test_a_search_that_was_killed_trains_the_jobs_of_one_that_was_not(
    workshop: Workshop, tmp_path: Path, trials: int
) -> None:
    config = (*CONFIG, f"hydra.sweeper.n_trials={trials}")
    whole, count = tmp_path / "whole", tmp_path / "moments"
    ended = workshop.run("train.py", "-m", *config, f"hydra.sweep.dir={whole}", strike=Strike(count=str(count)))
    assert ended.status == 0, ended.output
    lrs = {row["optimizer.lr"] for row in table(whole)}
    assert len(lrs) == trials and all(0.0001 <= float(lr) <= 0.1 for lr in lrs)
    assert {row["optimizer"] for row in table(whole)} == {"adam", "sgd"}

    moments = int(count.read_text())
    ended = workshop.run("train.py", "-m", *config, strike=Strike(moments // 2, "kill"))
    assert ended.status != 0
    (directory,) = workshop.root.glob("sweeps/*/*")
    for part in (5, 10) if trials > 5 else (5,):
        ended = workshop.run("resume.py", "run=latest-sweep", strike=Strike(moments // part, "ctrl-c"))
    assert ended.status == 130 and "jobs have not finished. To go on: python resume.py run=" in ended.output
    assert {row["status"] for row in table(directory)} == {"finished", "interrupted", "not begun"}
    ended = workshop.run("resume.py", "run=latest-sweep")
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    assert table(directory) == table(whole)
    for number in range(trials):
        assert diff.diff_runs(*(runs.read(each / str(number)) for each in (whole, directory))) == []
    kept = query(directory, "select value, number from trial_values join trials using (trial_id)", database="study.db")
    scores = {str(number): f"{score:.6g}" for score, number in kept}
    assert scores == {row["job"]: row["best val/loss"] for row in table(directory)}

    if trials == 5:
        return
    ended = workshop.run("resume.py", "run=latest-sweep", "+jobs='hydra.sweeper.n_trials=1'")
    assert ended.status == 0 and [row["job"] for row in table(directory) if "-" in row["job"]] == ["1-0"]
    assert query(directory, "select count(*) from trials", database="study.db") == [(trials + 1,)]


def test_a_failed_job_does_not_end_a_search(workshop: Workshop) -> None:
    ended = workshop.run("train.py", "-m", *CONFIG, "hydra.sweeper.n_trials=4", "optimizer=adam", "optimizer.lr=0.1,-1")
    assert ended.status == 2 and ended.output.splitlines()[-1].startswith("error: optimizer.lr=-1: "), ended.output
    (directory,) = workshop.root.glob("sweeps/*/*")
    found = [(row["optimizer.lr"], row["status"]) for row in table(directory)]
    assert {*found} == {("0.1", "finished"), ("-1", "refused")} and len(found) == 4


WRONG = {
    "hydra.sweeper.n_trials=x": "hydra.sweeper.n_trials=x: must be a whole number of 1 or more.",
    "hydra.sweeper.n_jobs=0": "hydra.sweeper.n_jobs=0: must be a whole number of 1 or more.",
    "hydra.sweeper.seed=-1": "hydra.sweeper.seed=-1: must be a whole number of 0 or more.",
    "~hydra.sweeper.n_trials": "hydra.sweeper.n_trials=None: must be a whole number of 1 or more.",
    "+hydra.sweeper.trials=3": "hydra.sweeper has no key trials. It has: n_trials, n_jobs, seed, params.",
    "optimizer.lr=interval(0.2,0.1)": "optimizer.lr=interval(0.2,0.1): the first number must be at most the second.",
    "optimizer.lr=tag(log,interval(0,1))": "optimizer.lr=tag(log,interval(0,1)): the first number must be more than 0, "
    "and at most the second.",
    "checkpoint.mode=min,max": "checkpoint.mode says which job is best. Give it one value, and search others.",
    "hydra.sweeper.params=null": "Optuna has nothing to search. Give a key several values: "
    "optimizer.lr=interval(0.001,0.1)",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_is_refused_in_one_line_and_leaves_nothing(workshop: Workshop, override: str) -> None:
    ended = workshop.run("train.py", "-m", "hydra/sweeper=optuna", *SMALL, override)
    assert (ended.status, ended.output.splitlines()[-1]) == (2, f"error: {WRONG[override]}")
    assert [*workshop.root.glob("sweeps/*/*")] == []


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^A package is missing: pip install 'optuna>=4,<6'$"):
        search.OptunaSweeper(n_trials=1, n_jobs=1, seed=0).sweep([])


def test_the_command_of_the_page_runs(workshop: Workshop) -> None:
    page = pages.read(REPOSITORY / "docs" / "sweeps.md")
    (search,) = [arguments for _, script, *arguments in page.commands if SEARCH[0] in arguments]
    ended = workshop.run("train.py", *search, *SMALL[:2], *SMALL[3:], "hydra.sweeper.n_trials=2")
    assert ended.status == 0, ended.output
