"""One run's copy in MLflow: what the worker process keeps up to date. Each duty can be tried again after it failed."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from savepoint import system
from savepoint.trackers import mlflow_store as store
from savepoint.trackers.points import Follower, Point

PLOT_SECONDS = 30.0
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

Message = dict[str, Any]


class Mirror:
    """A run and its image in MLflow. Each method may be called again after it raised, and then goes on.

    order: what `trackers.open` was given, as the client words it. say: tells the client something.
    """

    def __init__(self, order: Message, say: Callable[..., None]) -> None:
        self.begun: Message | None = None  # the order to start
        self._order = order
        self._say = say
        self._run_dir = Path(order["run_dir"])
        self._client: MlflowClient | None = None
        self._turn: system.files.Lock | None = None
        self._run: Run | None = None
        self._follower = Follower(self._run_dir / "metrics.jsonl")
        self._history: set[tuple[str, int]] = set()  # (key, step) that the store had before this process
        self._latest: dict[str, int] = {}  # key -> step of its newest point
        self._points = 0
        self._documents: list[Path] = []
        self._checkpoints: store.CheckpointMirror | None = None
        self._series: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/loss": [], "lr": []}
        self._drawn, self._drawn_at = 0, time.monotonic()

    def connect(self) -> None:
        if self._client is None:
            self._client = connect(self._order)

    def begin(self, order: Message) -> None:
        """Take the order to start. The file is held by its descriptor from here on, so not before it was cut."""
        self.begun = order
        self._documents = [Path(document) for document in order["documents"]]
        self._follower.open()

    def open(self) -> None:
        """Find this run in MLflow, or create it, and fetch what it has."""
        if self._run is None:
            self._wait_for_turn()
            self._run = self._open()

    def _wait_for_turn(self) -> None:
        """One worker a run: what the one before is still sending must be in the history that is fetched next."""
        if self._turn is not None:
            return
        lock = system.files.Lock(self._run_dir / ".tracker.lock")
        while not lock.acquire():
            time.sleep(0.05)
        turn = self._run_dir / ".tracker.turn"
        if turn.exists() and float(turn.read_text() or 0) > self._order["since"]:
            sys.exit(0)  # a process that was started later has been here: the run is its own now, with its status
        turn.write_text(repr(self._order["since"]))
        self._turn = lock

    def _open(self) -> Run:
        client, order, begun = self._client, self._order, self.begun
        assert client is not None and begun is not None
        tags = {**begun["tags"], store.RUN: order["run_id"], store.RUN_DIR: order["run_dir"]}
        if begun["parents"]:
            tags[store.PARENTS] = ",".join(begun["parents"])
        with store.locked(Path(order["lock"])):
            experiment_id = store.experiment(client, order["experiment"], artifacts=order["artifacts"])
            if order["sweep"]:
                tags["mlflow.parentRunId"] = sweep_parent(client, experiment_id, order["sweep"])
        # Killed before run.json got the id? Then the tag finds it.
        run = store.known(client, order["known"], run_id=order["run_id"]) if order["known"] else None
        run = run or store.tagged(client, experiment_id, store.RUN, order["run_id"])
        if run is None:
            name = begun["name"] or order["run_id"]
            run = client.create_run(experiment_id, run_name=name, tags={store.RUN: order["run_id"]})
        client.update_run(run.info.run_id, status="RUNNING")
        self._say("ready", run_id=run.info.run_id)
        store.log_tags(client, run.info.run_id, tags)
        store.log_params(client, run, begun["params"])
        self._history = store.history(client, run)
        return run

    def _opened(self) -> tuple[MlflowClient, str]:
        assert self._client is not None and self._run is not None
        return self._client, self._run.info.run_id

    def send_points(self) -> None:
        client, run_id = self._opened()
        for points in self._follower.read():
            latest = dict(self._latest)
            fresh = []
            for point in points:
                key = store.allowed(point.key)
                # A key has one value a step. The first one counts, in this process as in any that reads the file later.
                if (key, point.step) not in self._history and latest.get(key) != point.step:
                    fresh.append(point._replace(key=key))
                latest[key] = point.step
            store.log_points(client, run_id, fresh)
            self._latest = latest
            self._points += len(points)
            self._keep_for_plot(points)
            self._say("stored", points=self._points)

    def _keep_for_plot(self, points: list[Point]) -> None:
        for point in points:
            if point.key in self._series:
                self._series[point.key].append((point.step, point.value))

    def set_status(self, status: str) -> None:
        client, run_id = self._opened()
        client.set_terminated(run_id, STATUS[status])

    def send_documents(self) -> None:
        client, run_id = self._opened()
        while self._documents:
            if self._documents[0].is_file():
                client.log_artifact(run_id, str(self._documents[0]))
            del self._documents[0]

    def send_checkpoints(self) -> None:
        if not self._order["upload"]:
            return
        if self._checkpoints is None:
            assert self._run is not None
            repository = get_artifact_repository(self._run.info.artifact_uri, tracking_uri=self._order["uri"])
            self._checkpoints = store.CheckpointMirror(self._run_dir / "checkpoints", repository)
        self._checkpoints.sync()

    def prepare_to_draw(self) -> None:
        """Import matplotlib while there is nothing else to do, since a short run's end would have to wait for it."""
        from savepoint.trackers import plot  # noqa: F401

    def send_plot(self, *, now: bool) -> None:
        """Draw and store loss.png: `now`, or else if the last one is old."""
        drawable = sum(len(series) for series in self._series.values())
        if drawable == self._drawn or not (now or time.monotonic() - self._drawn_at > PLOT_SECONDS):
            return
        from savepoint.trackers import plot

        client, run_id = self._opened()
        assert self.begun is not None
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "loss.png")
            if plot.draw(path, title=self.begun["name"] or self._order["run_id"], series=self._series):
                client.log_artifact(run_id, str(path))
        self._drawn, self._drawn_at = drawable, time.monotonic()


def connect(order: Message) -> MlflowClient:
    database = Path(order["database"]) if order["database"] else None
    lock = Path(order["lock"])
    return store.connect(order["uri"], database=database, artifacts=order["artifacts"], lock=lock)


def sweep_parent(client: MlflowClient, experiment_id: str, sweep: Message) -> str:
    """The run that holds a sweep's runs together, created by whichever comes first. Call it under the store's lock."""
    parent = store.tagged(client, experiment_id, store.SWEEP, sweep["id"])
    if parent is None:
        parent = client.create_run(experiment_id, run_name=sweep["name"], tags={store.SWEEP: sweep["id"]})
    return str(parent.info.run_id)


def finish_sweep(order: Message) -> Message:
    client = connect(order)
    experiment = client.get_experiment_by_name(order["experiment"])
    parent = experiment and store.tagged(client, experiment.experiment_id, store.SWEEP, order["sweep"]["id"])
    if parent:
        client.set_terminated(parent.info.run_id, STATUS[order["status"]])
        if Path(order["table"]).is_file():
            client.log_artifact(parent.info.run_id, order["table"])
    return {}


def find_runs(order: Message) -> Message:
    runs = store.beginning(connect(order), order["text"])
    return {"runs": [(run.info.run_id, run.data.tags.get(store.RUN), run.data.tags.get(store.RUN_DIR)) for run in runs]}
