"""Open MLflow's store: a database with its schema, an experiment, and the words for a store that cannot work."""

import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.process import Message


def connect(order: Message) -> MlflowClient:
    """Return a client whose store has answered. A local database is created if need be, by one process of many.

    Raises: UserError if a person has to change something before the store can work, else what MLflow raises.
    """
    if order["database"]:
        database = Path(order["database"])
        if _is_absent(database):
            with system.files.locked(Path(order["lock"])):
                if _is_absent(database):
                    _create(database, artifacts=order["artifacts"])
    try:
        client = MlflowClient(tracking_uri=order["uri"])
        client.search_experiments(max_results=1)
    except (UnsupportedModelRegistryStoreURIException, InvalidUrlException) as error:
        use = "Use sqlite:///<path>.db, or a server's http(s)://<host>:<port>"
        raise UserError(f"MLflow has no store at an address like {order['uri']}. {use}") from error
    except ImportError as error:
        install = "Install what that address needs, or set tracker.uri to another store"
        raise UserError(f"the database at {order['uri']} has no driver here ({error}). {install}") from error
    except MlflowException as error:
        if error.error_code not in _REFUSALS:
            raise
        check = "Check tracker.uri, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise UserError(f"{order['uri']} {_REFUSALS[error.error_code]}. {check}") from error
    return client


# Answers of a server that stay the same until somebody changes the address or the credentials.
_REFUSALS = {
    "UNAUTHENTICATED": "refuses the user or the password (401)",
    "PERMISSION_DENIED": "forbids this user to list experiments (403)",
    "ENDPOINT_NOT_FOUND": "is no MLflow server (404)",
}


def _is_absent(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _create(database: Path, *, artifacts: str | None) -> None:
    """Create a database with MLflow's schema, whole or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes a second to import

    # Under another name first: MLflow can never repair a schema whose creation was killed half way.
    fresh = database.with_name(database.name + "-new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{fresh.as_posix()}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
    os.replace(fresh, database)


def experiment(client: MlflowClient, name: str, *, artifacts: str | None) -> str:
    """Return an experiment's id, creating the experiment if need be. Raises: UserError if it was deleted in MLflow."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # A process on another machine, which our lock does not reach, was faster.
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore -x {found.experiment_id}"
        raise UserError(
            f"the experiment {name!r} was deleted in MLflow. Set tracker.experiment to another, or: {restore}"
        )
    return str(found.experiment_id)
