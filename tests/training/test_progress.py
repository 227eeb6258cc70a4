"""What a person sees, and what train.log keeps of it."""

import logging
from pathlib import Path

import pytest

from savepoint.training import progress

log = logging.getLogger("savepoint")
VALUES = {"train/loss": 0.12345, "val/loss": 123456.0, "lr": 1e-5, "system/samples_per_second": 4321.9}


def test_a_pipe_gets_one_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.logs(tmp_path), progress.show(epochs=3, steps=30, done=0) as shown:
        for step in range(1, 11):
            shown.advance(epoch=0, step=step)
        shown.epoch(epoch=1, step=10, values=VALUES)
    said = "epoch 1/3  step 10  train/loss 0.1235  val/loss 1.235e+05  lr 1e-05  4,322 samples/s\n"
    assert capsys.readouterr().out == said
    assert (tmp_path / "train.log").read_text().endswith(f"INFO savepoint: {said}")


def test_run_without_a_number_of_epochs_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.logs(tmp_path), progress.show(epochs=None, steps=30, done=0) as shown:
        shown.epoch(epoch=1, step=10, values=VALUES)
    assert capsys.readouterr().out.startswith("epoch 1  step 10")


def test_paths_are_short_on_the_terminal_and_without_the_run_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "a"
    directory.mkdir()
    with progress.logs(directory):
        log.info("a checkpoint %s, data %s", directory / "checkpoints" / "x", Path("/data"))
        log.info("at %s", Path("a/trace.json"))
        log.info("in words: %s", str(directory))
    shown = "a checkpoint a/checkpoints/x, data /data\nat a/trace.json\n"
    assert capsys.readouterr().out == f"{shown}in words: {directory}\n"
    kept = [line.partition("savepoint: ")[2] for line in (directory / "train.log").read_text().splitlines()]
    assert kept == ["a checkpoint <run>/checkpoints/x, data /data", "at <run>/trace.json", "in words: <run>"]


def test_log_holds_no_secret_and_the_traceback_is_only_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.logs(tmp_path):
        try:
            raise RuntimeError("cannot open ftp://me:hunter2@host")
        except RuntimeError:
            log.exception("The run failed.")
    assert capsys.readouterr().out == ""
    text = (tmp_path / "train.log").read_text()
    assert "RuntimeError: cannot open ftp://me:[redacted]@host" in text and "Traceback" in text


def test_log_that_cannot_be_written_is_not_worth_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    with progress.logs(tmp_path):
        log.info("goes on")
    captured = capsys.readouterr()
    assert captured.out == "goes on\n" and captured.err == ""


def test_logging_is_as_before_once_a_run_is_over(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    with progress.logs(tmp_path):
        assert logging.getLogger().level == logging.INFO
    assert (list(root.handlers), root.level) == before


def test_bar_is_drawn_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    class Terminal:
        tasks = (type("Task", (), {"speed": 100.0})(),)

        def update(self, task: int, *, completed: int, **_: object) -> None:
            drawn.append(completed)

        def refresh(self) -> None:
            pass

    clock = iter(step / 1000 for step in range(1, 1001))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = progress._Bar(5, Terminal(), 0)
    for step in range(1, 1001):
        bar.advance(epoch=0, step=step)
    assert drawn[0] == 1 and len(drawn) == 10, "of a second, 1,000 updates"
