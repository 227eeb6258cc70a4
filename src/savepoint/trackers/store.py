"""What a tracker's store has to do. It is called in the tracker's process; what it raises is tried again later."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from savepoint.trackers.points import Point
from savepoint.trackers.process import Message


class StoredRun(Protocol):
    """A run in a store.

    id: the store's own. path: of its page, as `Kind.page` takes it.
    """

    id: str
    path: str

    def key(self, key: str) -> str:
        """Return the name under which the store keeps a metric."""

    def history(self) -> set[tuple[str, int]]:
        """Return the (key, step) of every point that the store has."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Store points that it does not have. Their keys have been through `key`."""

    def set_status(self, status: str, ended: float) -> None:
        """Set how the run ended, "finished", "interrupted" or "failed", and when, in seconds since 1970."""

    def set_note(self, note: str) -> None:
        """Show what came of the run, in Markdown, with what it was forked from. A person's own note is kept."""

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        """Store the model of a checkpoint in the form in which the store keeps models, if it does.

        example: a file with one call of the model, which may be absent. repository: holds src/. register_as: the name
        under which the store's registry gets the model; None to leave that.
        """

    def names(self, folder: str) -> set[str]:
        """Return the names of the files and folders in a folder of the run's artifacts; "" is the topmost one."""

    def put(self, file: Path, folder: str) -> None:
        """Copy a file into a folder of the run's artifacts, in place of one of the same name."""

    def delete(self, path: str) -> None:
        """Delete a file or a folder of the run's artifacts."""

    def download(self, path: str, to: Path) -> None:
        """Copy a file or a folder of the run's artifacts to the same path below `to`."""

    def close(self) -> None:
        """Let go of the run, so that another process can open it. No other method is called after this one.

        A store that keeps a run in one piece writes it here. What is raised is reported, and not tried again.
        """


class Store(Protocol):
    """A place where a tracker keeps runs."""

    def open_run(self, order: Message, start: Message) -> StoredRun:
        """Find the run or create it, below its sweep's parent, and store its name, params, tags, parents and data.

        order: the worker's `follow`, whose `known` is the store's id of the run if it has been tracked, and `run_id`
        its own. start: the arguments of `Tracker.start`. A run that is found is marked as running again, and a run that
        this one was forked from gets a link to it.
        """

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        """Set the status of a sweep's parent run and store its table.

        Returns: the path of its page, None if there is no such run.
        """

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        """Return at most five runs: the store's id, the run's own id, and its directory.

        text: the beginning of a store's id, else a run's own id: letters, digits and dashes.
        """

    def get_run(self, stored_id: str) -> StoredRun:
        """Return the run with this id of the store's."""
