"""A ClearML server as a store, in the tracker's process alone. Nothing here calls `Task.init`.

`Task.init` allows one task per process, sends in the background, and drops what a server refuses. `Session`, from the
same SDK, uses the same configuration, keys and storage, but waits for the server's answer and raises errors. The SDK
is imported inside functions, because it is seldom installed.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.artifacts import as_markdown
from savepoint.trackers.clearml import contents
from savepoint.trackers.clearml.contents import CONFIG, DATA, OWN, RUN, SWEEP
from savepoint.trackers.notes import description
from savepoint.trackers.points import Point
from savepoint.trackers.process import Message

API = "2.13"  # the version that ClearML Server 1.0 and all later servers have
SCALAR, PLOT = "training_stats_scalar", "plot"
STATUS = {"finished": "completed", "interrupted": "stopped", "failed": "failed"}
# No retries by ClearML's SDK, which would go on for hours. Before we repeat a call whose answer was lost, we look for
# what it created: otherwise there would be two tasks.
ONCE = dict.fromkeys(("total", "connect", "read", "redirect", "status"), 0)
ANSWER_SECONDS = (5.0, 15.0)  # to connect, and for the answer


class _Strict(logging.Logger):
    """Raises warnings of ClearML's session as errors: it would retry a bad certificate ten times a second, for ever."""

    def warning(self, msg: object, *args: object, **details: Any) -> NoReturn:
        raise ConnectionError(str(msg))


def connect(order: Message) -> "ClearmlStore":
    """Log in to the server. Raises: UserError if keys are missing or refused, or if the certificate is not trusted."""
    from clearml.backend_api import Session
    from clearml.backend_api.session.defs import MissingConfigError
    from clearml.backend_api.session.session import LoginError
    from clearml.backend_interface.base import InterfaceBase

    try:
        session = Session(logger=_Strict("clearml"), http_retries_config=dict(ONCE))
    except MissingConfigError as error:
        use = "Run `clearml-init`, or set CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY"
        offline = "CLEARML_OFFLINE_MODE=1 writes sessions to be imported later"
        raise UserError(f"there are no keys to a server of ClearML's. {use}. Or {offline}") from error
    except LoginError as error:
        if "error 401" in str(error):
            make = "Make new ones on its page, then run `clearml-init`"
            raise UserError(f"{order['uri']} does not take the keys. {make}") from error
        if "SSLError" in str(error):
            trust = "Set CLEARML_API_HOST_VERIFY_CERT to the file of one that it can"
            raise UserError(f"{order['uri']} has a certificate that cannot be trusted. {trust}") from error
        raise
    session._session_timeout = ANSWER_SECONDS
    InterfaceBase._set_default_session(session)  # storage uses the default session
    return ClearmlStore(session, order)


class ClearmlStore:
    """A server of ClearML's. `savepoint.trackers.store.Store` documents the methods.

    files: the address below which files are kept: ClearML's file server, unless its configuration names a bucket.
    """

    def __init__(self, session: Any, order: Message) -> None:
        from clearml.backend_api import Session
        from clearml.config import DEV_DEFAULT_OUTPUT_URI, config

        self._session, self.lock = session, Path(order["lock"])
        wanted = DEV_DEFAULT_OUTPUT_URI.get(default=config.get("development.default_output_uri", None))
        self.files = str(wanted or Session.get_files_server_host()).rstrip("/")
        try:
            self.web = Session.get_app_server_host()
        except ValueError:  # the server has neither a usual name nor a usual port
            self.web = session.host

    def call(self, endpoint: str, **body: Any) -> dict[str, Any]:
        """Call the server and return its answer. Raises: RuntimeError with the server's words if it refuses."""
        service, _, action = endpoint.partition(".")
        return _answer(endpoint, self._session.send_request(service, action, version=API, json=body))

    def send(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Store events. An event replaces an older one with the same task, metric, variant and iteration."""
        answers = self._session.send_request_batch("events", "add_batch", version=API, json=[*events]) if events else []
        for each in answers:
            if refused := _answer("events.add_batch", each).get("errors"):
                raise RuntimeError(f"events.add_batch: {refused} points were refused")

    def open_run(self, order: Message, start: Message) -> "ClearmlRun":
        parent, tag = None, RUN.format(order["run_id"])
        with system.files.locked(self.lock):
            project = self._project(order["experiment"])
            if order["sweep"]:
                parent = self._sweep_parent(project, order["sweep"])
        # The tag finds a run that was killed before run.json got the task's id.
        known = self._find(id=[order["known"]], tags=[tag]) if order["known"] else []
        task = known[0]["id"] if known else self._tagged(tag)
        if task is None:
            task = self._create(project, start["name"] or order["run_id"], tag=tag, parent=parent)
        run = ClearmlRun(self, task)
        self.call("tasks.started", task=task, force=True)
        run.put_params(OWN, contents.own(order, start))
        run.add_params(OWN, {"began": contents.at(order["since"])})
        run.add_params(CONFIG, start["params"])
        run.add_params(DATA, contents.datasets(start["datasets"]))
        for each in start["parents"]:
            if found := self._tagged(RUN.format(each)):
                ClearmlRun(self, found).describe(fork=f"{run.name} ({run.path})")
        run.describe()
        return run

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        if (found := self._tagged(SWEEP.format(sweep_id))) is None:
            return None
        run = ClearmlRun(self, found)
        run.set_status(status, datetime.now(UTC).timestamp())
        if table is not None:
            run.put(table, "")
            self.call("tasks.edit", task=found, comment=as_markdown(table), force=True)
        return run.path

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        prefix = {"pattern": f"^{re.escape(text)}", "fields": ["id"]}
        tasks = self._find(_any_=prefix) or self._find(tags=[RUN.format(text)])
        own = [(str(task["id"]), _values(task, OWN)) for task in tasks]
        return [(task, values.get("run_id"), values.get("run_dir")) for task, values in own]

    def get_run(self, stored_id: str) -> "ClearmlRun":
        return ClearmlRun(self, stored_id)

    def link(self, own_id: str) -> str:
        """Return a text that names a run, with the address of its page if the server has the run."""
        found = self._tagged(RUN.format(own_id))
        return f"run {own_id} ({ClearmlRun(self, found).path})" if found else f"run {own_id}"

    def page(self, task: Mapping[str, Any]) -> str:
        """Return the address of a task's page. The SDK knows its form, which changed with API 2.31."""
        from clearml import Task

        return str(Task.get_task_output_log_web_page(task["id"], task.get("project"), self.web))

    def _find(self, **query: Any) -> list[dict[str, Any]]:
        """Return at most five tasks, the oldest first. A task must match every field of the query."""
        options = {"only_fields": ["id", "hyperparams"], "order_by": ["created"], "page": 0, "page_size": 5}
        return list(self.call("tasks.get_all", **options, **query)["tasks"])

    def _tagged(self, tag: str) -> str | None:
        found = self._find(tags=[tag])
        return str(found[0]["id"]) if found else None

    def _sweep_parent(self, project: str, sweep: Message) -> str:
        """Return the id of a sweep's parent task, and create it if need be. The caller holds the store's lock."""
        parent = self._tagged(tag := SWEEP.format(sweep["id"]))
        if parent is None:
            parent = self._create(project, sweep["name"], tag=tag, type="optimizer")
            self.call("tasks.started", task=parent, force=True)
        return parent

    def _project(self, name: str) -> str:
        """Return the id of a project, and create it if need be. The caller holds the store's lock."""
        clean = contents.allowed(name)
        found = self.call("projects.get_all", name=f"^{re.escape(clean)}$", only_fields=["id"])["projects"]
        return str(found[0]["id"] if found else self.call("projects.create", name=clean, description="")["id"])

    def _create(self, project: str, name: str, *, tag: str, type: str = "training", parent: str | None = None) -> str:
        """Create a task and return its id."""
        given = {"parent": parent} if parent else {}
        clean = contents.allowed(name)
        return str(self.call("tasks.create", name=clean, type=type, project=project, tags=[tag], **given)["id"])


class ClearmlRun:
    """A task of ClearML's. `savepoint.trackers.store.StoredRun` documents the methods."""

    def __init__(self, store: ClearmlStore, id: str) -> None:
        self.id, self._store = id, store
        task = self._task()
        self.name = str(task["name"])
        self.path = store.page(task)
        self._project = task.get("project")
        listed = (task.get("execution") or {}).get("artifacts") or []
        self._uris = {each["key"]: each.get("uri", "") for each in listed}

    def _task(self) -> dict[str, Any]:
        return dict(self._store.call("tasks.get_by_id", task=self.id)["task"])

    def key(self, key: str) -> str:
        return contents.normalised(key)

    def history(self) -> set[tuple[str, int]]:
        query, found = {"task": self.id, "event_type": SCALAR, "order": "asc", "batch_size": 5000}, set()
        while (batch := self._store.call("events.get_task_events", **query))["events"]:
            found |= {(f"{each['variant']}/{each['metric']}", int(each["iter"])) for each in batch["events"]}
            query["scroll_id"] = batch["scroll_id"]
        return found

    def log_points(self, points: Sequence[Point]) -> None:
        about = {"task": self.id, "type": SCALAR}
        self._store.send([about | event for event in contents.scalars(points)])

    def put_params(self, section: str, values: Mapping[str, str]) -> None:
        """Store values in a section of hyper-parameters. They replace values with the same names."""
        if given := contents.params(section, values):
            self._store.call(
                "tasks.edit_hyper_params", task=self.id, hyperparams=given, replace_hyperparams="none", force=True
            )

    def add_params(self, section: str, values: Mapping[str, str]) -> None:
        """Store values that the section does not have yet. So a resumed run still shows the values it began with."""
        kept = _values(self._task(), section)
        self.put_params(section, {key: text for key, text in values.items() if key not in kept})

    def set_status(self, status: str, ended: float) -> None:
        # Store the end as a property, because ClearML itself takes the time of the next call for it.
        self.put_params(OWN, {"ended": contents.at(ended)})
        self._store.call(f"tasks.{STATUS[status]}", task=self.id, force=True)

    def set_note(self, note: str) -> None:
        self.describe(note)

    def describe(self, note: str | None = None, *, fork: str | None = None) -> None:
        """Change the description: set the note with the run's results, or add a link to a fork of the run."""
        with system.files.locked(self._store.lock):
            task = self._task()
            runtime = task.get("runtime") or {}
            last = runtime.get("savepoint_note", "")
            outcome = (last, last if note is None else note)
            parents = _values(task, OWN).get("parents", "")
            origin = [self._store.link(each) for each in parents.split(",") if each]
            comment = description(task.get("comment") or "", origin=origin, outcome=outcome, fork=fork)
            runtime = {**runtime, "savepoint_note": outcome[1]}
            self._store.call("tasks.edit", task=self.id, comment=comment, runtime=runtime, force=True)

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        """Register the model of a checkpoint by the address of its file. A run has one model, the newest."""
        uri = self._uris.get(f"checkpoints/{checkpoint.name}/model.safetensors")
        if uri is None:
            return  # the weights are in parts, because several processes trained the run
        facts = {"name": contents.allowed(register_as or self.name), "uri": uri, "comment": checkpoint.name}
        for each in self._models():
            if not each.get("ready"):  # a ready model is one that a person has published
                self._store.call("models.edit", model=each["id"], **facts)
                return
        made = {"framework": "PyTorch", "task": self.id, "project": self._project}
        model = self._store.call("models.create", **facts, **made)["id"]
        self._store.call("tasks.add_or_update_model", task=self.id, name="model", model=model, type="output")

    def _models(self) -> list[dict[str, Any]]:
        return list(self._store.call("models.get_all", task=[self.id], only_fields=["id", "uri", "ready"])["models"])

    def names(self, folder: str) -> set[str]:
        prefix = f"{folder}/" if folder else ""
        return {path.removeprefix(prefix).partition("/")[0] for path in self._uris if path.startswith(prefix)}

    def put(self, file: Path, folder: str) -> None:
        path = f"{folder}/{file.name}" if folder else file.name
        to = f"{self._store.files}/savepoint/{self.id}/{path}"
        try:
            uri = _storage(to).upload(str(file), to, retries=1)
        except OSError as error:  # its message names no address
            if not file.exists():
                raise FileNotFoundError(f"{file} is gone") from error
            raise ConnectionError(f"{self._store.files} does not take files ({type(error).__name__})") from error
        entry = contents.artifact(path, file, str(uri))
        self._store.call("tasks.add_or_update_artifacts", task=self.id, artifacts=[entry], force=True)
        self._uris[path] = entry["uri"]
        if shown := contents.picture(file, folder):
            from clearml.utilities.plotly_reporter import create_image_plot

            plot = create_image_plot(shown.pop("source"), shown["metric"])
            self._store.send([{"task": self.id, "type": PLOT, "plot_str": json.dumps(plot), **shown}])

    def delete(self, path: str) -> None:
        gone = [each for each in self._uris if each == path or each.startswith(f"{path}/")]
        for model in self._models():
            if model["uri"] in {self._uris[each] for each in gone}:
                self._store.call("models.delete", model=model["id"], force=True)
        for each in gone:
            _storage(self._uris[each]).delete(self._uris[each])
            entries = [{"key": each, "mode": "output"}]
            self._store.call("tasks.delete_artifacts", task=self.id, artifacts=entries, force=True)
            del self._uris[each]

    def download(self, path: str, to: Path) -> None:
        for each, uri in self._uris.items():
            if (each == path or each.startswith(f"{path}/")) and ".." not in each:
                copy = to / each
                copy.parent.mkdir(parents=True, exist_ok=True)
                options = {"overwrite_existing": True, "skip_zero_size_check": True, "direct_access": False}
                if _storage(uri).download_to_file(uri, str(copy), **options) is None:
                    raise FileNotFoundError(f"{uri} cannot be downloaded")

    def close(self) -> None:
        """Do nothing: a task is not held open."""


def _answer(endpoint: str, answer: Any) -> dict[str, Any]:
    """Return the data of a server's answer. Raises: RuntimeError if it refuses, or if it is no ClearML server."""
    try:
        said = answer.json()
        words, data = said["meta"]["result_msg"], said.get("data") or {}
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{endpoint}: this is no server of ClearML's (HTTP {answer.status_code})") from error
    if answer.status_code != 200:
        raise RuntimeError(f"{endpoint}: {words}")
    return dict(data)


def _values(task: Mapping[str, Any], section: str) -> dict[str, str]:
    """Return a section of a task's hyper-parameters."""
    there = (task.get("hyperparams") or {}).get(section) or {}
    return {key: str(each.get("value", "")) for key, each in there.items()}


def _storage(address: str) -> Any:
    """Return ClearML's driver for the files at an address: its file server, a bucket or a directory."""
    from clearml.storage.helper import StorageHelper

    helper = StorageHelper.get(address, retries=1)
    if helper is None:  # ClearML has logged the reason
        raise RuntimeError(f"files cannot be kept at {address}: its driver or its keys are missing")
    return helper
