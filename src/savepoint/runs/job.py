"""Describe one run that this process trains: its directory, its checked config, its tracker, and where it begins."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savepoint import trust
from savepoint.config import Settings
from savepoint.runs.directory import Run
from savepoint.runs.lookup import Found
from savepoint.trackers import Tracker

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Fork:
    """Where a fork begins. parent: `<run>@<checkpoint>`. before: the config of that checkpoint."""

    parent: str
    before: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run to train.

    config, settings: the same checked config, as plain data and as typed settings. repository: holds src/ and runs/.
    checkpoint: where to begin; None to begin anew. fork: set if that checkpoint is another run's.
    weights: what `init_from` names, if anything. requeued: whether the same command will be run again if this process
    is told to stop, as with `resume=auto`. same_code: refuse to begin from a checkpoint of other code.
    group: where several ranks train the run, a name of what they do together, used once.
    """

    run: Run
    config: dict[str, Any]
    settings: Settings
    tracker: Tracker
    repository: Path
    checkpoint: "Checkpoint | None" = None
    fork: Fork | None = None
    weights: Found | Path | None = None
    requeued: bool = False
    same_code: bool = False
    group: str = ""

    @cached_property
    def config_text(self) -> str:
        """The config as config.yaml holds it. Cached: writing YAML takes longer than a short checkpoint."""
        return trust.dump_config(self.config)

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        return f"python resume.py run={self.run.address(self.repository)}"
