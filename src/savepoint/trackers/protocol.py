"""The methods of a tracker. A tracker copies the files of the run directory, so no method logs a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Sweep:
    """A sweep of runs. In the tracker these runs share one parent run, which is found by `id`."""

    id: str
    name: str
    dir: Path


@dataclass(frozen=True)
class Found:
    """A run in the tracker, and the run of this repository that it claims to mirror.

    Believe the claim only if the `run.json` in `run_dir` has the same `run_id`.
    """

    tracker_run_id: str
    run_id: str | None
    run_dir: str | None


@dataclass(frozen=True)
class Page:
    """A tracker's web page.

    store: the store that needs a server to be started, or None if a server runs already. server: the address of that
    server, or None. path: follows the server's address and opens this project's runs, or one of them. It is empty
    before the first run. arguments: the arguments with which `python -m savepoint ui` serves the store; none for the
    default store.
    """

    store: str | None
    server: str | None
    path: str
    arguments: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Words for people: the page's address. If no server runs, the command that starts one comes first."""
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
    """A split of the data that a run was trained or evaluated on.

    source: the name of the class that the data came from. samples: their number; None for a stream.
    digest: the SHA-256 of the samples; None if they cannot be compared.
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
        params: the config, flattened. documents: files to store with the run; missing files are skipped.
        parents: ids of the runs that this one was forked from. datasets: the data that the run is trained on.
        """

    def wake(self) -> None:
        """Tell the tracker that metrics.jsonl or checkpoints/ changed. Returns at once and never raises."""

    def close(self, status: str, timeout_seconds: float, *, note: str | None = None) -> str | None:
        """Wait until everything is stored and the status is set, then end the tracker.

        The wait ends early if the tracker gives up.
        status: "finished", "interrupted" or "failed". note: the run's results, in Markdown.
        Returns: None if everything is stored, else one line that says what is not, why, and how to store it later.
        """

    def page(self) -> Page | None:
        """Return the run's page, or None if the tracker has not opened the run."""

    def abandon(self) -> None:
        """End the tracker without storing anything, if `start` was never called. Does nothing after `close`."""
