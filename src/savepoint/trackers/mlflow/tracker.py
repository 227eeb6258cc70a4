"""MLflow as the training process sees it: a tracker that gives orders to the worker process."""

import contextlib
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers.mlflow.process import Message, Worker
from savepoint.trackers.points import count
from savepoint.trackers.protocol import Found, Page, Sweep


class MLflowTracker:
    """A run in MLflow, kept up to date by the worker process. `trackers.Tracker` documents the methods."""

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        run_dir: Path,
        run_id: str,
        repository: Path,
        sweep: Sweep | None,
        known_run_id: str | None,
        upload: bool,
        warn: Callable[[str], None],
        announce: Callable[[str], None],
    ) -> None:
        self._metrics = run_dir / "metrics.jsonl"
        self._warn, self._announce = warn, announce
        self._warned = self._started = self._closed = False
        self._stored = 0
        self._trouble = ""
        self._done: Message | None = None
        self._path: str | None = None  # of the run, in MLflow's page
        order = self._order = _store(settings, repository, lock_dir=sweep.dir if sweep else run_dir) | {
            "do": "follow",
            "since": time.time(),
            "run_dir": str(run_dir.absolute()),
            "run_id": run_id,
            "known": known_run_id,
            "upload": upload,
            "sweep": {"id": sweep.id, "name": sweep.name} if sweep else None,
        }
        self._worker = Worker(order, log=run_dir / "tracker.log")

    def start(
        self,
        *,
        name: str | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        documents: Sequence[Path] = (),
        parents: Sequence[str] = (),
    ) -> None:
        self._started = True
        self._worker.send(
            {
                "do": "start",
                "name": name,
                "params": dict(params),
                "tags": dict(tags),
                "documents": [str(path.absolute()) for path in documents],
                "parents": list(parents),
            }
        )
        self._listen()

    def wake(self) -> None:
        # Orders pile up in front of a worker that stands still. One that wakes up late looks at the files anyway.
        if self._worker.idle:
            self._worker.send({"do": "wake"})
        self._listen()

    def close(self, status: str, timeout_seconds: float) -> str | None:
        if self._closed or not self._started:
            self.abandon()
            return None
        self._closed = True
        self._worker.send({"do": "close", "status": status, "timeout_seconds": timeout_seconds})
        deadline = time.monotonic() + timeout_seconds
        died = False
        while self._done is None and not died and time.monotonic() < deadline:
            died = self._worker.died  # before the pipe is read, which may hold the last words of a dead process
            self._listen()
            time.sleep(0.005)
        self._worker.end()
        if self._done is not None:
            return self._describe_missing(self._done["failed"])
        if died:
            return self._describe_missing({"": "its process ended early, see tracker.log"})
        return self._describe_missing({"": self._trouble or f"not done within {timeout_seconds:g} s"})

    def page(self) -> Page | None:
        return None if self._path is None else _page(self._order, self._path)

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._worker.end()

    def _describe_missing(self, failed: Mapping[str, str]) -> str | None:
        """Say in one line what MLflow has not stored. failed: why a duty failed, by the name of the duty."""
        if not failed:
            return None
        why = "; ".join(f"cannot {duty}: {reason}" if duty else reason for duty, reason in failed.items()).rstrip(".")
        total = count(self._metrics)
        if missing := max(0, total - self._stored):
            kept = "They are kept in metrics.jsonl, and resuming the run sends them."
            return f"MLflow has not stored {missing} of {total} points ({why}). {kept}"
        return f"MLflow has all {total} points, but not all of the rest ({why}). Resuming the run sends it."

    def _listen(self) -> None:
        died = self._worker.died
        for message in self._worker.exchange():
            match message["say"]:
                case "opened":
                    self._path = f"#/experiments/{message['experiment_id']}/runs/{message['run_id']}"
                    self._announce(message["run_id"])
                case "stored":
                    self._stored = message["points"]
                case "trouble":
                    self._trouble = message["text"]
                    self._warn_once(message["text"])
                case "done":
                    self._done = message
        if died and self._done is None:
            self._warn_once("its process ended early, see tracker.log")

    def _warn_once(self, text: str) -> None:
        # What fails at the end is in the line that `close` returns.
        if not self._warned and not self._closed:
            self._warned = True
            self._warn(f"MLflow: {text.rstrip('.')}. Training goes on; metrics.jsonl keeps every point.")


def finish_sweep(
    settings: TrackerSettings, *, repository: Path, sweep: Sweep, table: Path, status: str, timeout_seconds: float
) -> str | None:
    """Do what `trackers.finish_sweep` promises."""
    order = _store(settings, repository, lock_dir=sweep.dir) | {
        "do": "finish_sweep",
        "sweep_id": sweep.id,
        "table": str(table.absolute()),
        "status": status,
    }
    if _is_absent(order):
        return None
    try:
        failed = Worker(order, log=sweep.dir / "tracker.log").ask(timeout_seconds)["failed"]
    except (TimeoutError, RuntimeError) as error:
        failed = str(error)
    if failed is None:
        return None
    return f"MLflow has not stored the sweep's table ({failed.rstrip('.')}). It is complete in {table}."


def find_run(settings: TrackerSettings, *, repository: Path, text: str, timeout_seconds: float) -> Found | None:
    """Do what `trackers.find_run` promises."""
    with tempfile.TemporaryDirectory() as lock_dir:
        order = _store(settings, repository, lock_dir=Path(lock_dir)) | {"do": "find_runs", "text": text}
        if _is_absent(order) or not re.fullmatch(r"[0-9A-Za-z-]{6,64}", text):
            return None
        answer = _answer(order, timeout_seconds, f"MLflow was asked for the run {text}")
    runs = [Found(*run) for run in answer["runs"]]
    if len(runs) > 1:
        ids = ", ".join(run.tracker_run_id for run in runs)
        raise UserError(f"several of MLflow's runs begin with {text}: {ids}. Give more characters.")
    return runs[0] if runs else None


def fetch_run(
    settings: TrackerSettings, *, repository: Path, found: Found, to: Path, timeout_seconds: float
) -> list[str]:
    """Do what `trackers.fetch_run` promises."""
    order = _store(settings, repository, lock_dir=to) | {
        "do": "fetch",
        "tracker_run_id": found.tracker_run_id,
        "to": str(to.absolute()),
    }
    fetched: list[str] = _answer(order, timeout_seconds, f"MLflow's run {found.tracker_run_id} cannot be fetched")[
        "fetched"
    ]
    return fetched


def find_page(settings: TrackerSettings, *, repository: Path) -> Page:
    """Do what `trackers.find_page` promises. MLflow is not imported: its database is read as it is."""
    order = _store(settings, repository, lock_dir=repository)
    if order["database"] is None:
        return _page(order, "")
    found = None
    with contextlib.suppress(sqlite3.Error):  # no database yet, or one that MLflow has not made
        address = f"{Path(order['database']).as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            query = "SELECT experiment_id FROM experiments WHERE name = ?"
            found = database.execute(query, (order["experiment"],)).fetchone()
    # Without the second part MLflow opens a view for language models, in which runs are filed under "Evaluations".
    return _page(order, f"#/experiments/{found[0]}/runs?workflowType=machine_learning" if found else "")


def _page(order: Message, path: str) -> Page:
    if order["database"] or order["directory"]:
        return Page(order["uri"], None, path)
    shown = re.sub(r"://[^/@\s]+@", "://", order["uri"])  # without a password from the environment
    return Page(None, shown.rstrip("/") + "/", path)


def _answer(order: Message, timeout_seconds: float, title: str) -> Message:
    """Ask a worker one question. Raises: UserError that begins with `title`, if there is no answer."""
    try:
        answer = Worker(order, log=None).ask(timeout_seconds)
    except (TimeoutError, RuntimeError) as error:
        answer = {"failed": str(error)}
    if answer["failed"] is not None:
        raise UserError(f"{title}: {answer['failed'].rstrip('.')}.")
    return answer


def _is_absent(order: Message) -> bool:
    """Whether the store is a local one that no run has created yet."""
    place = order["database"] or order["directory"]
    return place is not None and not Path(place).exists()


def _store(settings: TrackerSettings, repository: Path, *, lock_dir: Path) -> Message:
    """Return the address of the store: from the environment, else from the config, else mlflow.db in the repository.

    lock_dir: where processes lock a store that is no local database.
    Raises: ConfigError if MLflow has no such store here, or if the config holds a password.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    uri = environment or settings.uri or "sqlite:///mlflow.db"
    name = f"MLFLOW_TRACKING_URI={environment}" if environment else f"tracker.uri={uri}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{name}: this is not a valid address ({error}).") from error
    if parts.password and not environment:
        shown = uri.replace(f":{parts.password}@", ":***@")
        use = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, in the environment."
        raise ConfigError(f"tracker.uri={shown}: a config holds no password. {use}")
    # A relative path in the environment starts where `mlflow ui` would look. One in the config means one place.
    base = Path.cwd() if environment else repository.absolute()
    directory = parts.scheme == "file" or len(parts.scheme) < 2  # C:\\mlruns has a scheme, too
    if directory and not uri.startswith("databricks"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            raise ConfigError(
                f"{name}: MLflow keeps runs in a plain directory only where MLFLOW_ALLOW_FILE_STORE=true is set. "
                "Set it, or use sqlite:///<path>.db, into which `mlflow migrate-filestore` brings what is there."
            )
        place = base / (url2pathname(parts.path) if parts.scheme == "file" else uri)
        return {
            "uri": place.as_uri(),
            "experiment": settings.experiment,
            "database": None,
            "directory": str(place),
            "artifacts": None,
            "lock": str(place.parent / ".mlflow.lock"),
        }
    if parts.scheme != "sqlite":
        lock = lock_dir.absolute() / ".mlflow.lock"
        none = dict.fromkeys(("database", "directory", "artifacts"))
        return {"uri": uri, "experiment": settings.experiment, "lock": str(lock), **none}
    path = uri.removeprefix("sqlite:///")
    if path in ("", ":memory:", uri):
        raise ConfigError(f"{name}: a database in memory is gone with its process. Use sqlite:///<path>.db.")
    database = base / path
    return {
        "uri": f"sqlite:///{database.as_posix()}",
        "experiment": settings.experiment,
        "database": str(database),
        "directory": None,
        "artifacts": database.with_name("mlartifacts").as_uri(),
        "lock": str(database.parent / ".mlflow.lock"),
    }
