"""One run that this process trains: its directory, its checked config, its tracker, and where it begins."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import checkpoint as checkpoints
from savepoint import runs
from savepoint.config import Settings
from savepoint.trackers import Tracker
from savepoint.weights import Source


@dataclass(frozen=True)
class Fork:
    """Where a fork begins. parent: `<run>@<checkpoint>`. before: the config of that checkpoint."""

    parent: str
    before: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run to train.

    config, settings: the same config, checked; as plain data and as typed settings. repository: holds src/ and runs/.
    checkpoint: begin from it; None to begin at the beginning. fork: set if that checkpoint is another run's.
    weights: what `init_from` names, if anything.
    """

    run: runs.Run
    config: dict[str, Any]
    settings: Settings
    tracker: Tracker
    repository: Path
    checkpoint: checkpoints.Checkpoint | None = None
    fork: Fork | None = None
    weights: Source | None = None

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        return f"python resume.py run={self.run.address(self.repository)}"
