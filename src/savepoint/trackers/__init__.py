"""Where a run can be watched: a copy of what lies in the run directory, which training never waits for.

The local truth is `metrics.jsonl` and `checkpoints/`; a tracker follows them, so there is no call that logs a value.
Importing this package costs nothing: each tracker is imported when it is opened.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from savepoint import settings as config


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


def open(  # noqa: A001 - read as `trackers.open`, like `gzip.open`
    settings: config.Tracker,
    *,
    run_dir: Path,
    run_id: str,
    repository: Path,
    sweep: Sweep | None = None,
    known_run_id: str | None = None,
    upload: bool = True,
    warn: Callable[[str], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Tracker:
    """Make ready to track a run; the tracker learns of it only by `start`. Call it early: it warms up on its own.

    run_dir: exists. known_run_id: the tracker's id of this run, if it has been tracked before. upload: copy checkpoints
    too. warn: takes one line when the tracker first fails, from inside a call to this tracker (default: to stderr).
    announce: takes the tracker's run id, from inside the call in which it becomes known.
    Raises: ConfigError if the store's address cannot be used.
    """
    if settings.kind == "none":
        from savepoint.trackers.none import NoTracker

        return NoTracker()
    from savepoint.trackers.mlflow import MLflowTracker

    return MLflowTracker(
        settings,
        run_dir=run_dir,
        run_id=run_id,
        repository=repository,
        sweep=sweep,
        known_run_id=known_run_id,
        upload=upload,
        warn=warn or _to_stderr,
        announce=announce or (lambda _: None),
    )


def finish_sweep(
    settings: config.Tracker,
    *,
    repository: Path,
    sweep: Sweep,
    table: Path,
    status: str,
    timeout_seconds: float = 60,
) -> str | None:
    """Store a sweep's table of results with its parent run, and set that run's status.

    Returns: None, also where no run of the sweep was tracked, or one line that says what is not stored.
    """
    if settings.kind == "none":
        return None
    from savepoint.trackers import mlflow

    return mlflow.finish_sweep(
        settings, repository=repository, sweep=sweep, table=table, status=status, timeout_seconds=timeout_seconds
    )


def find_run(settings: config.Tracker, *, repository: Path, text: str, timeout_seconds: float = 30) -> Found | None:
    """Look up a tracker's run id, or the unique beginning of one (6 characters or more).

    Raises: UserError if several runs begin so, or if the tracker does not answer.
    """
    if settings.kind == "none":
        return None
    from savepoint.trackers import mlflow

    return mlflow.find_run(settings, repository=repository, text=text, timeout_seconds=timeout_seconds)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
