"""What the machine does, in numbers that a person can check against the machine."""

import itertools
import time
from pathlib import Path

import pytest
import torch

from savepoint.system import usage

CPU = torch.device("cpu")


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_reading_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    meter = usage.Meter(tmp_path, CPU)
    assert meter.read() == {}
    cpu, clock = time.process_time(), time.perf_counter()
    busy(0.3)
    expected = 100 * (time.process_time() - cpu) / (time.perf_counter() - clock)  # the machine is shared with others
    at_work = meter.read()
    time.sleep(0.3)
    asleep = meter.read()
    assert at_work.keys() >= {
        f"system/{name}" for name in ("cpu_percent", "memory_percent", "process_memory_gb", "disk_free_gb")
    }
    # Linux counts a process's time in hundredths of a second.
    assert expected / 2 < at_work["system/process_cpu_percent"] < expected + 30
    assert asleep["system/process_cpu_percent"] < min(20, expected)
    for reading in (at_work, asleep):
        assert 0 <= reading["system/cpu_percent"] <= 100
        assert 0 < reading["system/memory_percent"] <= 100
        assert 0.01 < reading["system/process_memory_gb"] < 100


def test_readings_are_due_ten_seconds_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(start=100, step=0.5)
    monkeypatch.setattr(usage.time, "perf_counter", lambda: next(clock))
    meter = usage.Meter(tmp_path, CPU)
    due = []
    for _ in range(100):
        if meter.due():
            due.append(next(clock))
            meter.read()
    assert len(due) >= 3
    assert due[0] < 103
    assert all(10 <= later - earlier < 13 for earlier, later in itertools.pairwise(due))


def test_a_directory_that_is_gone_is_left_out(tmp_path: Path) -> None:
    meter = usage.Meter(tmp_path / "gone", CPU)
    meter.read()
    time.sleep(0.02)
    assert "system/disk_free_gb" not in meter.read()
