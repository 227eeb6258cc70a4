"""MLflow as a tracker: a local database, a plain directory, or a server.

Rooms, in reading order:
    address   where MLflow keeps its runs and shows them
    database  check whether a local database can be used
    words     explain MLflow's errors
    client    open the store; in the tracker's process alone, like the next two rooms
    store     the calls to MLflow's API
    model     store a checkpoint as an MLflow model
    loader    load such a model; each model has a copy of this file
"""

from pathlib import Path

from savepoint import system
from savepoint.trackers.kinds import Kind
from savepoint.trackers.mlflow.address import absent, front, locate, page, serve
from savepoint.trackers.mlflow.words import explain
from savepoint.trackers.process import Message
from savepoint.trackers.store import Store

__all__ = ["KIND"]


def _connect(order: Message) -> Store:
    if order["database"]:
        from savepoint.trackers.mlflow.database import check_database

        # Before MLflow is imported, so that a short run does not wait for the import when the database is unusable.
        check_database(Path(order["database"]))
    with system.memory.permanent():
        from savepoint.trackers.mlflow import store
    return store.connect(order)


KIND = Kind(
    title="MLflow",
    environment={
        # These limit how long MLflow tries to reach a server. Its own defaults block a call for minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    },
    locate=locate,
    absent=absent,
    page=page,
    front=front,
    serve=serve,
    connect=_connect,
    explain=explain,
)
