"""What a person sees, and what train.log keeps of it."""

import itertools
import logging
import math
import re
from pathlib import Path

import pytest

from savepoint.training import progress

log = logging.getLogger("savepoint")
VALUES = {"train/loss": 0.12345, "val/loss": 123456.0, "lr": 1e-5, "system/samples_per_second": 4321.9}
HEADER = "epoch step train/loss val/loss       lr samples/s"


def test_a_pipe_gets_one_row_an_epoch_under_one_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.logs(tmp_path), progress.show(epochs=3, steps=30, done=0) as shown:
        for epoch in (1, 2):
            for step in range(1, 11):
                shown.advance(epoch=epoch - 1, step=step)
            shown.row(epoch=epoch, step=10 * epoch, values=VALUES)
    rows = [
        HEADER,
        "  1/3   10     0.1235  123,456    1e-05     4,322",
        "  2/3   20     0.1235  123,456    1e-05     4,322",
    ]
    assert capsys.readouterr().out.splitlines() == rows
    logged = (tmp_path / "train.log").read_text().splitlines()
    assert [line.partition(" INFO savepoint: ")[2] for line in logged] == rows


def test_a_process_that_resumes_prints_the_header_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for epoch in (1, 2):
        with progress.logs(tmp_path), progress.show(epochs=None, steps=30, done=0) as shown:
            shown.row(epoch=epoch, step=10, values=VALUES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] == HEADER
    assert [line.split()[:2] for line in lines[1::2]] == [["1", "10"], ["2", "10"]]


CLASSES = {f"{split}/{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}
METRICS: dict[str, dict[str, float]] = {
    "one": {"val/loss": 0.5},
    "usual": CLASSES | {"lr": 1e-3, progress.SPEED: 4321.9},
    "averaged": CLASSES | {"val/ema_loss": 0.5, "val/ema_accuracy": 0.5, "lr": 1e-3, progress.SPEED: 4321.9},
    "groups": {"train/loss": 0.5, "val/loss": 0.5, "lr": 1e-3} | {f"lr/{index}": 1e-3 for index in range(1, 12)},
    "long names": {"train/loss": 0.5} | {f"val/{'m' * size}_at_{size}": 0.5 for size in (3, 12, 40, 200)},
}
ODD = (0.0, -0.0, 1e-8, -1.23456e-5, -9.87654e-301, 123456789.0, -99999.5, math.nan, math.inf, -math.inf, 999.99996)


@pytest.mark.parametrize("values", METRICS.values(), ids=METRICS.keys())
def test_no_row_is_wider_than_the_terminal_and_columns_stay_aligned(values: dict[str, float]) -> None:
    for width in (1, 10, 15, 20, 24, 40, 79, 80, 100, 120, 200):
        for epochs, steps in ((None, 7), (20, 460), (1000, 2_300_000)):
            table = progress.Table(width=width, epochs=epochs, steps=steps)
            header, *rows = table.rows(epoch=1, step=1, values=values)
            for value in ODD:
                rows += table.rows(epoch=2, step=2, values=dict.fromkeys(values, value))
            rows += table.rows(epoch=epochs or steps, step=steps, values=values)
            assert len(header) <= width and {len(row) for row in rows} == {len(header)}
            if width >= 20:
                assert header.split()[:2] == ["epoch", "step"]
                assert all(column_ends(row) == column_ends(header) for row in rows), "\n".join((header, *rows))


def column_ends(row: str) -> list[int]:
    return [match.end() for match in re.finditer(r"\S+", row)]


def test_eighty_columns_hold_what_is_usual_and_wider_ones_hold_more() -> None:
    def columns(width: int, name: str) -> list[str]:
        return progress.Table(width=width, epochs=20, steps=460).rows(epoch=1, step=1, values=METRICS[name])[0].split()

    assert columns(80, "usual") == ["epoch", "step", *CLASSES, "lr", "samples/s"]
    assert columns(40, "usual") == ["epoch", "step", "train/loss", "val/loss"], "losses first"
    assert columns(50, "usual") == ["epoch", "step", "train/loss", "val/loss", "val/accuracy"], "then validation"
    assert columns(80, "averaged") == [
        "epoch",
        "step",
        "train/loss",
        *list(CLASSES)[2:],
        "val/ema_loss",
        "val/ema_accuracy",
    ]
    for name in METRICS:
        shown = [columns(width, name) for width in range(15, 300)]
        assert all(set(narrow) <= set(wide) for narrow, wide in itertools.pairwise(shown))
        assert len(shown[-1]) == 2 + len(METRICS[name])


def test_a_metric_that_a_row_lacks_leaves_its_cell_empty_and_a_new_one_has_a_new_header() -> None:
    table = progress.Table(width=80, epochs=2, steps=10)
    header, _ = table.rows(epoch=1, step=5, values={"train/loss": 1.0, "val/loss": 2.0})
    (row,) = table.rows(epoch=2, step=10, values={"val/loss": 3.0})
    assert row.split() == ["2/2", "10", "3"] and len(row) == len(header)
    header, row = table.rows(epoch=2, step=10, values={"val/loss": 3.0, "val/new": 4.0})
    assert header.split() == ["epoch", "step", "val/loss", "val/new"] and row.split() == ["2/2", "10", "3", "4"]


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
    bar = progress._Bar(progress.Table(width=80, epochs=5, steps=1000), 5, Terminal(), 0)
    for step in range(1, 1001):
        bar.advance(epoch=0, step=step)
    assert drawn[0] == 1 and len(drawn) == 10, "of a second, 1,000 updates"
