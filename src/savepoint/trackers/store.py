"""The methods that a tracker's store must have. The tracker's process calls them, and tries again if they raise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from savepoint.trackers.points import Point
from savepoint.trackers.process import Message


class StoredRun(Protocol):
    """A run in a store.

    id: the store's id of the run. path: the path of the run's page, as `Kind.page` takes it.
    """

    id: str
    path: str

    def key(self, key: str) -> str:
        """Return the name under which the store keeps a metric."""

    def history(self) -> set[tuple[str, int]]:
        """Return the (key, step) of every point that the store has."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Store points that the store does not have. Their keys are those that the method `key` returned."""

    def set_status(self, status: str, ended: float) -> None:
        """Set how the run ended ("finished", "interrupted" or "failed"), and when (in seconds since 1970)."""

    def set_note(self, note: str) -> None:
        """Show a note with the run's results, in Markdown, and its origin. A note that a person has written is kept."""

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        """Store the model of a checkpoint in the store's own form of models, if it has one.

        example: a file with one call of the model, which may be absent. repository: holds src/.
        register_as: a name in the store's registry of models; None to register nothing.
        """

    def names(self, folder: str) -> set[str]:
        """Return the names of the files and folders in a folder of the run's artifacts; "" is the topmost folder."""

    def put(self, file: Path, folder: str) -> None:
        """Copy a file into a folder of the run's artifacts. Replace a file of the same name."""

    def delete(self, path: str) -> None:
        """Delete a file or a folder of the run's artifacts."""

    def download(self, path: str, to: Path) -> None:
        """Copy a file or a folder of the run's artifacts to the same path below `to`."""

    def close(self) -> None:
        """Let go of the run, so that another process can open it. No other method is called after this one.

        A store that keeps a run in one piece writes it here. An error is reported, and the call is not repeated.
        """


class Store(Protocol):
    """A place where a tracker keeps runs."""

    def open_run(self, order: Message, start: Message) -> StoredRun:
        """Find the run or create it, below its sweep's parent, and store its name, params, tags, parents and data.

        Mark a run that is found as running again. Add a link to this run to each run that it was forked from.
        order: the worker's `follow`. Its `run_id` is the run's own id; its `known` is the store's id of the run if the
        run has been tracked before. start: the arguments of `Tracker.start`.
        """

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        """Set the status of a sweep's parent run and store its table.

        Returns: the path of the parent run's page, or None if there is no such run.
        """

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        """Return at most five runs: the store's id, the run's own id, and its directory.

        text: the beginning of a store's id, or else a run's own id. It has only letters, digits and dashes.
        """

    def get_run(self, stored_id: str) -> StoredRun:
        """Return the run that has this id in the store."""
