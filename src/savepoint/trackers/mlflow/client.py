"""Open MLflow's store: create a database and its schema, create an experiment, and explain why a store cannot work."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.process import Message

BYTES_A_SECOND = 5e6  # the slowest storage of a server that we allow for


def connect(order: Message) -> MlflowClient:
    """Return a client whose store has answered. If a local database does not exist, one process of many creates it.

    Raises: UserError if a person has to change something before the store can work, else what MLflow raises.
    """
    if order["database"]:
        database = Path(order["database"])
        if _is_absent(database):
            with system.files.locked(Path(order["lock"])):
                if _is_absent(database):
                    _create(database, artifacts=order["artifacts"])
    try:
        _check_server(order["uri"])
        client = MlflowClient(tracking_uri=order["uri"])
        client.search_experiments(max_results=1)
    except (UnsupportedModelRegistryStoreURIException, InvalidUrlException) as error:
        use = "Use sqlite:///<path>.db, or a server's http(s)://<host>:<port>"
        raise UserError(f"MLflow has no store at an address like {order['uri']}. {use}") from error
    except ImportError as error:
        install = "Install what that address needs, or set tracker.uri to another store"
        raise UserError(f"the database at {order['uri']} has no driver here ({error}). {install}") from error
    return client


def _check_server(uri: str) -> None:
    """Check that a database server accepts a connection. MLflow itself would retry for 100 seconds, whatever is wrong.

    Raises: UserError with the server's words.
    """
    if urlsplit(uri).scheme.partition("+")[0] not in ("postgresql", "mysql", "mssql"):
        return
    engine = create_engine(uri)
    try:
        engine.connect().close()
    except DBAPIError as error:
        check = "Check the address, the user and the password in MLFLOW_TRACKING_URI"
        raise UserError(f"{uri} refuses the connection ({' '.join(str(error.orig).split())}). {check}") from error
    finally:
        engine.dispose()


def _is_absent(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _create(database: Path, *, artifacts: str | None) -> None:
    """Create a database with MLflow's schema, whole or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes a second to import

    # Under another name first: MLflow cannot repair a schema whose creation was killed half way.
    fresh = database.with_name(database.name + "-new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{fresh.as_posix()}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
    os.replace(fresh, database)


def experiment(client: MlflowClient, name: str, *, artifacts: str | None) -> str:
    """Return an experiment's id. Create the experiment if need be. Raises: UserError if it was deleted in MLflow."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return _known(client.create_experiment(name, artifact_location=artifacts))
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
    return _known(found.experiment_id)


def _known(experiment_id: str) -> str:
    """Return the id. Raises: UserError if it is empty, as MLflow's client returns it where no MLflow server answers."""
    if not experiment_id:
        raise UserError("the server answers, but is no MLflow server. Check tracker.uri and MLFLOW_TRACKING_URI")
    return experiment_id


@contextlib.contextmanager
def requests_with(**variables: object) -> Iterator[None]:
    """Change the settings of MLflow's requests for the body. variables: named without `MLFLOW_HTTP_REQUEST_`."""
    names = {f"MLFLOW_HTTP_REQUEST_{name}": str(value) for name, value in variables.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def transfer(size: int) -> contextlib.AbstractContextManager[None]:
    """Give a request enough time to upload `size` bytes. A server answers only when it has stored the whole file."""
    seconds = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", 15)) + size / BYTES_A_SECOND
    return requests_with(TIMEOUT=math.ceil(seconds))
