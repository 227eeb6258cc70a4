"""What a tracker can do. It copies what lies in the run directory, so no call logs a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Sweep:
    """A sweep that runs belong to. In the tracker these runs share one parent run, which is found by `id`."""

    id: str
    name: str
    dir: Path


@dataclass(frozen=True)
class Found:
    """A run in the tracker, and the run of this repository that it claims to mirror.

    The claim is only to be believed if the `run.json` in `run_dir` has the same `run_id`.
    """

    tracker_run_id: str
    run_id: str | None
    run_dir: str | None


@dataclass(frozen=True)
class Page:
    """A tracker's web page. store: what a server has to be started for, or None where `server` is one that runs.

    path: what follows the server's address to open this project's runs, or one of them. Empty before the first run.
    arguments: what `python -m savepoint ui` has to be given to serve the store. Nothing for the usual one.
    """

    store: str | None
    server: str | None
    path: str
    arguments: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """How to get there: the address, and before it the command that serves a store without a server."""
        if self.server is not None:
            return f"{self.server}{self.path}"
        given = " ".join(self.arguments)
        command = f"python -m savepoint ui {given}" if given else "make ui (or python -m savepoint ui)"
        return f"{command}, then http://127.0.0.1:5000/{self.path}"


@dataclass(frozen=True)
class Server:
    """The server of a tracker's web page: the command that runs it until Ctrl-C, and variables of its environment."""

    command: list[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """A split of the data that a run was trained or judged on.

    source: where it came from, the name of a class. samples: how many; None for a stream. digest: of the samples, a
    SHA-256; None if they cannot be compared.
    """

    name: str
    split: str
    source: str
    samples: int | None
    digest: str | None


class Tracker(Protocol):
    def start(
        self,
        *,
        name: str | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        documents: Sequence[Path] = (),
        parents: Sequence[str] = (),
        datasets: Sequence[Dataset] = (),
    ) -> None:
        """Begin to mirror the run. Returns at once and never raises.

        Call it when nothing can refuse the run any more, and after `metrics.jsonl` was cut back to the checkpoint.
        params: the config, flattened. documents: files to store with the run; missing ones are skipped.
        parents: ids of the runs that this one was forked from. datasets: what it is trained on.
        """

    def wake(self) -> None:
        """Tell the tracker that metrics.jsonl or checkpoints/ changed. Returns at once and never raises."""

    def close(self, status: str, timeout_seconds: float, *, note: str | None = None) -> str | None:
        """Wait until everything is stored and the status is set, then end the tracker.

        status: "finished", "interrupted" or "failed". note: what came of the run, in Markdown. The wait ends early if
        the tracker gives up.
        Returns: None if everything is stored, else one line that says what is not, why, and how to store it later.
        """

    def page(self) -> Page | None:
        """Return where the run is to be looked at. None if the tracker has not opened it."""

    def abandon(self) -> None:
        """End the tracker without storing anything, where `start` was never called. Does nothing after `close`."""
