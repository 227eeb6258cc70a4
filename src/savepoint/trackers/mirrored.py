"""A tracker in the training process. It gives orders to the tracker's process, which talks to the store."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from savepoint.config import TrackerSettings
from savepoint.trackers import kinds, questions
from savepoint.trackers.points import count
from savepoint.trackers.process import LOG, Message, Worker
from savepoint.trackers.protocol import Dataset, Page, Sweep

LOOK_SECONDS = 0.2  # between two `look` orders. The process bundles the points of this time anyway


class _Session:
    """The process that serves a run, or all runs of a sweep, and the trackers that give it orders.

    store: the order that the process was started with, which says where the store is. done: the process's last message.
    """

    def __init__(self, kind: kinds.Kind, order: Message, *, log: Path) -> None:
        self.kind, self.store = kind, order
        self.done: Message | None = None
        self.trouble = ""  # the newest message of this kind
        self._worker = Worker(order, log=log, environment=kind.environment)
        self._trackers: dict[str, MirroredTracker] = {}
        self._warned = False

    def serve(self, tracker: "MirroredTracker", order: Message) -> None:
        """Let the process follow a run."""
        if order is not self.store:
            self._worker.send(order)
        self._trackers[order["run_id"]] = tracker

    @property
    def open(self) -> bool:
        """Whether the process takes orders."""
        return self.done is None and not self._worker.died

    def send(self, order: Message) -> None:
        self._worker.send(order)
        self.listen()

    def look(self) -> None:
        """Ask the process to look at the files now instead of in a second."""
        # Otherwise orders would pile up before a process that hangs. When it wakes up, it looks at the files anyway.
        if self._worker.idle:
            self._worker.send({"do": "look"})
        self.listen()

    def listen(self) -> None:
        """Read the process's messages, and pass each on to the tracker of its run."""
        died = self._worker.died
        for message in self._worker.exchange():
            if message["say"] == "done":
                self.done = message
                continue
            tracker = self._trackers[message["run_id"]]
            if message["say"] == "trouble":
                self.trouble = message["text"]
                self._warn_once(tracker, message["text"])
            else:
                tracker.hear(message)
        if died and self.done is None:
            for tracker in self._trackers.values():
                self._warn_once(tracker, self.early)

    @property
    def early(self) -> str:
        return f"its process ended early, see {self._worker.log}"

    def _warn_once(self, tracker: "MirroredTracker", text: str) -> None:
        # No warning at the end: the line that `close` returns tells what failed.
        if not self._warned and not tracker.closed:
            self._warned = True
            goes_on = "Training goes on; metrics.jsonl keeps every point."
            tracker.warn(f"{self.kind.title}: {text.rstrip('.')}. {goes_on}")

    def finish(self, timeout_seconds: float, **sweep: str | None) -> list[str]:
        """Wait until everything is stored, then end the process.

        sweep: `sweep_id`, `status` and `table`; each is None if there is no sweep.
        Returns: a line for each run that is not stored completely.
        """
        self._worker.send({"do": "finish", "timeout_seconds": timeout_seconds, **sweep})
        deadline = time.monotonic() + timeout_seconds
        died = False
        while self.done is None and not died and time.monotonic() < deadline:
            died = self._worker.died  # asked before the pipe is read, which may hold a dead process's last messages
            self.listen()
            time.sleep(0.005)
        self._worker.end()
        if self.done is not None:
            failed = self.done["failed"]
        else:
            why = self.early if died else self.trouble or f"not done within {timeout_seconds:g} s"
            failed = {run_id: {"": why} for run_id, tracker in self._trackers.items() if not tracker.stored_all}
        return [tracker.missing(failed[run_id]) for run_id, tracker in self._trackers.items() if run_id in failed]

    def drop(self, run_id: str) -> None:
        """Forget a run that never began."""
        del self._trackers[run_id]
        self._worker.send({"do": "drop", "run_id": run_id})

    def end(self) -> None:
        """End the process without storing anything more."""
        self._worker.end()


# The sessions of the sweeps that this process runs, by the sweep's id. `finish_sweep` removes them.
_SWEEPS: dict[str, list[_Session]] = {}


def _shared_session(sweep: Sweep, kind: kinds.Kind, order: Message) -> _Session:
    """Return the session that serves a sweep's runs. Begin one for the first run, or if the session's process died."""
    sessions = _SWEEPS.setdefault(sweep.id, [])
    for session in sessions:
        if session.open and session.store["uri"] == order["uri"]:
            return session
    sessions.append(_Session(kind, order, log=sweep.dir / LOG))
    return sessions[-1]


class MirroredTracker:
    """A run in a tracker's store, which another process keeps up to date. `trackers.Tracker` documents the methods.

    shared: whether the process serves all runs of the sweep. `close` then does not wait; `finish_sweep` does.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        run_dir: Path,
        run_id: str,
        repository: Path,
        sweep: Sweep | None,
        shared: bool,
        known_run_id: str | None,
        upload: bool,
        warn: Callable[[str], None],
        inform: Callable[[str], None],
        announce: Callable[[str], None],
    ) -> None:
        kind = kinds.load(settings.kind)
        self._run_dir, self._run_id = run_dir, run_id
        self.warn, self._inform, self._announce = warn, inform, announce
        self._kind = settings.kind
        self.closed = self._started = False
        self.stored_all = False
        self._stored = 0
        self._look_at = 0.0
        self._path: str | None = None  # of the run's page
        order = kind.locate(settings, repository, sweep.dir if sweep else run_dir) | {
            "do": "follow",
            "kind": settings.kind,
            "since": time.time(),
            "run_dir": str(run_dir.absolute()),
            "run_id": run_id,
            "known": known_run_id,
            "upload": upload,
            "repository": str(repository.absolute()),
            "register_as": settings.register_as,
            "sweep": {"id": sweep.id, "name": sweep.name} if sweep else None,
        }
        self._shared = sweep is not None and shared
        if sweep is not None and shared:
            self._session = _shared_session(sweep, kind, order)
        else:
            self._session = _Session(kind, order, log=run_dir / LOG)
        self._session.serve(self, order)

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
        self._started = True
        self._session.send(
            {
                "do": "start",
                "run_id": self._run_id,
                "name": name,
                "params": dict(params),
                "tags": dict(tags),
                "documents": [str(path.absolute()) for path in documents],
                "parents": list(parents),
                "datasets": [dataclasses.asdict(dataset) for dataset in datasets],
            }
        )

    def wake(self) -> None:
        # A step may take less time than a message to another process.
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._session.look()

    def close(self, status: str, timeout_seconds: float, *, note: str | None = None) -> str | None:
        if self.closed or not self._started:
            self.abandon()
            return None
        self.closed = True
        self._session.send(
            {"do": "close", "run_id": self._run_id, "status": status, "note": note, "ended": time.time()}
        )
        if self._shared:
            return None
        return next(iter(self._session.finish(timeout_seconds, **dict.fromkeys(("sweep_id", "status", "table")))), None)

    def page(self) -> Page | None:
        return None if self._path is None or self._shared else self._session.kind.page(self._session.store, self._path)

    def abandon(self) -> None:
        if not self.closed:
            self.closed = True
            if self._shared:
                self._session.drop(self._run_id)
            else:
                self._session.end()

    def hear(self, message: Message) -> None:
        """Take a message of the process about this run."""
        match message["say"]:
            case "opened":
                self._path = message["path"]
                self._announce(message["stored_id"])
                if not (self._shared and self.closed):
                    self._inform(f"{self._kind} run {message['stored_id']}")
            case "stored":
                self._stored = message["points"]
            case "closed":
                self.stored_all = True

    def missing(self, failed: Mapping[str, str]) -> str:
        """Return one line that says what is not stored. failed: duty -> why it failed."""
        duties: dict[str, list[str]] = {}
        for duty, reason in failed.items():
            duties.setdefault(reason, []).append(duty)
        why = "; ".join(
            f"cannot {', '.join(each)}: {reason}" if any(each) else reason for reason, each in duties.items()
        )
        why = why.rstrip(".")
        total = count(self._run_dir)
        title = self._session.kind.title
        if missing := max(0, total - self._stored):
            kept = "They are kept in metrics.jsonl, and resuming the run sends them."
            return f"{title} has not stored {missing} of {total} points ({why}). {kept}"
        return f"{title} has all {total} points, but not all of the rest ({why}). Resuming the run sends it."


def finish_sweep(
    settings: TrackerSettings, *, repository: Path, sweep: Sweep, table: Path, status: str, timeout_seconds: float
) -> tuple[list[str], Page | None]:
    """Do what `trackers.finish_sweep` promises."""
    sessions = _SWEEPS.pop(sweep.id, [])
    about = {"sweep_id": sweep.id, "status": status, "table": str(table.absolute())}
    if not sessions:  # other processes ran the jobs, or this process only prints the table again
        return questions.finish_sweep(settings, repository, sweep, about, timeout_seconds)
    lines, page = [], None
    for session in sessions:
        lines += session.finish(timeout_seconds, **about)
        done = session.done or {"sweep_failed": None, "sweep_path": None}
        if done["sweep_failed"] is not None:
            lines.append(questions.unstored_table(session.kind, done["sweep_failed"], table))
        if done["sweep_path"] is not None:
            page = session.kind.page(session.store, done["sweep_path"])
    return lines, page
