"""MLflow, seen from the training process: it starts a process that talks to MLflow, and never imports mlflow itself.

So neither mlflow's import nor a server that is slow, down or hanging ever costs training time, and no thread of ours
lives in a process that may fork data loading workers.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers.mlflow_process import Message, Worker
from savepoint.trackers.points import count
from savepoint.trackers.protocol import Found, Sweep


class MLflowTracker:
    """A run in MLflow, kept up to date by another process. `trackers.Tracker` says what each method promises."""

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
        self.run_id: str | None = None
        self._metrics = run_dir / "metrics.jsonl"
        self._warn, self._announce = warn, announce
        self._warned = self._started = self._closed = False
        self._stored = 0
        self._done: Message | None = None
        self._trouble: str | None = None
        lock_dir = sweep.dir if sweep else run_dir
        order = _store(settings, repository, lock_dir=lock_dir) | {
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

    def ready(self, timeout_seconds: float) -> str | None:
        self._listen_until(lambda: self.run_id is not None, timeout_seconds)
        return self.run_id

    def wake(self) -> None:
        if self._worker.idle:  # else a wake is still on its way, and the worker looks on its own every second
            self._worker.send({"do": "wake"})
        self._listen()

    def close(self, status: str, timeout_seconds: float) -> str | None:
        if self._closed or not self._started:
            self.abandon()
            return None
        self._closed = True
        self._worker.send({"do": "close", "status": status, "timeout_seconds": timeout_seconds})
        self._listen_until(lambda: self._done is not None, timeout_seconds)
        failed = dict(self._done["failed"]) if self._done else {"": self._why_not_done(timeout_seconds)}
        self._worker.end()
        if not failed:
            return None
        why = "; ".join(f"cannot {what}: {reason}" if what else reason for what, reason in failed.items())
        total = count(self._metrics)
        missing = max(0, total - self._stored)
        if missing:
            kept = "They are kept in metrics.jsonl, and resuming the run sends them."
            return f"MLflow has not stored {missing} of {total} points ({why.rstrip('.')}). {kept}"
        return f"MLflow has all {total} points, but not all of the rest ({why.rstrip('.')}). Resuming the run sends it."

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._worker.end()
            self._worker.remove_log()

    def _why_not_done(self, timeout_seconds: float) -> str:
        if self._worker.died:
            return "its process ended early, see tracker.log"
        return self._trouble or f"not done within {timeout_seconds:g} s"

    def _listen_until(self, happened: Callable[[], bool], timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        self._listen()
        while not happened() and time.monotonic() < deadline and not self._closed_for_good():
            time.sleep(0.005)
            self._listen()

    def _closed_for_good(self) -> bool:
        if not self._worker.died:
            return False
        self._listen()  # what it said last
        return True

    def _listen(self) -> None:
        for message in self._worker.exchange():
            if message["say"] == "ready":
                self.run_id = message["run_id"]
                self._announce(message["run_id"])
            elif message["say"] == "stored":
                self._stored = message["points"]
            elif message["say"] == "trouble":
                self._trouble = message["text"]
                self._warn_once(message["text"])
            elif message["say"] == "done":
                self._done = message
        if self._worker.died and self._done is None:
            self._warn_once("its process ended early, see tracker.log")

    def _warn_once(self, text: str) -> None:
        if not self._warned and not self._closed:
            self._warned = True
            self._warn(f"MLflow: {text.rstrip('.')}. Training goes on; metrics.jsonl keeps every point.")


def finish_sweep(
    settings: TrackerSettings, *, repository: Path, sweep: Sweep, table: Path, status: str, timeout_seconds: float
) -> str | None:
    details = {"sweep": {"id": sweep.id, "name": sweep.name}, "table": str(table.absolute()), "status": status}
    order = _store(settings, repository, lock_dir=sweep.dir) | {"do": "finish_sweep"} | details
    if order["database"] and not Path(order["database"]).exists():
        return None
    try:
        failed = Worker(order, log=sweep.dir / "tracker.log").ask(timeout_seconds)["failed"]
    except (TimeoutError, RuntimeError) as error:
        failed = {"ask": str(error)}
    if not failed:
        return None
    return f"MLflow has not stored the sweep's table ({failed['ask'].rstrip('.')}). It is complete in {table}."


def find_run(settings: TrackerSettings, *, repository: Path, text: str, timeout_seconds: float) -> Found | None:
    with tempfile.TemporaryDirectory() as lock_dir:
        order = _store(settings, repository, lock_dir=Path(lock_dir)) | {"do": "find_runs", "text": text}
        absent = order["database"] and not Path(order["database"]).exists()
        if absent or not re.fullmatch(r"[0-9A-Za-z-]{6,64}", text):
            return None
        try:
            answer = Worker(order, log=None).ask(timeout_seconds)
        except (TimeoutError, RuntimeError) as error:
            raise UserError(f"MLflow was asked for the run {text}: {error}.") from error
    if answer["failed"]:
        raise UserError(f"MLflow was asked for the run {text}: {answer['failed']['ask']}")
    runs = [Found(*run) for run in answer["runs"]]
    if len(runs) > 1:
        ids = ", ".join(run.tracker_run_id for run in runs)
        raise UserError(f"several of MLflow's runs begin with {text}: {ids}. Give more characters.")
    return runs[0] if runs else None


def _store(settings: TrackerSettings, repository: Path, *, lock_dir: Path) -> Message:
    """Where the store is: from the environment, or else the config, or else mlflow.db in the repository.

    Raises: ConfigError if MLflow has no such store, or if the config holds a password.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    uri = environment or settings.uri or "sqlite:///mlflow.db"
    name = f"MLFLOW_TRACKING_URI={environment}" if environment else f"tracker.uri={uri}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{name}: no address that can be read ({error}).") from error
    if parts.password and not environment:
        shown = uri.replace(f":{parts.password}@", ":***@")
        use = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI, in the environment."
        raise ConfigError(f"tracker.uri={shown}: a config holds no password. {use}")
    plain = parts.scheme == "file" or len(parts.scheme) < 2  # C:\\mlruns has a scheme, too
    if plain and not uri.startswith("databricks"):
        use = "Use sqlite:///<path>.db, or a server's http(s)://<host>:<port>."
        raise ConfigError(f"{name}: MLflow keeps no runs in plain directories any more. {use}")
    database = None
    if parts.scheme == "sqlite":
        path = uri.removeprefix("sqlite:///")
        if path in ("", ":memory:", uri):
            raise ConfigError(f"{name}: a database in memory is gone with its process. Use sqlite:///<path>.db.")
        # A relative path in the environment means what it means to `mlflow ui`; one in the config, the same everywhere.
        database = (Path.cwd() if environment else repository.absolute()) / path
        uri = f"sqlite:///{database.as_posix()}"
    return {
        "uri": uri,
        "experiment": settings.experiment,
        "database": str(database) if database else None,
        "artifacts": database.with_name("mlartifacts").as_uri() if database else None,
        "lock": str((database.parent if database else lock_dir).absolute() / ".mlflow.lock"),
    }
