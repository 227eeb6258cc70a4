"""What a job of a sweep costs: `train.py -m` with MLflow, without a tracker, and a script by hand.

`python benchmarks/sweep.py`

Each trains the MLP of conf/ on the digits for one epoch, once for each of 20 seeds, in one process. The script logs to
MLflow, as process.py's does. The three take turns, so that a noisy machine disturbs all alike, and each ratio is the
median of the turns' own ratios. MLflow's store holds a run already.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from pathlib import Path

from process import REPOSITORY, seconds

COLUMNS = ("MLflow", "no tracker", "by hand")


def turn(jobs: int, folder: Path) -> dict[str, float]:
    """Seconds a job of each."""
    store = folder / "mlflow.db"
    train, script = str(REPOSITORY / "train.py"), str(REPOSITORY / "benchmarks" / "handwritten.py")

    def sweep(*overrides: str) -> float:
        directory = tempfile.mkdtemp(dir=folder)
        seeds = ",".join(map(str, range(jobs)))
        command = [train, "-m", f"seed={seeds}", "trainer.max_epochs=1", f"hydra.sweep.dir={directory}", *overrides]
        return seconds(folder, *command, store=store)

    by_hand = [script, "--epochs=1", f"--seeds={jobs}", f"--tracking-uri=sqlite:///{store}"]
    took = {
        "MLflow": sweep(),
        "no tracker": sweep("tracker=none"),
        "by hand": seconds(folder, *by_hand, f"--checkpoint={folder / 'checkpoint.pt'}", store=store),
    }
    return {name: value / jobs for name, value in took.items()}


def table(turns: list[dict[str, float]]) -> str:
    lines = [f"{'seconds a job':<26}{'median (least … most)':>24}"]

    def row(name: str, values: list[float]) -> str:
        shown = f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"
        return f"{name:<26}{shown:>24}"

    lines += [row(name, [one[name] for one in turns]) for name in COLUMNS]
    for other in COLUMNS[1:]:
        lines.append(row(f"MLflow / {other}", [one["MLflow"] / one[other] for one in turns]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.jobs} jobs of one epoch; {arguments.turns} turns")
    folder = Path(tempfile.mkdtemp())
    try:
        turn(1, folder)  # makes the store
        turns = [turn(arguments.jobs, folder) for _ in range(arguments.turns)]
    finally:
        shutil.rmtree(folder)
    print(table(turns))


if __name__ == "__main__":
    main()
