"""What tests of trackers share: a run that logs, and what MLflow's database holds, read with plain SQL."""

import contextlib
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from savepoint.config import TrackerSettings
from savepoint.runs import history

MLFLOW = TrackerSettings(kind="mlflow")


def wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def query(repository: Path, text: str, *values: object, database: str = "mlflow.db") -> list[tuple]:
    with contextlib.closing(sqlite3.connect(repository / database, timeout=20)) as opened, opened:
        return opened.execute(text, values).fetchall()


def log(directory: Path, steps: range) -> None:
    """Log four points a step."""
    lines = history.History(directory / "metrics.jsonl")
    for step in steps:
        lines.append(step=step, epoch=step, values={"train/loss": 1 / step, "val/loss": 2 / step, "lr": 0.1})
    lines.close()


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped by an init that may never do so."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] in ("", "Z")


def logged(run_dir: Path) -> list[tuple[str, int, float, int]]:
    """Every point that a run has logged, in the columns of MLflow's table: key, step, value, timestamp."""
    found = []
    for path in (run_dir / "metrics.jsonl", run_dir / "system.jsonl"):
        for line in path.read_text().splitlines() if path.exists() else []:
            values = json.loads(line)
            step, milliseconds = values.pop("step"), int(values.pop("time") * 1000)
            found += [(key, step, float(value), milliseconds) for key, value in values.items()]
    return sorted(found)


def holding(secret: str, folder: Path) -> list[Path]:
    """The files that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
