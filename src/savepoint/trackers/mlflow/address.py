"""Where MLflow keeps its runs and shows them. MLflow is not imported."""

import contextlib
import os
import re
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Page, Server


def locate(settings: TrackerSettings, repository: Path, lock_dir: Path) -> Message:
    """Return the address of the store: from the environment, else from the config, else mlflow.db in the repository.

    lock_dir: where processes lock a store that is not on this disk.
    Raises: ConfigError if MLflow cannot use such a store here, or if the config holds a password.
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
    # A relative path in the environment starts at the current directory, as for `mlflow ui`. One in the config starts
    # at the repository, so that it means the same place everywhere.
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
            "usual": False,
        }
    if parts.scheme != "sqlite":
        lock = lock_dir.absolute() / ".mlflow.lock"
        none = dict.fromkeys(("database", "directory", "artifacts"))
        return {"uri": uri, "experiment": settings.experiment, "lock": str(lock), "usual": False, **none}
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
        "usual": database == repository.absolute() / "mlflow.db",
    }


def absent(order: Message) -> bool:
    """Return whether the store is a local one that no run has created yet."""
    place = order["database"] or order["directory"]
    return place is not None and not Path(place).exists()


def page(order: Message, path: str) -> Page:
    """Return the page of one run or of several. path: follows the server's address."""
    if order["database"] or order["directory"]:
        return Page(order["uri"], None, path, () if order["usual"] else (f"tracker.uri={order['uri']}",))
    shown = re.sub(r"://[^/@\s]+@", "://", order["uri"])  # without a password from the environment
    return Page(None, shown.rstrip("/") + "/", path)


def front(order: Message) -> Page:
    """Return the page that lists the experiment's runs. Read MLflow's database directly for the experiment's id."""
    if order["database"] is None:
        return page(order, "")
    found = None
    with contextlib.suppress(sqlite3.Error):  # no database yet, or one that MLflow has not made
        address = f"{Path(order['database']).as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            query = "SELECT experiment_id FROM experiments WHERE name = ?"
            found = database.execute(query, (order["experiment"],)).fetchone()
    # Without `workflowType` MLflow opens a view for language models, in which runs are listed under "Evaluations".
    return page(order, f"#/experiments/{found[0]}/runs?workflowType=machine_learning" if found else "")


def serve(order: Message, port: str) -> Server:
    """Return the command that serves the page of a local store."""
    address = ["--host", "127.0.0.1", "--port", port, "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", order["uri"], *address]
    # MLflow's job workers would keep running after their server has ended.
    return Server(command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"})
