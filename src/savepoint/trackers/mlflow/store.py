"""The calls to MLflow's API. Only the worker process imports this module, because importing mlflow takes seconds."""

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.mlflow.process import Message
from savepoint.trackers.points import Point

RUN, RUN_DIR, PARENTS, SWEEP = "savepoint.run_id", "savepoint.run_dir", "savepoint.parents", "savepoint.sweep_id"
NOTE = "mlflow.note.content"
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# The last file of a checkpoint to be written and to be uploaded. Without it the checkpoint does not exist.
MANIFEST = "manifest.json"
# The files of a run, beside its checkpoints, that it needs to be brought back from here.
RECORD = ("run.json", "metrics.jsonl", "evaluations.jsonl")

# MLflow's limits (mlflow.utils.validation), the same for every store.
_METRICS, _PARAMS, _KEY, _PARAM, _TAG = 1000, 100, 250, 6000, 8000


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes. Waits without limit: the worker has a deadline of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = system.files.Lock(path)
    while not lock.acquire():
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


def connect(order: Message) -> MlflowClient:
    """Return a client whose store has answered. A local database is created if need be, by one process of many.

    Raises: UserError if a person has to change something before the store can work, else what MLflow raises.
    """
    if order["database"]:
        database = Path(order["database"])
        if _is_absent(database):
            with locked(Path(order["lock"])):
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


def tagged(client: MlflowClient, experiment_id: str, tag: str, value: str) -> Run | None:
    """Return the first run with this tag. value: an id of our own, so it needs no quoting."""
    order = ["attributes.start_time ASC"]
    runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1, order_by=order)
    return runs[0] if runs else None


def known(client: MlflowClient, tracker_run_id: str, *, run_id: str) -> Run | None:
    """Return the run with this id if its tags say that it is ours: an id in a stranger's run.json proves nothing."""
    try:
        run = client.get_run(tracker_run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run if run.info.lifecycle_stage == "active" and run.data.tags.get(RUN) == run_id else None


def history(client: MlflowClient, run: Run) -> set[tuple[str, int]]:
    """Return the (key, step) of every point that the store has of this run."""
    keys = run.data.metrics
    return {(key, metric.step) for key in keys for metric in client.get_metric_history(run.info.run_id, key)}


def log_points(client: MlflowClient, tracker_run_id: str, points: Sequence[Point]) -> None:
    """Store points, in as many calls as MLflow's limit asks for."""
    metrics = [Metric(p.key, p.value, p.milliseconds, p.step) for p in points]
    for first in range(0, len(metrics), _METRICS):
        client.log_batch(tracker_run_id, metrics=metrics[first : first + _METRICS])


def log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    """Store the params that the run does not have yet. MLflow refuses to change one: it shows how a run began."""
    fitting: dict[str, str] = {}
    for key, value in params.items():
        clean, copy = allowed(key), 1
        while clean in fitting:
            copy += 1
            clean = f"{allowed(key)[: _KEY - 4]}_{copy}"
        fitting[clean] = _cut(value, _PARAM)
    missing = [Param(key, value) for key, value in fitting.items() if key not in run.data.params]
    for first in range(0, len(missing), _PARAMS):
        client.log_batch(run.info.run_id, params=missing[first : first + _PARAMS])


def log_tags(client: MlflowClient, tracker_run_id: str, tags: Mapping[str, str]) -> None:
    """Store tags, at most 100. A tag that exists is changed."""
    client.log_batch(tracker_run_id, tags=[RunTag(allowed(key), _cut(value, _TAG)) for key, value in tags.items()])


@functools.cache
def allowed(key: str) -> str:
    """Return a name that MLflow takes on any system. It refuses '=', '@', and all but plain relative paths.

    >>> allowed("../model.kernel@3x3=same")
    'model.kernel_3x3_same'
    """
    parts = [part for part in re.sub(r"[^\w.\- /]", "_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:_KEY].rstrip("/") or "_"


def _cut(value: str, limit: int) -> str:
    """Shorten a value to `limit` characters and say so at its end. MLflow would cut it silently."""
    note = f" … [cut: {len(value)} characters]"
    return value if len(value) <= limit else value[: limit - len(note)] + note


class CheckpointMirror:
    """Keeps a run's artifacts under `checkpoints/` equal to its directory of checkpoints, retention included."""

    def __init__(self, root: Path, artifacts: ArtifactRepository) -> None:
        self._root = root
        self._artifacts = artifacts
        self._stored: dict[str, bool] | None = None  # name -> whether the upload is complete

    def sync(self) -> None:
        """Upload new checkpoints, and delete those that are gone from the disk."""
        if not self._root.is_dir():
            return  # not created yet, or out of reach: no reason to delete anything
        if self._stored is None:
            self._stored = {name: MANIFEST in self._names(name) for name in self._names()}
        local = {path.parent.name for path in self._root.glob(f"[!.]*/{MANIFEST}")}
        for name in sorted(local):
            if not self._stored.get(name):
                self._stored[name] = False
                self._stored[name] = self._upload(name)
        for name in sorted(self._stored):
            if not (self._root / name).is_dir():
                self._artifacts.delete_artifacts(f"checkpoints/{name}")  # type: ignore[no-untyped-call]
                del self._stored[name]

    def _names(self, name: str = "") -> set[str]:
        path = f"checkpoints/{name}".rstrip("/")
        return {info.path.rsplit("/", 1)[-1] for info in self._artifacts.list_artifacts(path)}

    def _upload(self, name: str) -> bool:
        """Upload a checkpoint. Returns: whether it is complete; one that is pruned meanwhile is not, and no error."""
        source = self._root / name
        try:
            # The manifest goes last: an upload without it was cut short.
            for path in sorted(source.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
                self._artifacts.log_artifact(str(path), f"checkpoints/{name}")  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            if source.is_dir():
                raise
            return False
        return True


class FigureMirror:
    """Keeps a run's artifacts under `figures/` equal to its directory of figures, the oldest of which are deleted."""

    def __init__(self, root: Path, artifacts: ArtifactRepository) -> None:
        self._root, self._artifacts = root, artifacts
        self._stored: set[str] | None = None  # paths below figures/

    def sync(self) -> None:
        """Upload new figures, and delete those that are gone from the disk."""
        if not self._root.is_dir():
            return
        if self._stored is None:
            folders = [info.path for info in self._artifacts.list_artifacts("figures") if info.is_dir]
            files = [info.path for folder in folders for info in self._artifacts.list_artifacts(folder)]
            self._stored = {path.removeprefix("figures/") for path in files}
        local = {path.relative_to(self._root).as_posix() for path in self._root.glob("*/epoch_*")}
        for name in sorted(local - self._stored):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, since newer ones came
                folder = f"figures/{name.rpartition('/')[0]}"
                self._artifacts.log_artifact(str(self._root / name), folder)  # type: ignore[no-untyped-call]
                self._stored.add(name)
        for name in sorted(self._stored - local):
            self._artifacts.delete_artifacts(f"figures/{name}")  # type: ignore[no-untyped-call]
            self._stored.remove(name)


def finish_sweep(order: Message) -> Message:
    """Set the status of a sweep's parent run, and store the table of results with it."""
    client = connect(order)
    experiment = client.get_experiment_by_name(order["experiment"])
    parent = experiment and tagged(client, experiment.experiment_id, SWEEP, order["sweep_id"])
    if parent:
        client.set_terminated(parent.info.run_id, STATUS[order["status"]])
        if Path(order["table"]).is_file():
            client.log_artifact(parent.info.run_id, order["table"])
    return {}


def find_runs(order: Message) -> Message:
    """Return at most five runs of all experiments whose id begins with `text`: letters, digits and dashes.

    If there is none, those that mirror the run of this repository with the id `text`.
    """
    client = connect(order)
    experiments = [found.experiment_id for found in client.search_experiments()]
    for query in (f"attributes.run_id LIKE '{order['text']}%'", f"tags.`{RUN}` = '{order['text']}'"):
        if runs := client.search_runs(experiments, query, max_results=5):
            break
    return {"runs": [(run.info.run_id, run.data.tags.get(RUN), run.data.tags.get(RUN_DIR)) for run in runs]}


def fetch(order: Message) -> Message:
    """Download a run's files, its figures, and each checkpoint whose upload was completed, into the directory `to`."""
    client = connect(order)
    run = client.get_run(order["tracker_run_id"])
    artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=order["uri"])

    def names(path: str) -> list[str]:
        listed = (info.path.rsplit("/", 1)[-1] for info in artifacts.list_artifacts(path))
        # Whatever a store lists, nothing is written outside of `to`.
        return [name for name in listed if re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII)]

    there = names("")
    wanted = [name for name in (*RECORD, "config.yaml", "changes.patch", "figures") if name in there]
    if "checkpoints" in there:
        found = [f"checkpoints/{name}" for name in names("checkpoints")]
        wanted += [path for path in found if MANIFEST in names(path)]
    for path in wanted:
        artifacts.download_artifacts(path, order["to"])  # type: ignore[no-untyped-call]
    return {"fetched": wanted}
