"""Read and write evaluations.jsonl: what checkpoints of a run measured apart from its training, one JSON object a line.

This is not metrics.jsonl, which a resume cuts back to its checkpoint. An evaluation of a checkpoint stays true.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What one checkpoint measured on one split.

    overrides: how the config differed from the checkpoint's, as typed. values: by the name of the metric, without the
    split.
    """

    checkpoint: str
    epoch: int
    step: int
    split: str
    overrides: Sequence[str]
    values: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        """Return the evaluation as JSON has it. Non-finite values are the strings "nan", "inf" and "-inf"."""
        values = {name: each if math.isfinite(each) else str(float(each)) for name, each in self.values.items()}
        return {**vars(self), "overrides": [*self.overrides], "values": values}


def record_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """Add an evaluation to a run's file, unless the file has an equal one. Raises: OSError if the disk refuses."""
    line = evaluation.to_json()
    if line in [each.to_json() for each in read_evaluations(directory)]:
        return
    path = directory / EVALUATIONS
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    text = "\n" * torn + json.dumps({"time": time.time(), **line}, allow_nan=False) + "\n"
    # Written in one piece, because two processes may evaluate a run at the same time.
    with open(path, "ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Read every evaluation of a run, oldest first. A line that cannot be read, torn by a kill perhaps, is left out."""
    path = directory / EVALUATIONS
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            stored = json.loads(line)
            found.append(
                Evaluation(
                    checkpoint=str(stored["checkpoint"]),
                    epoch=int(stored["epoch"]),
                    step=int(stored["step"]),
                    split=str(stored["split"]),
                    overrides=[str(each) for each in stored["overrides"]],
                    values={str(name): float(value) for name, value in stored["values"].items()},
                )
            )
    return found
