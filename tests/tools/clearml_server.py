"""A stand-in for ClearML's server and file server, on loopback: theirs needs MongoDB, Elasticsearch and Redis.

It keeps everything in dictionaries and takes what the tracker and ClearML's SDK send, as strictly as it can: each request
has to pass the schema that the SDK carries for it, with no field more. Its rules are those of the source of ClearML Server 2:
names have three characters at least, a task that goes on or has ended is edited by force alone, an event with the
same task, metric, variant and iteration as another takes its place, and JSON has no nan. No server of theirs has been asked.
"""

import base64
import email
import importlib
import json
import re
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import jwt

KEY, SECRET, VERSION = "a-key", "a-secret", "2.23"
TOKEN = jwt.encode({"api_version": VERSION, "server_version": "2.0.0", "feature_set": "basic", "exp": 4e9}, "s" * 32)
ENDPOINT = re.compile(r"/(?:v(?P<version>\d+\.\d+)/)?(?P<service>[a-z]+)\.(?P<action>\w+)")
PAGE = 10  # events in an answer, so that a history of a few steps has several pages


class Refusal(Exception):
    """A request that the server does not do. Its first argument is the HTTP status, its second says why."""


class ClearmlServer:
    """The server: `start`, `stop`, and what it has. A second start has the same address and the same content.

    asked: the endpoints that were called. refused: why a request was not done. lost: endpoints that are done once
    without an answer. silent: whether no call is answered, for a minute.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.events: dict[tuple, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.lost: set[str] = set()
        self.silent = threading.Event()
        self._lock, self._port = threading.Lock(), 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a person has in the environment who uses this server."""
        hosts = dict.fromkeys(("CLEARML_API_HOST", "CLEARML_FILES_HOST", "CLEARML_WEB_HOST"), self.address)
        keys = {"CLEARML_API_ACCESS_KEY": KEY, "CLEARML_API_SECRET_KEY": SECRET}
        return hosts | keys | {"CLEARML_CONFIG_FILE": "none.conf"}  # not the one of who runs the tests

    def start(self) -> None:
        handler = type("Bound", (Handler,), {"server_side": self})
        self._server = Quiet(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, version: str, service: str, action: str, body: Any) -> dict[str, Any]:
        check(version or VERSION, service, action, body)
        act: Callable[..., dict[str, Any]] | None = getattr(self, f"{service}_{action}", None)
        if act is None:
            raise Refusal(400, f"{service}.{action} is not known here")
        if self.silent.is_set():
            time.sleep(60)
        with self._lock:
            self.asked.append(f"{service}.{action}")
            data = act(body)
        if self.asked[-1] in self.lost:
            self.lost.remove(self.asked[-1])
            raise ConnectionAbortedError
        return data

    # Projects

    def projects_get_all(self, body: dict[str, Any]) -> dict[str, Any]:
        found = [each for each in self.projects.values() if re.search(body.get("name", ""), each["name"])]
        return {"projects": [each for each in found if each["id"] in body.get("id", [each["id"]])]}

    def projects_get_by_id(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"project": self.projects[body["project"]]}

    def projects_create(self, body: dict[str, Any]) -> dict[str, Any]:
        if any(each["name"] == body["name"] for each in self.projects.values()):
            raise Refusal(400, "Value combination already exists (name)")
        return {"id": made(self.projects, body)}

    # Tasks

    def task(self, body: dict[str, Any], *, states: tuple[str, ...] = ()) -> dict[str, Any]:
        if body["task"] not in self.tasks:
            raise Refusal(400, f"Invalid task id: id={body['task']}")
        task = self.tasks[body["task"]]
        if states and not body.get("force") and task["status"] not in states:
            raise Refusal(400, f"Invalid task status: expected={states}, status={task['status']}")
        return task

    def tasks_create(self, body: dict[str, Any]) -> dict[str, Any]:
        if (body.get("parent") and body["parent"] not in self.tasks) or body.get("project") not in self.projects:
            raise Refusal(400, "Invalid parent or project")
        return {"id": made(self.tasks, {"status": "created", "created": now(), **body})}

    def tasks_get_by_id(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"task": self.task(body)}

    def tasks_get_all(self, body: dict[str, Any]) -> dict[str, Any]:
        found = sorted(self.tasks.values(), key=lambda task: task["created"])
        if "id" in body:
            found = [task for task in found if task["id"] in body["id"]]
        if "tags" in body:
            found = [task for task in found if {*body["tags"]} & {*task.get("tags", [])}]
        if "_any_" in body:
            pattern, fields = body["_any_"]["pattern"], body["_any_"]["fields"]
            found = [task for task in found if any(re.search(pattern, task[field]) for field in fields)]
        first = body.get("page", 0) * body.get("page_size", 500)
        return {"tasks": found[first : first + body.get("page_size", 500)]}

    def tasks_edit(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self.task(body, states=("created",))
        named(body)
        task |= {key: value for key, value in body.items() if key not in ("task", "force")}
        return {"updated": 1, "fields": {}}

    tasks_update = tasks_edit

    def tasks_edit_hyper_params(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self.task(body, states=("created", "in_progress"))
        assert body["replace_hyperparams"] == "none"
        for each in body["hyperparams"]:
            task.setdefault("hyperparams", {}).setdefault(each["section"], {})[each["name"]] = each
        return {"updated": 1}

    def status(self, body: dict[str, Any], status: str) -> dict[str, Any]:
        task = self.task(body, states=("in_progress",) if status != "in_progress" else ("created",))
        if status != "in_progress":
            task["completed"] = now()
        elif task["status"] != status:
            task["started"] = now()
            task.pop("completed", None)
        task["status"] = status
        return {"updated": 1, "fields": {}}

    def tasks_started(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.status(body, "in_progress") | {"started": 1}

    def tasks_completed(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.status(body, "completed")

    def tasks_stopped(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.status(body, "stopped")

    def tasks_failed(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.status(body, "failed")

    def tasks_ping(self, body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def tasks_add_or_update_artifacts(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self.task(body, states=("created", "in_progress"))
        listed = task.setdefault("execution", {}).setdefault("artifacts", [])
        keys = {each["key"] for each in body["artifacts"]}
        listed[:] = [each for each in listed if each["key"] not in keys] + body["artifacts"]
        return {"updated": 1}

    def tasks_delete_artifacts(self, body: dict[str, Any]) -> dict[str, Any]:
        listed = self.task(body, states=("created", "in_progress"))["execution"]["artifacts"]
        keys = {(each["key"], each["mode"]) for each in body["artifacts"]}
        listed[:] = [each for each in listed if (each["key"], each["mode"]) not in keys]
        return {"deleted": 1}

    def tasks_add_or_update_model(self, body: dict[str, Any]) -> dict[str, Any]:
        models = self.task(body).setdefault("models", {}).setdefault(body["type"], [])
        models[:] = [each for each in models if each["name"] != body["name"]]
        models.append({"name": body["name"], "model": body["model"]})
        return {"updated": 1}

    # Models

    def models_create(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"id": made(self.models, {"ready": False, **body}), "created": True}

    def models_get_all(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"models": [each for each in self.models.values() if each["task"] in body["task"]]}

    def models_edit(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.models[body["model"]]
        if model["ready"]:
            raise Refusal(400, "Model is published")
        named(body)
        model |= {key: value for key, value in body.items() if key != "model"}
        return {"updated": 1, "fields": {}}

    def models_delete(self, body: dict[str, Any]) -> dict[str, Any]:
        del self.models[body["model"]]
        return {"deleted": True, "url": ""}

    # Events

    def events_add_batch(self, body: list[dict[str, Any]]) -> dict[str, Any]:
        for event in body:
            if event["task"] not in self.tasks:
                raise Refusal(400, f"Events not added: Invalid task id {event['task']}")
        for event in body:
            same = (event["task"], event["type"], event.get("metric"), event.get("variant"), event.get("iter"))
            self.events[same if event["type"] != "log" else (uuid.uuid4().hex,)] = event
        return {"added": len(body), "errors": 0}

    def events_get_task_events(self, body: dict[str, Any]) -> dict[str, Any]:
        self.task(body)
        events = [
            each for each in self.events.values() if (each["task"], each["type"]) == (body["task"], body["event_type"])
        ]
        first = int(body.get("scroll_id") or 0)
        page = sorted(events, key=lambda event: event["iter"])[first : first + PAGE]
        return {"events": page, "returned": len(page), "total": len(events), "scroll_id": str(first + len(page))}


def made(kept: dict[str, dict[str, Any]], body: dict[str, Any]) -> str:
    """Keep a new thing, and return its id."""
    named(body)
    new = uuid.uuid4().hex
    kept[new] = {**body, "id": new}
    return new


def named(body: dict[str, Any]) -> None:
    if len(body.get("name", "three").strip()) < 3:
        raise Refusal(400, "Validation error (String value is too short: [u'name'])")


def now() -> str:
    return datetime.now(UTC).isoformat()


def check(version: str, service: str, action: str, body: Any) -> None:
    """Hold a request against the schema that ClearML's SDK has for it."""
    if action == "add_batch":
        for event in body:
            if event.get("type") not in ("training_stats_scalar", "plot", "log"):
                raise Refusal(400, f"Invalid event type {event.get('type')}")
            stated = {"training_stats_scalar": "MetricsScalarEvent", "plot": "MetricsPlotEvent", "log": "TaskLogEvent"}
            validate(version, service, stated[event["type"]], event)
        return
    validate(version, service, "".join(part.capitalize() for part in action.split("_")) + "Request", body)


def validate(version: str, service: str, name: str, body: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ClearML's own, while it is imported
        module = importlib.import_module(f"clearml.backend_api.services.v{version.replace('.', '_')}.{service}")
    schema = getattr(module, name)._schema
    if service == "events":  # of an event alone, without what it refers to
        schema = schema | {"definitions": module.AddRequest._schema["definitions"]}
    known = {*schema["properties"], "method", "search_hidden", "worker"}
    if unknown := {*body} - known:
        raise Refusal(400, f"{name}: unknown fields {unknown}")
    try:
        jsonschema.validate(body, schema)
    except jsonschema.ValidationError as error:
        raise Refusal(400, f"{name}: {error.message}") from error


def no_constant(text: str) -> None:
    raise Refusal(400, f"{text} is not JSON")


class Quiet(ThreadingHTTPServer):
    """Says nothing of a process that was killed while it was asking."""

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Takes requests to the server, and to the file server at the same address."""

    protocol_version, wbufsize = "HTTP/1.1", -1  # an answer in one piece, or the network would wait 40 ms
    server_side: ClearmlServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            if found := ENDPOINT.fullmatch(path):
                data = self._call(body, **found.groupdict())
                self._say(200, json.dumps({"meta": meta(200, "OK"), "data": data}).encode())
            else:
                self._say(200, self._file(path, body))
        except ConnectionAbortedError:
            self.close_connection = True
        except Exception as error:
            status, why = error.args if isinstance(error, Refusal) else (400, f"{type(error).__name__}: {error}")
            self.server_side.refused.append(f"{path}: {why}")
            self._say(status, json.dumps({"meta": meta(status, why), "data": {}}).encode())

    do_POST = do_DELETE = do_GET

    def _call(self, body: bytes, *, version: str, service: str, action: str) -> dict[str, Any]:
        if (service, action) == ("auth", "login"):
            expected = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
            if self.headers["Authorization"] not in (f"Basic {expected}", f"Bearer {TOKEN}"):
                raise Refusal(401, "Unauthorized (invalid credentials)")
            return {"token": TOKEN}
        self._check_token()
        if self.headers["Content-Type"] == "application/json-lines":
            lines = [json.loads(line, parse_constant=no_constant) for line in body.splitlines()]
            return self.server_side.answer(version, service, action, lines)
        return self.server_side.answer(version, service, action, json.loads(body or b"{}", parse_constant=no_constant))

    def _file(self, path: str, body: bytes) -> bytes:
        self._check_token()
        files = self.server_side.files
        if self.command == "POST":
            sent = email.message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
            for part in sent.get_payload():
                files[f"/{part.get_filename().lstrip('/')}"] = part.get_payload(decode=True)
            return b"[]"
        if path not in files:
            raise Refusal(404, f"File {path} not found")
        return files.pop(path) if self.command == "DELETE" else files[path]

    def _check_token(self) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized (missing credentials)")

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def meta(status: int, words: str) -> dict[str, Any]:
    names = {"id": "1", "trx": "1", "endpoint": {"name": "", "requested_version": VERSION, "actual_version": VERSION}}
    return names | {"result_code": status, "result_subcode": 0, "result_msg": words, "error_stack": None}
