"""MLflow's API as a store. Only the tracker's process imports this module, because importing mlflow takes seconds."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from savepoint import system
from savepoint.trackers.artifacts import as_markdown
from savepoint.trackers.mlflow import client as clients
from savepoint.trackers.points import Point
from savepoint.trackers.process import Message

RUN, RUN_DIR, PARENTS, SWEEP = "savepoint.run_id", "savepoint.run_dir", "savepoint.parents", "savepoint.sweep_id"
# The tag that MLflow shows as a run's description, and the tags of our own parts of it: where the run started, its
# results, its forks. They begin with `mlflow.`, so that MLflow's page does not list them.
NOTE = "mlflow.note.content"
ORIGIN, OUTCOME, FORKS = (f"mlflow.note.savepoint.{part}" for part in ("origin", "outcome", "forks"))
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

_CONTEXTS = {"train": "training", "val": "validation"}  # our name of a split -> MLflow's

# MLflow's limits (mlflow.utils.validation), the same for every store.
_METRICS, _PARAMS, _KEY, _PARAM, _TAG = 1000, 100, 250, 6000, 8000


def connect(order: Message) -> "MlflowStore":
    """Open the store that an order names."""
    return MlflowStore(clients.connect(order), order)


class MlflowStore:
    """An MLflow store. `savepoint.trackers.store.Store` documents the methods."""

    def __init__(self, client: MlflowClient, order: Message) -> None:
        self._client, self._uri = client, order["uri"]
        self._lock, self._artifacts = Path(order["lock"]), order["artifacts"]
        self._experiment = order["experiment"]

    def open_run(self, order: Message, start: Message) -> "MlflowRun":
        client = self._client
        with system.files.locked(self._lock):
            # A sweep's runs may be in several experiments.
            experiment_id = clients.experiment(client, order["experiment"], artifacts=self._artifacts)
            if order["sweep"]:
                parent = self._sweep_parent(experiment_id, order["sweep"])
        run = self._known(order["known"], run_id=order["run_id"]) if order["known"] else None
        # The tag finds a run that was killed before run.json got the tracker's id.
        run = run or self._tagged(experiment_id, RUN, order["run_id"])
        if run is None:
            name = start["name"] or order["run_id"]
            began = int(order["since"] * 1000)
            run = self._create(experiment_id, RUN, order["run_id"], name=name, began=began)
        client.update_run(run.info.run_id, status="RUNNING")
        tags: dict[str, str] = start["tags"] | {RUN: order["run_id"], RUN_DIR: order["run_dir"]}
        if order["sweep"]:
            tags["mlflow.parentRunId"] = parent
        if start["parents"]:
            tags[PARENTS] = ",".join(start["parents"])
        opened = MlflowRun(client, run, self._uri)
        opened.log_tags(tags)
        opened.log_params(start["params"])
        opened.log_datasets(start["datasets"])
        self._link(opened, start["parents"])
        return opened

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        experiment = self._client.get_experiment_by_name(self._experiment)
        parent = experiment and self._tagged(experiment.experiment_id, SWEEP, sweep_id)
        if not parent:
            return None
        self._client.set_terminated(parent.info.run_id, STATUS[status])
        run = MlflowRun(self._client, parent, self._uri)
        if table is not None:
            run.put(table, "")
            run.set_note(as_markdown(table))
        return run.path

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        experiments = [found.experiment_id for found in self._client.search_experiments()]
        for query in (f"attributes.run_id LIKE '{text}%'", f"tags.`{RUN}` = '{text}'"):
            if runs := self._client.search_runs(experiments, query, max_results=5):
                break
        return [(run.info.run_id, run.data.tags.get(RUN), run.data.tags.get(RUN_DIR)) for run in runs]

    def get_run(self, stored_id: str) -> "MlflowRun":
        return MlflowRun(self._client, self._client.get_run(stored_id), self._uri)

    def _tagged(self, experiment_id: str, tag: str, value: str) -> Run | None:
        """Return the first run with this tag. value: an id of our own, so it needs no quoting."""
        query, order = f"tags.`{tag}` = '{value}'", ["attributes.start_time ASC"]
        runs = self._client.search_runs([experiment_id], query, max_results=1, order_by=order)
        return runs[0] if runs else None

    def _create(self, experiment_id: str, tag: str, value: str, *, name: str, began: int | None) -> Run:
        """Create a run that has a tag. began: in milliseconds since 1970, or None for now."""
        try:
            with clients.requests_with(MAX_RETRIES=0):
                return self._client.create_run(experiment_id, began, {tag: value}, run_name=name)
        except MlflowException:
            # Perhaps only the answer was lost. A retry by MLflow itself would create a second run.
            if found := self._tagged(experiment_id, tag, value):
                return found
            raise

    def _known(self, stored_id: str, *, run_id: str) -> Run | None:
        """Return the run with this id if its tags name our run. The id in a run.json alone proves nothing."""
        try:
            run = self._client.get_run(stored_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" and run.data.tags.get(RUN) == run_id else None

    def _sweep_parent(self, experiment_id: str, sweep: Message) -> str:
        """Return the id of a sweep's parent run, and create it if need be. The caller holds the store's lock."""
        parent = self._tagged(experiment_id, SWEEP, sweep["id"])
        if parent is None:
            parent = self._create(experiment_id, SWEEP, sweep["id"], name=sweep["name"], began=None)
        return str(parent.info.run_id)

    def _link(self, run: "MlflowRun", parents: Sequence[str]) -> None:
        """Link a run and its parents to each other in their notes. Parents that are not tracked here get no link."""
        links = []
        for parent in parents:
            found = self._tagged(run.experiment_id, RUN, parent)
            links.append(f"[{parent}]({_path(found)})" if found else parent)
            if found:
                MlflowRun(self._client, found, self._uri).add_to_note(FORKS, f"Forked as [{run.name}]({run.path}).")
        if links:
            run.add_to_note(ORIGIN, f"Started from run {', '.join(links)}.")


class MlflowRun:
    """A run in MLflow. `savepoint.trackers.store.StoredRun` documents the methods."""

    def __init__(self, client: MlflowClient, run: Run, uri: str) -> None:
        self.id, self.path = str(run.info.run_id), _path(run)
        self.experiment_id, self.name = run.info.experiment_id, run.info.run_name
        self._client, self._run, self._uri = client, run, uri

    def key(self, key: str) -> str:
        return allowed(key)

    def history(self) -> set[tuple[str, int]]:
        keys = self._run.data.metrics
        return {(key, metric.step) for key in keys for metric in self._client.get_metric_history(self.id, key)}

    def log_points(self, points: Sequence[Point]) -> None:
        metrics = [Metric(p.key, p.value, p.milliseconds, p.step) for p in points]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(self.id, metrics=metrics[first : first + _METRICS])

    def log_params(self, params: Mapping[str, str]) -> None:
        """Store the params that the run does not have yet. MLflow changes no param, so they show how the run began."""
        fitting: dict[str, str] = {}
        for key, value in params.items():
            clean, copy = allowed(key), 1
            while clean in fitting:
                copy += 1
                clean = f"{allowed(key)[: _KEY - 4]}_{copy}"
            fitting[clean] = _cut(value, _PARAM)
        missing = [Param(key, value) for key, value in fitting.items() if key not in self._run.data.params]
        for first in range(0, len(missing), _PARAMS):
            self._client.log_batch(self.id, params=missing[first : first + _PARAMS])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Store tags, at most 100. A tag that exists is changed."""
        self._client.log_batch(self.id, tags=[RunTag(allowed(key), _cut(value, _TAG)) for key, value in tags.items()])

    def log_datasets(self, datasets: Sequence[Message]) -> None:
        """Store a run's data sets with their sizes and digests, unless the run has data sets already."""
        if self._run.inputs is not None and self._run.inputs.dataset_inputs:
            return
        inputs = []
        for each in datasets:
            profile = json.dumps({"num_rows": each["samples"], "sha256": each["digest"]})
            digest = (each["digest"] or "unknown")[:12]  # MLflow shows all of it in its list of runs
            dataset = Dataset(each["name"], digest, "code", json.dumps({"class": each["source"]}), profile=profile)
            context = _CONTEXTS.get(each["split"]) or str(each["split"])
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        if inputs:
            self._client.log_inputs(self.id, inputs)

    def set_status(self, status: str, ended: float) -> None:
        self._client.set_terminated(self.id, STATUS[status], int(ended * 1000))

    def set_note(self, note: str) -> None:
        self._write_note({OUTCOME: note})

    def add_to_note(self, part: str, line: str) -> None:
        """Add a line to a part of the note, unless that part has the line."""
        lines = self._client.get_run(self.id).data.tags.get(part, "")
        if line not in lines:
            self._write_note({part: f"{lines}\n\n{line}".strip()})

    def _write_note(self, changed: Mapping[str, str]) -> None:
        """Write parts of the note. Also write the whole note from its parts, unless a person has changed it."""
        tags = self._client.get_run(self.id).data.tags
        before, after = (_note(each) for each in (tags, {**tags, **changed}))
        self.log_tags({**changed, NOTE: after} if tags.get(NOTE, "") in ("", before) else changed)

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        from savepoint.trackers.mlflow.model import log_model  # imported here, because not every run needs it

        files = {"checkpoint": checkpoint, "example": example, "repository": repository}
        log_model(self._uri, self._client, self._run, **files, register_as=register_as)

    def names(self, folder: str) -> set[str]:
        return {info.path.rsplit("/", 1)[-1] for info in self._artifacts.list_artifacts(folder or None)}

    def put(self, file: Path, folder: str) -> None:
        with clients.transfer(file.stat().st_size):
            self._artifacts.log_artifact(str(file), folder or None)  # type: ignore[no-untyped-call]

    def delete(self, path: str) -> None:
        self._artifacts.delete_artifacts(path)  # type: ignore[no-untyped-call]

    def download(self, path: str, to: Path) -> None:
        with clients.requests_with(TIMEOUT=600):  # time for the server to fetch a whole file from its storage
            self._artifacts.download_artifacts(path, str(to))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Do nothing: MLflow holds nothing open for a run."""

    @functools.cached_property
    def _artifacts(self) -> ArtifactRepository:
        # Created when first used: storage whose driver is missing must not stop points from being stored.
        return get_artifact_repository(self._run.info.artifact_uri, tracking_uri=self._uri)


def _note(tags: Mapping[str, str]) -> str:
    return "\n\n".join(tags[part] for part in (ORIGIN, OUTCOME, FORKS) if tags.get(part))


def _path(run: Run) -> str:
    # Without `workflowType` MLflow opens a view for language models, in which a run is an "evaluation run".
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"


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
