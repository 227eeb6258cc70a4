"""One run's copy in MLflow. Every method can be called again after it raised, and then goes on from there."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from savepoint import system
from savepoint.trackers.mlflow import store
from savepoint.trackers.mlflow.process import Message
from savepoint.trackers.points import Follower, evaluation_points

PLOT_SECONDS = 30.0


class Mirror:
    """A run directory and its run in MLflow, which is found or created here.

    order: the worker's first order. start: the order to start. follower: reads the run's metrics.jsonl.
    say: sends a message to the training process.
    """

    def __init__(
        self, client: MlflowClient, order: Message, start: Message, *, follower: Follower, say: Callable[..., None]
    ) -> None:
        self._client, self._say, self._follower = client, say, follower
        run = _open_run(client, order, start)
        self._run_id = run.info.run_id
        say("opened", run_id=self._run_id, experiment_id=run.info.experiment_id)
        store.log_tags(client, self._run_id, _tags(order, start))
        if start["parents"] and store.NOTE not in run.data.tags:
            store.log_tags(client, self._run_id, {store.NOTE: _note(client, run.info.experiment_id, start["parents"])})
        store.log_params(client, run, start["params"])
        # (key, step) of the points that MLflow had before this process, and key -> step of the newest point read here.
        self._history = store.history(client, run)
        self._latest: dict[str, int] = {}
        self._points = 0
        self._documents = [Path(document) for document in start["documents"]]
        self._order, self._artifact_uri = order, run.info.artifact_uri
        self._checkpoints: store.CheckpointMirror | None = None
        self._figures: store.FigureMirror | None = None
        self._recorded = ""
        self._title = start["name"] or order["run_id"]
        self._series: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/loss": [], "lr": []}
        self._drawn, self._drawn_at = 0, time.monotonic()

    def send_points(self) -> None:
        """Send the points that metrics.jsonl has gained, except those that MLflow has already."""
        for points in self._follower.read():
            latest = dict(self._latest)
            fresh = []
            for point in points:
                key = store.allowed(point.key)
                # A key has one value a step: the first one in the file, for every process that ever reads the file.
                if (key, point.step) not in self._history and latest.get(key) != point.step:
                    fresh.append(point._replace(key=key))
                latest[key] = point.step
            store.log_points(self._client, self._run_id, fresh)
            self._latest = latest
            self._points += len(points)
            for point in points:
                if point.key in self._series:
                    self._series[point.key].append((point.step, point.value))
            self._say("stored", points=self._points)

    def send_evaluations(self) -> None:
        """Send what checkpoints measured apart from training, each value once."""
        path = Path(self._order["run_dir"], "evaluations.jsonl")
        fresh = [point._replace(key=store.allowed(point.key)) for point in evaluation_points(path)]
        fresh = [point for point in fresh if (point.key, point.step) not in self._history]
        store.log_points(self._client, self._run_id, fresh)
        self._history |= {(point.key, point.step) for point in fresh}

    def set_status(self, status: str) -> None:
        """Set how the run ended: "finished", "interrupted" or "failed"."""
        self._client.set_terminated(self._run_id, store.STATUS[status])

    def send_documents(self) -> None:
        """Store the documents that are not stored yet."""
        while self._documents:
            if self._documents[0].is_file():
                self._client.log_artifact(self._run_id, str(self._documents[0]))
            del self._documents[0]

    def send_checkpoints(self, *, now: bool) -> None:
        """Make the uploaded checkpoints equal to those on the disk, where uploads are asked for.

        Before them go run.json, metrics.jsonl and evaluations.jsonl, so that the run can be brought back from here.
        now: send these files even if there is no other checkpoint than the last time.
        """
        run_dir = Path(self._order["run_dir"])
        newest = max((path.name for path in (run_dir / "checkpoints").glob("[!.]*")), default="")
        if newest != self._recorded or now:
            for name in store.RECORD:
                if (run_dir / name).is_file():
                    self._client.log_artifact(self._run_id, str(run_dir / name))
            self._recorded = newest
        if not self._order["upload"]:
            return
        if self._checkpoints is None:
            self._checkpoints = store.CheckpointMirror(run_dir / "checkpoints", self._artifacts())
        self._checkpoints.sync()

    def send_figures(self) -> None:
        """Make the uploaded figures equal to those on the disk."""
        root = Path(self._order["run_dir"], "figures")
        if self._figures is None and root.is_dir():
            self._figures = store.FigureMirror(root, self._artifacts())
        if self._figures is not None:
            self._figures.sync()

    def _artifacts(self) -> ArtifactRepository:
        # Here and not when the run is opened: storage without its driver must not keep points from being stored.
        return get_artifact_repository(self._artifact_uri, tracking_uri=self._order["uri"])

    def send_plot(self, *, now: bool) -> None:
        """Draw and store loss.png if there is something new to draw. now: do not wait until the last one is old."""
        drawable = sum(len(series) for series in self._series.values())
        if drawable == self._drawn or not (now or time.monotonic() - self._drawn_at > PLOT_SECONDS):
            return
        from savepoint.trackers import plot

        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "loss.png")
            if plot.draw(path, title=self._title, series=self._series):
                self._client.log_artifact(self._run_id, str(path))
        self._drawn, self._drawn_at = drawable, time.monotonic()


def take_turn(run_dir: Path, *, since: float) -> system.files.Lock:
    """Wait until no other worker serves this run: the points it still sends must be in the history fetched next.

    since: when this worker's tracker was opened, in seconds since 1970. A worker that comes after a younger one ends
    its process, because the younger one has stored everything and has set the status.
    """
    lock = system.files.Lock(run_dir / ".tracker.lock")
    while not lock.acquire():
        time.sleep(0.05)
    turn = run_dir / ".tracker.turn"
    if turn.exists() and float(turn.read_text(encoding="utf-8") or 0) > since:
        sys.exit(0)
    turn.write_text(repr(since), encoding="utf-8")
    return lock


def _open_run(client: MlflowClient, order: Message, start: Message) -> Run:
    """Find the run in MLflow or create it, below its sweep's parent run, and mark it as running."""
    with store.locked(Path(order["lock"])):
        experiment_id = store.experiment(client, order["experiment"], artifacts=order["artifacts"])
        if order["sweep"]:
            parent = _sweep_parent(client, experiment_id, order["sweep"])
    run = store.known(client, order["known"], run_id=order["run_id"]) if order["known"] else None
    # The tag finds a run that was killed before run.json got the tracker's id.
    run = run or store.tagged(client, experiment_id, store.RUN, order["run_id"])
    if run is None:
        name = start["name"] or order["run_id"]
        run = client.create_run(experiment_id, run_name=name, tags={store.RUN: order["run_id"]})
    client.update_run(run.info.run_id, status="RUNNING")
    if order["sweep"]:
        client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    return run


def _sweep_parent(client: MlflowClient, experiment_id: str, sweep: Message) -> str:
    """Return the id of the run that a sweep's runs belong to; the first one creates it. Needs the store's lock."""
    parent = store.tagged(client, experiment_id, store.SWEEP, sweep["id"])
    if parent is None:
        parent = client.create_run(experiment_id, run_name=sweep["name"], tags={store.SWEEP: sweep["id"]})
    return str(parent.info.run_id)


def _tags(order: Message, start: Message) -> dict[str, str]:
    tags: dict[str, str] = start["tags"] | {store.RUN: order["run_id"], store.RUN_DIR: order["run_dir"]}
    if start["parents"]:
        tags[store.PARENTS] = ",".join(start["parents"])
    return tags


def _note(client: MlflowClient, experiment_id: str, parents: list[str]) -> str:
    """Return the text that MLflow shows above a run: what it started from, with a link where that is tracked here."""
    links = []
    for parent in parents:
        found = store.tagged(client, experiment_id, store.RUN, parent)
        links.append(f"[{parent}](#/experiments/{experiment_id}/runs/{found.info.run_id})" if found else parent)
    return f"Started from run {', '.join(links)}."
