"""Runs and checkpoints that are not where they were: each command does what it can with them, and says what it cannot."""

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.processes import REPOSITORY, Ended
from tools.share import some
from tools.workshop import NAMES, Workshop

from savepoint import runs

FROZEN = REPOSITORY / "tests" / "frozen" / "format_1" / "run"
QUICK = ("tracker=none", "trainer.threads=1")
# For each command: its arguments, with PLACE for the run or the checkpoint and NEW for a directory to write to.
COMMANDS = {
    "resume": ("resume.py", "run=PLACE", "trainer.max_epochs=4", "tracker=none"),
    "fork": ("resume.py", "run=PLACE", "optimizer.lr=0.001", "trainer.max_epochs=6", "tracker=none", "hydra.run.dir=NEW"),
    "init_from": ("train.py", "init_from=PLACE", "model.hidden=[8]", "data.limit_batches=2", "trainer.max_epochs=1",
                  "hydra.run.dir=NEW", *QUICK),
    "evaluate": ("savepoint", "evaluate", "PLACE"),
    "export": ("savepoint", "export", "PLACE", "--to", "NEW"),
    "show": ("savepoint", "show", "PLACE"),
    "verify": ("savepoint", "verify", "PLACE"),
    "diff": ("savepoint", "diff", "PLACE", "PLACE"),
    "plot": ("savepoint", "plot", "PLACE", "--to", "NEW.png"),
}  # fmt: skip
# What is refused, in words; a command that is not here works.
REFUSED = {
    "read-only": {"resume": "The run directory cannot be written: Read-only file system."},
    "alone": {"plot": "is a checkpoint without its run"},
}


@pytest.fixture
def placed(workshop: Workshop, directory: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes what a kind of copy is, and returns its path."""

    def make(kind: str) -> Path:
        listed = workshop.root / "runs" / "2026-01-01" / "000001-ab001122"
        shutil.copytree(directory, listed)
        if kind == "moved":
            return Path(shutil.move(listed, tmp_path / "elsewhere and renamed"))
        if kind == "copied":
            return Path(shutil.copytree(listed, listed.with_name("000002-copy")))
        if kind == "alone":
            alone = Path(shutil.copytree(listed / "checkpoints" / NAMES[-1], tmp_path / "alone" / NAMES[-1]))
            shutil.rmtree(workshop.root / "runs")
            return alone
        if kind == "older format":
            return Path(shutil.copytree(FROZEN, tmp_path / "frozen"))
        return listed

    return make


KINDS = ("moved", "copied", "read-only", "alone", "older format")


def run(workshop: Workshop, name: str, place: Path, new: Path, *, read_only: bool) -> Ended:
    script, *arguments = (each.replace("PLACE", str(place)).replace("NEW", str(new)) for each in COMMANDS[name])
    fault = {"disk": place, "at": 1, "error": errno.EROFS, "calls": None} if read_only else {}
    return workshop.run(script, *arguments, **fault)


@pytest.mark.parametrize("kind", some(KINDS, lambda kind: kind in ("read-only", "alone", "older format")))
def test_each_command_does_what_it_can(
    workshop: Workshop, placed: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    place = placed(kind)
    for name in COMMANDS:
        ended = run(workshop, name, place, tmp_path / name, read_only=kind == "read-only")
        assert "Traceback" not in ended.output, (name, ended.output)
        if name == "init_from" and kind == "older format":
            continue  # of another model than the command's
        if words := REFUSED.get(kind, {}).get(name):
            assert ended.status == 2 and words in ended.output, (name, ended.output)
            assert len(re.findall("^error: ", ended.output, re.MULTILINE)) == 1, (name, ended.output)
        else:
            assert ended.status == 0, (name, ended.output)


def test_a_checkpoint_alone_is_forked(workshop: Workshop, placed: Callable[[str], Path], tmp_path: Path) -> None:
    place = placed("alone")
    ended = workshop.run("resume.py", f"run={place}", "trainer.max_epochs=4", "tracker=none")
    assert ended.status == 0 and f"forked from {runs.all_runs(workshop.root)[0].record['parents'][0]}@" in ended.output
    (made,) = runs.all_runs(workshop.root)
    assert made.record["forked_from"]["directory"] == str(place)
    shutil.rmtree(made.checkpoints)
    ended = workshop.run("resume.py", f"run={made.id}")
    assert ended.status == 0 and "starts over" in ended.output, ended.output
    (place / "manifest.json").unlink()
    ended = workshop.run("resume.py", f"run={place}")
    assert ended.status == 2 and "is a checkpoint without its run" in ended.output, ended.output


def test_a_copied_run_is_named_by_its_directory(workshop: Workshop, placed: Callable[[str], Path]) -> None:
    run_id = runs.read(placed("copied")).id
    for name in ("resume.py", "savepoint"):
        arguments = (f"run={run_id}",) if name == "resume.py" else ("show", run_id)
        ended = workshop.run(name, *arguments)
        assert ended.status == 2 and f"Run {run_id} has been copied. Give one of its directories" in ended.output


def test_a_run_of_another_repository_is_continued_there_and_may_be_forked_here(
    workshop: Workshop, placed: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "src" / "savepoint").mkdir(parents=True)
    (other / "resume.py").touch()
    place = Path(shutil.move(placed("moved"), other / "runs" / "2026-01-01" / "000001-x"))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for query in (str(place), f"{place}@last", str(place / "checkpoints" / NAMES[-1])):
        ended = workshop.run("resume.py", f"run={query}", "trainer.max_epochs=4", "tracker=none")
        told = f"error: {query} is a run of another repository, {other}. Continue it there: python resume.py run="
        assert ended.status == 2 and told in ended.output and ended.output.count("\n") == 1, ended.output
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert not list(workshop.root.glob("runs/*/*"))
    ended = run(workshop, "fork", place, tmp_path / "fork", read_only=False)
    assert ended.status == 0, ended.output
