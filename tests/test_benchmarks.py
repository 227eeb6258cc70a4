"""The programs behind the README's numbers run, and print their tables. What they measure is no test's to judge."""

import json
from pathlib import Path

import pytest
from tools.processes import command


def test_step_benchmark_prints_a_ratio_for_each_loop() -> None:
    ended = command("benchmarks/step.py", "--rounds=1", "--steps=2")
    assert ended.status == 0, ended.output
    rows = [line.split("  ")[0] for line in ended.output.splitlines()[3:]]
    ratios = [float(line.split()[-1]) for line in ended.output.splitlines()[3:]]
    assert rows == ["bare loop", "DataLoader loop", "Savepoint"]
    assert ratios[0] == 1.0 and min(ratios) > 0


@pytest.mark.long
def test_gan_benchmark_prints_a_ratio() -> None:
    ended = command("benchmarks/gan.py", "--rounds=1", "--steps=2")
    assert ended.status == 0, ended.output
    rows = [line.split() for line in ended.output.splitlines()[3:]]
    assert [row[0] for row in rows] == ["by", "Savepoint"] and float(rows[1][-1]) > 0


def test_listing_benchmark_prints_seconds() -> None:
    ended = command("benchmarks/listing.py", "--runs=12", "--turns=1")
    assert ended.status == 0, ended.output
    rows = ended.output.splitlines()
    assert rows[0].endswith(" 12 runs, median of 1 (least … most)")
    assert [row[:18].strip() for row in rows[1:]] == ["start", "ls", "ls --json", "ls status=killed"]
    assert all(float(row[18:].split()[0]) > 0 for row in rows[1:])


@pytest.mark.long
def test_checkpoint_benchmark_prints_a_ratio_for_each_aim(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    small = ("--sizes=300kB", "--tensors=80", "--repeats=1", f"--directory={disk}", f"--out={out}")
    ended = command("benchmarks/checkpoint.py", *small)
    assert ended.status == 0, ended.output
    rows = [line.split(" | ") for line in ended.output.splitlines() if line.startswith("| ") and " / " in line]
    assert len(rows) == 9 and all(row[1] == "aim" or row[1].startswith("≤ ") for row in rows), ended.output
    assert len(json.loads((out / "checkpoint.json").read_text())["states"]) == 2
    assert (out / "checkpoint.png").stat().st_size > 10_000
    assert list(disk.iterdir()) == [], "nothing is left on the disk that was measured"


@pytest.mark.long
def test_sweep_benchmark_prints_its_ratios() -> None:
    ended = command("benchmarks/sweep.py", "--turns=1", "--jobs=2")
    assert ended.status == 0, ended.output
    rows = ended.output.splitlines()[2:]
    assert [row[:26].strip() for row in rows] == [
        *("MLflow", "no tracker", "by hand"),
        *("MLflow / no tracker", "MLflow / by hand"),
    ]
    assert all(float(row[26:].split()[0]) > 0 for row in rows)


@pytest.mark.long
def test_process_benchmark_prints_a_ratio_for_each_store() -> None:
    ended = command("benchmarks/process.py", "--turns=1", "--epochs=1")
    assert ended.status == 0, ended.output
    rows = [line.split() for line in ended.output.splitlines()[3:]]
    assert [row[0] for row in rows] == ["fresh", "warm"]
    assert all(float(row[-4]) > 0 for row in rows), ended.output


@pytest.mark.long
def test_tracking_benchmark_prints_each_store_and_contender() -> None:
    ended = command("benchmarks/tracking.py", "--turns=1", "--steps=20")
    assert ended.status == 0, ended.output
    rows = [line[:22].strip() for line in ended.output.splitlines()[1:]]
    contenders = ["nothing", "Savepoint, untracked", "Savepoint", "log_metrics", "asynchronous"]
    assert rows == ["database", *contenders, "server", *contenders, "gone", *contenders]


def test_data_benchmark_prints_a_row_for_each_size() -> None:
    ended = command("benchmarks/data.py", "--turns=1", "--sizes", "10000", "10000000000")
    assert ended.status == 0, ended.output
    rows = [line.strip("| ").split(" | ") for line in ended.output.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["start", "10,000", "10,000,000,000", "resume", "10,000", "10,000,000,000"]
    assert all(row[1].endswith(" MB") for row in rows if row[0][0].isdigit()), ended.output
    assert rows[2][2] == rows[5][2] == "over a minute or 8 GB"


@pytest.mark.long
def test_parallel_benchmark_prints_speeds_and_a_ratio_for_each_aim(tmp_path: Path) -> None:
    small = ("--ranks=2", "--rounds=1", "--steps=2", "--sizes=300kB", "--repeats=1", f"--directory={tmp_path}")
    ended = command("benchmarks/parallel.py", *small)
    assert ended.status == 0, ended.output
    rows = [line.strip("| ").split(" | ") for line in ended.output.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[2:4]] == [["digits MLP", "2"], ["wide MLP", "2"]], ended.output
    aims = [row for row in rows[4:] if " / " in row[0]]
    assert len(aims) == 4 and all(row[1][:2] == "≤ " and row[2][0] in "✓✗" for row in aims), ended.output
    assert list(tmp_path.iterdir()) == [], "nothing is left on the disk that was measured"
