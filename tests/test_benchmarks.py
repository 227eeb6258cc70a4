"""The programs behind the README's numbers run, and print their tables. What they measure is no test's to judge."""

import pytest
from conftest import command


def test_step_benchmark_prints_a_ratio_for_each_loop() -> None:
    ended = command("benchmarks/step.py", "--rounds=1", "--steps=2")
    assert ended.status == 0, ended.output
    rows = [line.split("  ")[0] for line in ended.output.splitlines()[3:]]
    ratios = [float(line.split()[-1]) for line in ended.output.splitlines()[3:]]
    assert rows == ["bare loop", "DataLoader loop", "Savepoint"]
    assert ratios[0] == 1.0 and min(ratios) > 0


@pytest.mark.long
def test_process_benchmark_prints_a_ratio_for_each_store() -> None:
    ended = command("benchmarks/process.py", "--turns=1", "--epochs=1")
    assert ended.status == 0, ended.output
    rows = [line.split() for line in ended.output.splitlines()[3:]]
    assert [row[0] for row in rows] == ["fresh", "warm"]
    assert all(float(row[-4]) > 0 for row in rows), ended.output
