"""`python -m savepoint rm`: nothing is lost that somebody needs, and nothing without a yes."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tools.listed import in_training, listed, save

from savepoint import __main__, runs, system


@pytest.fixture
def run(repository: Path) -> runs.Run:
    one = listed(repository, "aaaa0001", name="base", tracker={"kind": "mlflow", "run_id": "12ab"})
    save(one, 1, 0.5)
    save(one, 2, 0.25)
    return one


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert __main__.main(["rm", *arguments]) == 2
    return capsys.readouterr().err


def test_a_run_is_removed_with_the_empty_directories_around_it(run: runs.Run, repository: Path, said: Any) -> None:
    count = sum(1 for path in run.directory.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in run.directory.rglob("*") if path.is_file()) / 1000
    assert said("rm", "aaaa", "--yes").splitlines() == [
        "run aaaa0001 base finished 2026-01-01 12:00",
        f"  directory    {run.directory}",
        f"  size         {size:.1f} kB in {count} files",
        "  checkpoints  epoch_0002_step_00000046, epoch_0001_step_00000023",
        "Removed run aaaa0001. Its copy in mlflow stays: run 12ab.",
    ]
    assert not (repository / "runs").exists()


def test_other_runs_of_the_day_stay(run: runs.Run, repository: Path, said: Any) -> None:
    other = listed(repository, "bbbb0001", number=1)
    said("rm", "aaaa", "--yes")
    assert [each.id for each in runs.all_runs(repository)] == [other.id]
    assert said("rm", "bbbb", "--yes").endswith("\nRemoved run bbbb0001.\n")


@pytest.mark.parametrize("answer, code", [("y", 0), ("YES", 0), ("n", 1), ("", 1), (None, 1)])
def test_a_terminal_is_asked(
    run: runs.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str | None, code: int
) -> None:
    def asked(question: str) -> str:
        assert question == "Remove it for good? [y/N] "
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", asked)
    assert __main__.main(["rm", "aaaa"]) == code
    assert run.directory.exists() == bool(code)
    assert capsys.readouterr().out.endswith("\nNothing was removed.\n") == bool(code)


def test_without_a_terminal_a_yes_is_needed(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "aaaa") == "error: Nothing was removed: without a terminal to ask on, rm needs --yes.\n"
    assert run.directory.exists()


def test_a_run_in_training_stays(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with in_training(run):
        assert __main__.main(["rm", "aaaa"]) == 2
    error = "error: Run aaaa0001 is being trained by another process. Wait for it, or stop it first.\n"
    assert capsys.readouterr() == ("", error), "it is refused before anybody is asked"
    assert len(list(run.checkpoints.iterdir())) == 2


def test_a_run_that_is_resumed_during_the_question_stays(
    run: runs.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system.files, "is_locked", lambda path: False)
    with in_training(run):
        assert "is being trained by another process" in refused(capsys, "aaaa", "--yes")
    assert len(list(run.checkpoints.iterdir())) == 2


def test_a_parent_stays_while_its_children_exist(run: runs.Run, repository: Path, said: Any, capsys: Any) -> None:
    fork = {"run": "aaaa0001", "checkpoint": "epoch_0001_step_00000023", "sha256": "0" * 64}
    listed(repository, "bbbb0001", number=1, parents=["aaaa0001"])
    listed(repository, "cccc0001", number=2, forked_from=fork)
    error = refused(capsys, "aaaa", "--yes")
    assert error == "error: Run aaaa0001 is the parent of bbbb0001, cccc0001. Remove first what began from it.\n"
    for child in ("bbbb", "cccc", "aaaa"):
        said("rm", child, "--yes")
    assert not (repository / "runs").exists()


def test_a_directory_that_holds_more_than_a_run_stays(run: runs.Run, repository: Path, said: Any, capsys: Any) -> None:
    inner = listed(repository, "bbbb0001", place=f"{run.directory}/inner")
    error = refused(capsys, "aaaa", "--yes")
    assert error == f"error: {run.directory} holds other runs too: {inner.directory}. Remove those first.\n"
    said("rm", str(inner.directory), "--yes")
    (run.directory / "notes.txt").touch()
    assert "\n  other files in it: inner, notes.txt\n" in said("rm", "aaaa", "--yes")


def test_a_run_in_the_repositorys_own_directory_stays(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.create(repository, id="aaaa0001", name=None, config="", overrides=[])
    error = refused(capsys, str(repository), "--yes")
    assert error == f"error: {repository} holds this repository too. Remove the run's files by hand.\n"


def test_a_removal_that_was_cut_short_can_be_repeated(
    run: runs.Run, monkeypatch: pytest.MonkeyPatch, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(system.files, "remove", lambda path: None)
        error = refused(capsys, "aaaa", "--yes")
    assert error.startswith(f"error: {run.directory}: the disk refuses to remove checkpoints, config.yaml, metrics")
    with monkeypatch.context() as patch:
        patch.setattr(system.files, "remove", interrupted)
        assert __main__.main(["rm", "aaaa", "--yes"]) != 0
    assert (run.directory / "run.json").exists()
    said("rm", "aaaa", "--yes")


def interrupted(path: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "Which run? usage: python -m savepoint rm <run> [--yes]"),
        (
            "aaaa@best --yes",
            "rm removes whole runs. Old checkpoints go by checkpoint.keep_last. To remove the run: rm aaaa0001",
        ),
        ("aaaa --force", "rm has no option --force. usage: python -m savepoint rm <run> [--yes]"),
    ],
)
def test_wrong_input_is_one_line(
    run: runs.Run, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert refused(capsys, *arguments.split()) == f"error: {message}\n"
    assert run.directory.exists()


def test_a_disk_that_refuses_is_one_line(
    run: runs.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write into any directory, so the refusal is that of a disk which is mounted to be read."""

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("savepoint.system.files.remove", refuse)
    assert refused(capsys, "aaaa", "--yes") == f"error: {run.directory} cannot be removed: Read-only file system.\n"
    assert (run.directory / "run.json").exists()
