"""What a whole run costs, from the command to the prompt: train.py and a script by hand. `python benchmarks/process.py`

Both train the MLP of conf/ on the digits for 20 epochs, validate, save and log to MLflow in each. Savepoint does more:
it keeps all of its state, syncs it to the disk, and stores the newest checkpoints and a plot in MLflow.

The two take turns, so that a noisy machine disturbs both alike, and each ratio is the median of the turns' own ratios.
A fresh store is a database that MLflow has yet to make, as in the first run in a new clone; a warm one holds a run.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STORES = ("fresh", "warm")


def seconds(folder: Path, *command: str, store: Path) -> float:
    """How long a command takes, run as from a shell. Raises: RuntimeError with its output if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HYDRA_"))}
    environment = kept | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    took = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")
    return took


def savepoint(folder: Path, *, epochs: int, overrides: list[str]) -> float:
    run_dir = tempfile.mkdtemp(dir=folder)
    command = [str(REPOSITORY / "train.py"), f"trainer.max_epochs={epochs}", f"hydra.run.dir={run_dir}", *overrides]
    return seconds(folder, *command, store=folder / "mlflow.db")


def handwritten(folder: Path, *, epochs: int) -> float:
    store = folder / "mlflow.db"
    command = [
        str(REPOSITORY / "benchmarks" / "handwritten.py"),
        f"--epochs={epochs}",
        f"--tracking-uri=sqlite:///{store}",
    ]
    return seconds(folder, *command, f"--checkpoint={folder / 'checkpoint.pt'}", store=store)


def turn(epochs: int, overrides: list[str]) -> dict[str, tuple[float, float]]:
    """Seconds of (Savepoint, the script) with a fresh store, then with a warm one."""
    ours, theirs = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    try:
        return {
            store: (savepoint(ours, epochs=epochs, overrides=overrides), handwritten(theirs, epochs=epochs))
            for store in STORES
        }
    finally:
        shutil.rmtree(ours)
        shutil.rmtree(theirs)


def table(turns: list[dict[str, tuple[float, float]]]) -> str:
    lines = [f"{'MLflow store':<14}{'Savepoint':>20}{'by hand':>20}{'ratio':>20}"]
    for store in STORES:
        pairs = [one[store] for one in turns]
        columns = (*zip(*pairs, strict=True), [ours / theirs for ours, theirs in pairs])
        cells = (f"{statistics.median(column):.2f} ({min(column):.2f} … {max(column):.2f})" for column in columns)
        lines.append(f"{store:<14}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("overrides", nargs="*", help="for train.py, for example trainer.threads=1")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.epochs} epochs; {arguments.turns} turns")
    print("seconds of a whole process: median (least … most)")
    turns = [turn(arguments.epochs, arguments.overrides) for _ in range(arguments.turns)]
    print(table(turns))


if __name__ == "__main__":
    main()
