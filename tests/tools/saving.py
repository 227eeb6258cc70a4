"""Saves checkpoints one after the other as training does, and says on stdout which of them are durable.

`saving.py RUN FIRST COUNT`: a line of metrics, a checkpoint, and what retention deletes, for COUNT steps from FIRST on.
"""

import sys
from pathlib import Path

import torch

from savepoint import checkpoint
from savepoint.checkpoint import layout
from savepoint.runs.history import History

RULES = {"keep_last": 1, "keep_best": 1, "monitor": "val/loss", "mode": "min"}


def loss(step: int) -> float:
    """The second is the best for as long as anybody looks."""
    return abs(step - 2.0)


def weight(step: int) -> torch.Tensor:
    return torch.full((40, 50), float(step))


def save(root: Path, step: int, lines: int) -> Path:
    metrics = {"val/loss": loss(step)}
    return checkpoint.save(
        root,
        model={"weight": weight(step), "bias": torch.tensor(step)},
        state={"epoch": step, "step": step, "batch": 0, "metrics": metrics, "history_lines": lines, "m": weight(-step)},
        documents={layout.CONFIG: "seed: 0\n", layout.PROVENANCE: "{}"},
        metadata={},
    )


def run(directory: Path, first: int, count: int) -> None:
    checkpoint.clean(directory / "checkpoints")
    history = History(directory / "metrics.jsonl")
    for step in range(first, first + count):
        history.append(step=step, epoch=step, values={"val/loss": loss(step)})
        history.sync()
        path = save(directory / "checkpoints", step, history.lines)
        print(step, flush=True)
        checkpoint.prune(directory / "checkpoints", **RULES, protect=path.name)
    history.close()


def main() -> int:
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    return 0
