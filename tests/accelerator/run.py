"""Check on a GPU what only a GPU can show, and measure it: `python tests/accelerator/run.py`, at most 8 minutes.

Needs torch, NumPy and PyYAML, and nothing else: no network, no pytest, no tracker. Without a CUDA device it says so and
tests nothing. `--device cpu` runs the checks that mean something on a CPU, which shows that this program works.
Prints a Markdown table for benchmarks/README.md, and writes it to $OUT/accelerator.md if OUT is set.
"""

import argparse
import importlib.util
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NEEDED = {"torch": "torch", "numpy": "numpy", "yaml": "pyyaml"}  # module: package
AT_ONCE = {"cpu": 1, "cuda": 5}  # cases that run at the same time


class Report:
    """Collects what was found, one row for each check."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.failed = 0

    def check(self, name: str, function: Callable[[], str]) -> None:
        """Run one check, print and keep its finding. function: returns the finding; raises if the check fails."""
        started = time.monotonic()
        try:
            finding = function()
        except Exception as error:
            self.failed += 1
            finding = "**failed**"
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok {time.monotonic() - started:5.1f} s  {name}: {finding}", flush=True)
        self.rows.append((name, finding))

    def table(self, device: str) -> str:
        """Format the findings as a Markdown table under a line that names the hardware and the versions."""
        import torch

        hardware = platform.machine() if device == "cpu" else torch.cuda.get_device_name()
        lines = [f"{hardware}, torch {torch.__version__}, Python {platform.python_version()}:", ""]
        lines += ["| check | finding |", "|---|---|", *(f"| {name} | {finding} |" for name, finding in self.rows)]
        return "\n".join(lines) + "\n"


def check_all(report: Report, device: str, folder: Path, *, quick: bool) -> None:
    """Run every check that means something on the device. quick: only the fast ones, with small sizes."""
    import killed
    import measured
    import torch

    def same_bits(case: str, number: int) -> str:
        step, differences = killed.compare_killed(case, device, folder / f"case-{number}")
        assert not differences, f"resumed from step {step}; {len(differences)} differences: {differences[:5]}"
        return f"identical, resumed from step {step}"

    cases = killed.QUICK if quick else (*killed.CASES, *killed.RANKED)
    if device == "cuda" and (count := torch.cuda.device_count()) < 2:
        cases = tuple(case for case in cases if case not in killed.RANKED)
        report.check("same bits after SIGKILL: 2 ranks", lambda: f"left out: {count} GPU")
    with ThreadPoolExecutor(AT_ONCE[device]) as pool:
        pending = [(case, pool.submit(same_bits, case, number)) for number, case in enumerate(cases)]
        for case, future in pending:
            report.check(f"same bits after SIGKILL: {case}", future.result)
    report.check("generators restored", lambda: f"{measured.check_generators(device)} device(s)")
    mebibytes = 1 if quick else 256

    def snapshot() -> str:
        measured.check_snapshot(device, mebibytes)
        return f"{mebibytes} MiB unspoiled by later changes"

    report.check("snapshot while the device goes on", snapshot)
    if device == "cuda":
        for name, changes in killed.GUARDED.items():

            def guarded(changes: dict[str, object] = changes, name: str = name) -> str:
                killed.check_no_synchronisation(device, folder / name.replace(" ", "-"), changes)
                return "none"

            report.check(f"waits in updates and asynchronous saves: {name}", guarded)

    def saves() -> str:
        (folder / "saves").mkdir()
        cost = measured.measure_saves(device, folder / "saves", large=device == "cuda")
        peak = "" if cost.peak is None else f", {cost.peak:.1f} MiB more memory on the device"
        return (
            f"{cost.state:.0f} MiB: returns after {cost.call:,.0f} µs, the next update can begin after "
            f"{cost.update:,.0f} µs, durable after {cost.durable:,.0f} ms{peak}"
        )

    def step() -> str:
        (folder / "step").mkdir()
        steps, rounds = (5, 1) if quick else (100, 7)
        taken, ratio = measured.measure_step(device, folder / "step", steps=steps, rounds=rounds)
        return f"{taken:,.0f} µs, {ratio:.2f} times a bare loop"

    report.check("asynchronous save", saves)
    report.check("training step", step)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(AT_ONCE), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few checks with small sizes, in half a minute")
    arguments = parser.parse_args()
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        print(f"This program needs {' and '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no accelerator: torch.cuda.is_available() is False; nothing was tested")
        return 0
    report, started = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="savepoint-accelerator-") as folder:
        check_all(report, arguments.device, Path(folder), quick=arguments.quick)
    table = report.table(arguments.device)
    print(f"\n{len(report.rows)} checks in {time.monotonic() - started:.0f} s, {report.failed} failed\n\n{table}")
    if out := os.environ.get("OUT"):
        Path(out, "accelerator.md").write_text(table)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
