"""resume=auto: one unchanged command starts a run, continues it as often as it was stopped, and ends with it."""

import errno
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tools import pages, slurm
from tools.moments import Strike
from tools.processes import REPOSITORY
from tools.share import some
from tools.workshop import Workshop, copy_repository

from savepoint import runs
from savepoint.commands import diff
from savepoint.errors import UserError
from savepoint.system import files

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=4", "data.batch_size=16")
COMMAND = (*SMALL, "trainer.max_epochs=3", "model.dropout=0.1")
AUTO = (*COMMAND, "name=baseline", "resume=auto")
PAGE = REPOSITORY / "docs" / "slurm.md"


@pytest.fixture(scope="module")
def whole(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    ended = the_workshop.run("train.py", *COMMAND, "name=baseline", f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    return directory


def only(workshop: Workshop) -> runs.Run:
    (run,) = runs.all_runs(workshop.root)
    return run


def test_one_command_goes_on_to_the_same_bits_however_often_it_is_stopped(workshop: Workshop, whole: Path) -> None:
    for at, how, code in ((30, "usr1", 75), (30, "kill", -9), (40, "term", 75), (2, "kill", -9)):
        ended = workshop.run("train.py", *AUTO, strike=Strike(at, how))
        assert ended.status == code, ended.output
        assert code == -9 or only(workshop).record["status"] == "interrupted"
        assert code == -9 or "The same command goes on." in ended.output or "Stopped at once" in ended.output
    ended = workshop.run("train.py", *AUTO)
    assert ended.status == 0, ended.output
    assert diff.diff_runs(runs.read(whole), only(workshop)) == []
    assert len(list((workshop.root / "runs").glob("*/*"))) == 1


def test_a_finished_run_says_so_and_may_be_made_longer(workshop: Workshop) -> None:
    assert workshop.run("train.py", *AUTO).status == 0
    ended = workshop.run("train.py", *AUTO)
    assert ended.status == 0 and "the run is finished" in ended.output and "trainer.max_epochs=6" in ended.output
    ended = workshop.run("train.py", *AUTO, "trainer.max_epochs=4", "checkpoint.keep_last=5")
    assert ended.status == 0 and "resumed from epoch_0003" in ended.output, ended.output
    run = only(workshop)
    assert (
        runs.read_history(run.metrics)[-1]["epoch"] == 4
        and runs.read_config(run.directory)["trainer"]["max_epochs"] == 4
    )
    assert "resume" not in runs.read_config(run.directory)


def test_sigusr1_exits_with_75_whatever_the_command(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *COMMAND, strike=Strike(30, "usr1"))
    assert ended.status == 75 and "The same command" not in ended.output, ended.output
    ended = workshop.run("resume.py", "run=latest", strike=Strike(12, "usr1"))
    assert ended.status == 75, ended.output
    assert workshop.run("resume.py", "run=latest").status == 0


def test_the_newest_run_of_the_name_is_meant_and_others_are_left_alone(workshop: Workshop) -> None:
    for name in ("baseline", "other"):
        assert workshop.run("train.py", *COMMAND, f"name={name}").status == 0
    assert workshop.run("train.py", "-m", *COMMAND, "seed=0", "name=baseline").status == 0
    ended = workshop.run("train.py", *AUTO)
    first = next(run for run in runs.all_runs(workshop.root) if run.record["name"] == "baseline")
    assert ended.status == 0 and f"run {first.id} " in ended.output, ended.output
    assert len(runs.all_runs(workshop.root)) == 3


def test_a_directory_chosen_by_hand_is_continued_too(workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    place = f"hydra.run.dir={tmp_path / 'here'}"
    assert workshop.run("train.py", *AUTO, place, strike=Strike(60, "kill")).status == -9
    assert workshop.run("train.py", *AUTO, place).status == 0
    assert diff.diff_runs(runs.read(whole), runs.read(tmp_path / "here")) == []


def test_weights_of_latest_are_those_that_the_run_began_with(workshop: Workshop) -> None:
    assert workshop.run("train.py", *COMMAND).status == 0
    begin = (*AUTO, "init_from=latest")
    assert workshop.run("train.py", *begin, strike=Strike(90, "kill")).status == -9
    assert workshop.run("train.py", *COMMAND).status == 0
    ended = workshop.run("train.py", *begin)
    first = runs.all_runs(workshop.root)[0]
    assert ended.status == 0 and ("resumed from" in ended.output or f"weights from run {first.id}" in ended.output)
    ended = workshop.run("train.py", *AUTO)
    assert ended.status == 2 and "  init_from  " in ended.output, ended.output


# What is refused


def refused(workshop: Workshop, *arguments: str) -> str:
    before = [run.directory for run in runs.all_runs(workshop.root)]
    ended = workshop.run("train.py", *arguments)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert [run.directory for run in runs.all_runs(workshop.root)] == before
    return ended.output[ended.output.index("error: ") :]


def test_another_config_under_the_same_name_is_refused_with_the_difference(workshop: Workshop) -> None:
    assert workshop.run("train.py", *AUTO).status == 0
    run = only(workshop)
    told = refused(workshop, *AUTO, "optimizer.lr=0.3", "seed=1")
    assert told == (
        f"error: Run {run.id} is named baseline and was started with another config:\n"
        "  optimizer.lr  0.005 → 0.3\n  seed  0 → 1\n"
        f"Give another name=…, or fork it: python resume.py run={run.id} …\n"
    )
    assert [each.name for each in (workshop.root / "runs").glob("*/*")] == [run.directory.name], "nothing is left"


def test_a_wrong_resume_is_one_line(workshop: Workshop) -> None:
    assert "resume=yes: must be null, auto or force." in refused(workshop, *COMMAND, "name=a", "resume=yes")
    assert "resume=auto continues the run of a name: add name=…" in refused(workshop, *COMMAND, "resume=auto")
    ended = workshop.run("train.py", "-m", *COMMAND, "name=a", "resume=auto", "seed=1,2")
    assert ended.status == 2 and "resume=auto continues one run, and -m starts several" in ended.output, ended.output


def test_a_run_in_training_is_refused_unless_forced(workshop: Workshop) -> None:
    assert workshop.run("train.py", *AUTO, strike=Strike(90, "kill")).status == -9
    lock = only(workshop).hold()
    try:
        assert "is being trained by another process. Wait for it, or stop it first." in refused(workshop, *AUTO)
        assert workshop.run("resume.py", "run=latest").status == 2
        ended = workshop.run("resume.py", "run=latest", "--force", strike=Strike(25, "term"))
        assert ended.status == 143 and "goes on nevertheless: that was forced" in ended.output, ended.output
        ended = workshop.run("train.py", *(each for each in AUTO if each != "resume=auto"), "resume=force")
        assert ended.status == 0, ended.output
    finally:
        lock.release()


def test_a_disk_without_locks_starts_runs_and_says_what_continuing_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: files.Lock) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.Lock, "acquire", none)
    runs.hold(tmp_path, "Run x", new=True).release()
    runs.hold(tmp_path, "Run x", force=True).release()
    with pytest.raises(
        UserError, match=r"is on a file system without locks \(No locks available\).*--force.*resume=force"
    ):
        runs.hold(tmp_path, "Run x")


# docs/slurm.md


def test_the_command_of_the_page_runs(workshop: Workshop) -> None:
    (line,) = pages.read(PAGE).commands
    for _ in range(2):
        assert workshop.run(line[1], *line[2:], *SMALL).status == 0
    assert only(workshop).record["name"] == "baseline"


def test_the_scripts_of_the_page_are_sound() -> None:
    scripts = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)


@pytest.mark.parametrize(("times", "seed"), some([(2, 1), (30, 2), (30, 3)], lambda case: case[0] == 2))
def test_a_job_that_is_requeued_ends_in_the_bits_of_one_that_was_not(
    whole: Path, tmp_path: Path, times: int, seed: int
) -> None:
    """The job script of the page under the stand-in: told by SIGUSR1, preempted by SIGTERM, or lost with its node."""
    root = tmp_path / "clone"
    root.mkdir()
    copy_repository(root)
    text = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
    options: dict[str, Any] = {"trainer.max_epochs=100": " ".join(COMMAND)}
    for old, new in options.items():
        assert old in text
        text = text.replace(old, new)
    script = tmp_path / "job.sh"
    script.write_text(text)
    job = slurm.Job(script, root, tmp_path / "slurm", {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"})
    slurm.run(job, times=times, seed=seed, span=(0.5, 6.0))
    assert job.ends[-1] == "exit 0", (job.ends, job.log[-3000:])
    (run,) = runs.all_runs(root)
    assert diff.diff_runs(runs.read(whole), run) == [], job.ends
