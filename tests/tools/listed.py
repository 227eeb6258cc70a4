"""Runs as a listing finds them: written by the engine's own functions, without a training."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from savepoint import checkpoint, runs, trust

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"_target_": "project.models.cnn.Cnn", "channels": [8, 8], "dropout": 0.2},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.005, "amsgrad": False},
    "checkpoint": {"monitor": "val/loss", "mode": "min"},
    "trainer": {"max_epochs": 3, "patience": None},
}
GIT = {"commit": "5f5f5f5a" * 5, "branch": "main", "dirty": True}


def listed(
    repository: Path, id: str, *overrides: str, number: int = 0, place: str = "runs/2026-01-01", **record: Any
) -> runs.Run:
    """Make a run that started `number` minutes after noon, UTC. record: what run.json says besides."""
    directory = repository / place / (f"12{number:02d}00-{id}" if place.startswith("runs") else str(number))
    run = runs.create(directory, id=id, name=None, config=trust.dump_config(CONFIG), overrides=[*overrides])
    started = datetime.datetime(2026, 1, 1, 12, number, tzinfo=datetime.UTC).isoformat(timespec="microseconds")
    run.update(**{"status": "finished", "started": started, **record})
    (directory / runs.LOCK).touch()
    return run


def save(run: runs.Run, epoch: int, loss: float, *, git: dict[str, Any] = GIT, **state: Any) -> Path:
    """Save a checkpoint of a run, and log its evaluation."""
    step = 23 * epoch
    values = {"val/loss": loss, "lr": 0.005}
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"step": step, "epoch": epoch, "time": 1.0, "train/loss": 2 * loss, **values}) + "\n")
    best = {"metric": "val/loss", "value": loss, "epoch": epoch, "step": step}
    shown = {"epoch": epoch, "step": step, "batch": 0, "metrics": values, "best": best, "evaluated": step}
    more = {
        "learning_rates": [0.005],
        "moments": torch.zeros(3, dtype=torch.float64),
        "rng": {"python": 1, "devices": []},
    }
    return checkpoint.save(
        run.checkpoints,
        model={"weight": torch.ones(2, 3), "mask": torch.ones(4, dtype=torch.bool)},
        state=shown | more | state,
        documents={
            checkpoint.CONFIG: "seed: 0\n",
            checkpoint.PROVENANCE: json.dumps({"git": git, "run_id": run.id, "command": "train.py model=cnn"}),
        },
        metadata={},
    )


@contextmanager
def in_training(run: runs.Run) -> Iterator[None]:
    """Let another process hold the run's lock, as one that trains it does. A lock never keeps its own process out."""
    hold = "import sys; from pathlib import Path; from savepoint.system.files import Lock; l = Lock(Path(sys.argv[1])); print(l.acquire(), flush=True); sys.stdin.read()"
    source = str(Path(runs.__file__).parents[2])
    command = [sys.executable, "-c", hold, str(run.directory / runs.LOCK)]
    environment = os.environ | {"PYTHONPATH": source}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == b"True\n"
        yield
        holder.stdin.close()
