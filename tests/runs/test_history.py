"""metrics.jsonl: whole lines, strict JSON, cut back to what a checkpoint knows."""

import contextlib
import json
import math
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from savepoint.errors import UserError
from savepoint.runs import history
from savepoint.runs.history import History


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def filled(path: Path, lines: int) -> bytes:
    log = History(path)
    for step in range(1, lines + 1):
        log.append(step=step, epoch=0, values={"train/loss": 1 / step})
    log.close()
    return path.read_bytes()


def test_a_line_is_strict_json_with_step_epoch_time_and_values(path: Path) -> None:
    log = History(path)
    log.append(step=230, epoch=10, values={"train/loss": 0.1, "lr": 1e-3})
    log.close()
    (line,) = path.read_text().splitlines()
    value = json.loads(line)
    assert list(value) == ["step", "epoch", "time", "train/loss", "lr"]
    assert (value["step"], value["epoch"], value["train/loss"], value["lr"]) == (230, 10, 0.1, 1e-3)
    assert value["time"] > 1e9


def test_values_that_json_has_no_word_for_are_strings_that_float_reads(path: Path) -> None:
    log = History(path)
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0, "e": 5e-324}
    log.append(step=1, epoch=0, values=values)
    log.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert [line[name] for name in "abc"] == ["nan", "inf", "-inf"]
    assert [repr(float(line[name])) for name in "abcde"] == [repr(value) for value in values.values()]


def test_a_line_is_with_the_system_as_soon_as_it_is_logged(path: Path) -> None:
    """A kill may come next."""
    log = History(path)
    log.append(step=1, epoch=0, values={})
    assert len(history.read_history(path)) == 1
    log.close()


def test_sync_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = History(path)
    log.append(step=1, epoch=0, values={})
    log.sync()
    assert synced == [path.stat().st_size]
    log.close()


def test_lines_counts_what_was_there_and_what_was_added(path: Path) -> None:
    filled(path, 3)
    log = History(path)
    assert log.lines == 3
    log.append(step=4, epoch=0, values={})
    assert log.lines == 4 == len(history.read_history(path))
    log.close()


def test_a_last_line_that_a_kill_tore_is_not_read(path: Path) -> None:
    whole = filled(path, 3)
    for torn in range(len(whole) - 1, whole.index(b"\n", len(whole) // 2), -1):
        path.write_bytes(whole[:torn])
        assert [line["step"] for line in history.read_history(path)] == [1, 2]


def test_no_file_is_an_empty_history(path: Path) -> None:
    assert history.read_history(path) == []
    history.cut_history(path, lines=3)
    assert not path.exists()


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_cut_keeps_the_first_lines_byte_for_byte(path: Path, keep: int) -> None:
    lines = filled(path, 3).splitlines(keepends=True)
    history.cut_history(path, lines=keep)
    assert path.read_bytes() == b"".join(lines[:keep])


def test_cut_removes_a_torn_line_even_if_it_would_be_among_the_first(path: Path) -> None:
    whole = filled(path, 2)
    path.write_bytes(whole + b'{"step": 3, "ep')
    history.cut_history(path, lines=3)
    assert path.read_bytes() == whole
    log = History(path)
    log.append(step=3, epoch=0, values={})
    log.close()
    assert [line["step"] for line in history.read_history(path)] == [1, 2, 3]


def test_cut_makes_a_new_file_of_the_old_name(path: Path) -> None:
    """A tracker's process of the killed run may still be reading the old one."""
    before = filled(path, 3)
    inode = path.stat().st_ino
    with open(path, "rb") as reader:
        history.cut_history(path, lines=1)
        assert path.stat().st_ino != inode
        assert reader.read() == before


def test_cut_leaves_nothing_beside_the_file(path: Path) -> None:
    filled(path, 3)
    history.cut_history(path, lines=1)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 200 bytes: the system refuses, as a full disk does.

    Not a fixture: pytest writes its own output before it tears one down, and that may go to a file too.
    """
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def fill(log: History) -> None:
    for step in range(100):
        log.append(step=step, epoch=0, values={"train/loss": 1.0})


def test_a_full_disk_costs_no_training_and_is_told_before_a_checkpoint_counts_on_the_lines(path: Path) -> None:
    log = History(path)
    with full_disk():
        fill(log)
        with pytest.raises(OSError, match=path.name):
            log.sync()
        log.close()
    assert 0 < len(history.read_history(path)) < log.lines == 100


def test_lines_that_a_full_disk_refused_are_written_once_there_is_room(path: Path) -> None:
    log = History(path)
    with full_disk():
        fill(log)
    log.append(step=1000, epoch=0, values={})
    log.sync()
    log.close()
    assert [line["step"] for line in history.read_history(path)] == [*range(100), 1000]


def test_sync_alone_writes_what_is_pending(path: Path) -> None:
    log = History(path)
    with full_disk():
        fill(log)
    log.sync()
    log.close()
    assert len(history.read_history(path)) == 100


def test_sync_tells_that_somebody_removed_the_file(path: Path) -> None:
    log = History(path)
    log.append(step=1, epoch=0, values={})
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=path.name):
        log.sync()
    path.write_bytes(b"")  # another file of that name is not it
    with pytest.raises(FileNotFoundError, match=path.name):
        log.sync()
    log.close()


@pytest.mark.parametrize("line", [b'{"step": 2, "epo', b"\xff\xfe", b""])
def test_a_line_that_somebody_broke_is_named(path: Path, line: bytes) -> None:
    lines = filled(path, 3).splitlines()
    path.write_bytes(b"\n".join([lines[0], line, lines[2], b""]))
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not JSON"):
        History(path)


def test_what_the_machine_did_is_cut_back_to_the_step_that_a_resume_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "system.jsonl"
    history.cut_usage(path, step=3)
    assert not path.exists()
    for step in (1, 3, 5):
        history.append_usage(path, step=step, values={"system/cpu_percent": 50.0})
    before = path.read_bytes()
    path.write_bytes(before + b'{"step": 2, "ti')
    history.cut_usage(path, step=5)
    assert path.read_bytes() == before
    history.cut_usage(path, step=3)
    lines = history.read_history(path)
    assert [line["step"] for line in lines] == [1, 3]
    assert [line["system/cpu_percent"] for line in lines] == [50.0, 50.0]
    assert all(abs(line["time"] - time.time()) < 60 for line in lines)


def test_a_disk_that_refuses_what_the_machine_did_costs_no_training(tmp_path: Path) -> None:
    history.append_usage(tmp_path / "gone" / "system.jsonl", step=1, values={"system/cpu_percent": 50.0})
    assert not (tmp_path / "gone").exists()
