"""Where a run can be watched: a copy of what lies in the run directory, which training never waits for.

The local truth is `metrics.jsonl` and `checkpoints/`; a tracker follows them, so there is no call that logs a value.
Importing this package costs nothing: each tracker is imported when it is opened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Sweep:
    """The sweep that a run belongs to; in the tracker its runs have one parent, found by `id`."""

    id: str
    name: str
    dir: Path


@dataclass(frozen=True)
class Found:
    """A tracker's run, and which run of this repository it says it is. Believed only if that run.json agrees."""

    tracker_run_id: str
    run_id: str | None
    run_dir: str | None


class Tracker(Protocol):
    @property
    def run_id(self) -> str | None:
        """The tracker's own id of this run, once it is known."""

    def start(
        self,
        *,
        name: str | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        documents: Sequence[Path] = (),
        parents: Sequence[str] = (),
    ) -> None:
        """Begin to follow the run. Call it once nothing can refuse the run any more, and after `metrics.jsonl` was cut.

        params: the config, flattened. documents: files that are stored with the run; one that is missing is skipped.
        parents: ids of the runs that this one was forked from. Returns at once and never raises.
        """

    def ready(self, timeout_seconds: float) -> str | None:
        """The tracker's run id, waiting this long for it, or None if it is not there (yet)."""

    def wake(self) -> None:
        """Say that metrics.jsonl or checkpoints/ changed: returns at once, never raises, never blocks."""

    def close(self, status: str, timeout_seconds: float) -> str | None:
        """Wait until all is stored and the status ("finished", "interrupted" or "failed") is set, and let go.

        Returns: None if all is stored, else one line that says what is not and how that heals.
        """

    def abandon(self) -> None:
        """Let go before `start`: nothing of this run is in the tracker. After `close` it does nothing."""
