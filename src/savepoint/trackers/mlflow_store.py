"""What this repository asks of MLflow. Imported by the worker process alone, since importing mlflow takes seconds."""

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.points import Point

RUN, RUN_DIR, PARENTS, SWEEP = "savepoint.run_id", "savepoint.run_dir", "savepoint.parents", "savepoint.sweep_id"
MANIFEST = "manifest.json"  # a checkpoint's last file, here as on the disk: without it there is no checkpoint

# MLflow's limits (mlflow.utils.validation), the same for every store.
_METRICS, _PARAMS, _KEY, _PARAM, _TAG = 1000, 100, 250, 6000, 8000


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock, waiting for it as long as it takes: the worker has a deadline of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = system.files.Lock(path)
    while not lock.acquire():
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


def connect(uri: str, *, database: Path | None, artifacts: str | None, lock: Path) -> MlflowClient:
    """A client whose store has answered. Any number of processes may call it at once, on a store that is not there yet.

    database, artifacts: where a local SQLite store is, and the address of its artifacts.
    """
    if database and _absent(database):
        with locked(lock):
            if _absent(database):
                _make(database, artifacts=artifacts)
    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _absent(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _make(database: Path, *, artifacts: str | None) -> None:
    """Make a database with MLflow's schema, whole or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # a second's worth of SQLAlchemy

    # Under another name first: a schema whose making was killed half way can never be repaired by MLflow.
    fresh = database.with_name(database.name + "-new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{fresh.as_posix()}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
    os.replace(fresh, database)


def experiment(client: MlflowClient, name: str, *, artifacts: str | None) -> str:
    """The id of an experiment, made if there is none. Raises: UserError if it was deleted in MLflow."""
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
    """The first run with this tag. value: one of our own ids, so there is nothing to quote in it."""
    order = ["attributes.start_time ASC"]
    runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1, order_by=order)
    return runs[0] if runs else None


def known(client: MlflowClient, tracker_run_id: str, *, run_id: str) -> Run | None:
    """The run with this id, if it is there and says that it is ours: an id in a stranger's run.json proves nothing."""
    try:
        run = client.get_run(tracker_run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run if run.info.lifecycle_stage == "active" and run.data.tags.get(RUN) == run_id else None


def beginning(client: MlflowClient, text: str) -> list[Run]:
    """The runs of all experiments whose id begins with `text`: letters, digits and dashes. At most five."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments, f"attributes.run_id LIKE '{text}%'", max_results=5))


def history(client: MlflowClient, run: Run) -> set[tuple[str, int]]:
    """Every (key, step) that the store has of this run."""
    keys = run.data.metrics
    return {(key, metric.step) for key in keys for metric in client.get_metric_history(run.info.run_id, key)}


def log_points(client: MlflowClient, tracker_run_id: str, points: Sequence[Point]) -> None:
    metrics = [Metric(p.key, p.value, p.milliseconds, p.step) for p in points]
    for first in range(0, len(metrics), _METRICS):
        client.log_batch(tracker_run_id, metrics=metrics[first : first + _METRICS])


def log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    """Log those that the run does not have: MLflow refuses to change a param, and what it shows is how a run began."""
    worded: dict[str, str] = {}
    for key, value in params.items():
        clean, copy = allowed(key), 1
        while clean in worded:
            copy += 1
            clean = f"{allowed(key)[: _KEY - 4]}_{copy}"
        worded[clean] = cut(value, _PARAM)
    missing = [Param(key, value) for key, value in worded.items() if key not in run.data.params]
    for first in range(0, len(missing), _PARAMS):
        client.log_batch(run.info.run_id, params=missing[first : first + _PARAMS])


def log_tags(client: MlflowClient, tracker_run_id: str, tags: Mapping[str, str]) -> None:
    worded = [RunTag(allowed(key), cut(value, _TAG)) for key, value in tags.items()]
    for first in range(0, len(worded), _PARAMS):
        client.log_batch(tracker_run_id, tags=worded[first : first + _PARAMS])


@functools.cache
def allowed(key: str) -> str:
    """A name that MLflow takes, on any system: it refuses '=', '@' and what is no plain relative path.

    >>> allowed("../model.kernel@3x3=same")
    'model.kernel_3x3_same'
    """
    parts = [part for part in re.sub(r"[^\w.\- /]", "_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:_KEY].rstrip("/") or "_"


def cut(value: str, limit: int) -> str:
    """A value that fits. MLflow would cut it too, without a word."""
    note = f" … [cut: {len(value)} characters]"
    return value if len(value) <= limit else value[: limit - len(note)] + note


class CheckpointMirror:
    """Keeps a run's artifacts under `checkpoints/` equal to its directory of checkpoints, retention included."""

    def __init__(self, root: Path, repository: ArtifactRepository) -> None:
        self._root = root
        self._repository = repository
        self._stored: dict[str, bool] | None = None  # name -> whether it is there whole

    def sync(self) -> None:
        """Upload what is new, delete what is gone."""
        if not self._root.is_dir():
            return  # not made yet, or out of reach: no reason to delete anything
        if self._stored is None:
            self._stored = {name: MANIFEST in self._names(name) for name in self._names()}
        local = {path.parent.name for path in self._root.glob(f"[!.]*/{MANIFEST}")}
        for name in sorted(local):
            if not self._stored.get(name):
                self._stored[name] = False
                self._stored[name] = self._upload(name)
        for name in sorted(self._stored):
            if not (self._root / name).is_dir():
                self._repository.delete_artifacts(f"checkpoints/{name}")  # type: ignore[no-untyped-call]
                del self._stored[name]

    def _names(self, name: str | None = None) -> set[str]:
        path = f"checkpoints/{name}" if name else "checkpoints"
        return {info.path.rsplit("/", 1)[-1] for info in self._repository.list_artifacts(path)}

    def _upload(self, name: str) -> bool:
        """False if the checkpoint was pruned meanwhile, which is no error."""
        source = self._root / name
        try:
            # The manifest goes last, so that an upload that was cut short can be told from a whole one.
            for path in sorted(source.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
                self._repository.log_artifact(str(path), f"checkpoints/{name}")  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            if source.is_dir():
                raise
            return False
        return True
