"""A run as a notebook reads it: config, metrics, checkpoints."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from savepoint.errors import CheckpointError, UserError
from savepoint.runs.directory import METRICS, Run, read_config
from savepoint.runs.evaluations import Evaluation, read_evaluations
from savepoint.runs.history import read_history
from savepoint.runs.lookup import find

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class CheckpointView:
    """A checkpoint of a run. metrics: what was measured at it; {} between two evaluations, or if it is damaged."""

    name: str
    epoch: int
    step: int
    path: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class RunView:
    """A run on the disk, to look at. Each property reads its file when it is first used, and keeps what it read.

    id, name, status, started, parents: those of run.json. started: ISO 8601, UTC.
    """

    directory: Path
    id: str
    name: str | None
    status: str
    started: str
    parents: list[str]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config as plain data."""
        return read_config(self.directory)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line that the run logged, in order, with `step`, `epoch` and `time` (seconds since 1970)."""
        return read_history(self.directory / METRICS)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """What `python -m savepoint evaluate` and `trainer.test` measured."""
        return read_evaluations(self.directory)

    @cached_property
    def checkpoints(self) -> list[CheckpointView]:
        """The checkpoints, oldest first, sound or not."""
        from savepoint import checkpoint

        found = []
        root = Run(self.directory, {}).checkpoints
        for name in checkpoint.names(root):
            step, epoch = checkpoint.position(name)
            try:
                metrics = checkpoint.measured(root / name)
            except CheckpointError:
                metrics = {}
            found.append(CheckpointView(name, epoch, step, root / name, metrics))
        return found

    def frame(self) -> Any:
        """Return the metrics as a pandas.DataFrame, a row for each logged line. Raises: UserError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UserError("frame() needs pandas: pip install pandas. `metrics` is the same as a list.") from error
        return pandas.DataFrame(self.metrics)


def open_run(query: str | Path) -> RunView:
    """Open a run to look at: its config, its metrics, its checkpoints.

    query: a run as on the command line: its id, a unique prefix, the tracker's id, a directory, or `latest`.
    Raises: UserError if no run, or more than one, has that name.
    """
    found = find(str(query), REPOSITORY)
    if found.checkpoint is not None:
        raise UserError(f"{query}: open_run takes a run. Its checkpoints: open_run({found.run.id!r}).checkpoints")
    record = {key: found.run.record[key] for key in ("id", "name", "status", "started", "parents")}
    return RunView(found.run.directory, **record)
