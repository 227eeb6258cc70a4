"""What is ClearML's own: which server, what it refuses, models, what a server loses, offline sessions and their import."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tools import pages, stores
from tools.kept import ClearmlStore, needs_clearml, offline_session
from tools.processes import REPOSITORY
from tools.stores import wait_for
from tools.warm import Warm

from savepoint import trackers
from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers import Page
from savepoint.trackers.clearml import KIND
from savepoint.trackers.clearml.address import check

ID = "ab12cd34"
CLEARML = TrackerSettings(kind="clearml")
OFFLINE = TrackerSettings(kind="clearml", uri="sessions")


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("CLEARML_", "TRAINS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "clearml.conf"))
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / ID
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "metrics.jsonl").touch()
    return directory


@pytest.fixture(params=[pytest.param("installed", marks=needs_clearml)])
def clearml(request: pytest.FixtureRequest, nursery: object) -> str:
    """ClearML's SDK itself, in processes that have imported it."""
    return str(request.param)


@pytest.fixture
def store(clearml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClearmlStore]:
    made = ClearmlStore(tmp_path, tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def open_run(run_dir: Path, **arguments: object) -> trackers.Tracker:
    given = {"run_dir": run_dir, "run_id": ID, "repository": run_dir.parents[1], **arguments}
    tracker = trackers.open(given.pop("settings", CLEARML), **given)
    tracker.start(name="first", params={}, tags={})
    return tracker


def checkpoint(run_dir: Path, name: str) -> Path:
    place = run_dir / "checkpoints" / name
    place.mkdir()
    for file in ("model.safetensors", "manifest.json"):
        (place / file).write_text(name)
    return place


@pytest.mark.parametrize(
    ("uri", "environment", "where"),
    [
        (None, {}, "the server in ~/clearml.conf"),
        (None, {"CLEARML_CONFIG_FILE": "mine.conf"}, "the server in mine.conf"),
        (None, {"CLEARML_API_HOST": "http://here:8008"}, "http://here:8008"),
        (None, {"CLEARML_OFFLINE_MODE": "0"}, "the server in ~/clearml.conf"),
        (None, {"CLEARML_OFFLINE_MODE": "1"}, "{root}/clearml_offline"),
        ("kept", {"CLEARML_API_HOST": "http://here:8008"}, "{root}/kept"),
    ],
)
def test_the_server_is_the_one_of_clearmls_configuration(
    uri: str | None, environment: dict[str, str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLEARML_CONFIG_FILE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    order = KIND.locate(TrackerSettings(kind="clearml", uri=uri), tmp_path, tmp_path)
    assert order["uri"] == where.format(root=tmp_path)
    assert KIND.absent(order) == (order["offline"] is not None) == where.startswith("{root}")
    assert [*tmp_path.iterdir()] == [], "asking makes no directory"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"uri": "http://host:8008"},
            r"^tracker\.uri=http://host:8008: this names a directory for offline sessions\. A",
        ),
        (
            {"uri": "kept", "register_as": "m"},
            r"^tracker\.register_as=m: an offline session of ClearML's holds no model\.",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings: dict[str, str], words: str, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        open_run(run_dir, settings=TrackerSettings(kind="clearml", **settings))
    assert "\n" not in str(refusal.value)


def test_a_server_without_an_address_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_API_HOST", "here:8008")
    with pytest.raises(
        ConfigError, match=r"^CLEARML_API_HOST=here:8008: this is not an address\. Write it as http://<host>"
    ):
        open_run(run_dir)


def test_where_clearml_is_not_installed_one_line_says_so_and_training_goes_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['clearml'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    warnings: list[str] = []
    tracker = open_run(run_dir, warn=warnings.append)
    stores.log(run_dir, range(1, 4))
    wait_for(lambda: tracker.wake() or warnings)
    why = "tracker=clearml needs a package that is not installed. Install it: pip install 'clearml>=2.1,<3'"
    assert warnings == [f"ClearML: cannot connect: {why}. Training goes on; metrics.jsonl keeps every point."]
    line = tracker.close("finished", 60)
    assert line is not None and line.startswith(f"ClearML has not stored 12 of 12 points (cannot connect: {why}).")


def test_a_place_that_can_never_hold_sessions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("savepoint.trackers.clearml.address.importlib.util.find_spec", lambda name: name)
    (tmp_path / "sessions").touch()
    with pytest.raises(UserError, match=r"/sessions cannot be a directory \(.*\)\. Set tracker\.uri to another one"):
        check(KIND.locate(OFFLINE, tmp_path, tmp_path))


class Other(BaseHTTPRequestHandler):
    """A server of something else, and under its other name one in maintenance."""

    def do_GET(self) -> None:
        self.send_response(503 if self.headers["Host"].startswith("localhost") else 200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"CLEARML_API_ACCESS_KEY": None},
            "there are no keys to a server of ClearML's. Run `clearml-init`, or set CLEARML_",
        ),
        (
            {"CLEARML_API_SECRET_KEY": "wrong"},
            "{host} does not take the keys. Make new ones on its page, then run `clearml-",
        ),
        (
            {"CLEARML_API_HOST": "{secure}"},
            "{secure} has a certificate that cannot be trusted. Set CLEARML_API_HOST_VERIFY",
        ),
        (
            {"CLEARML_API_HOST": "{other}"},
            "It seems *api_server* is misconfigured. Is this the ClearML API server {other}",
        ),
        ({"CLEARML_API_HOST": "{busy}"}, "{busy} does not answer"),
    ],
)
def test_what_only_a_person_can_mend_is_said_in_one_line(
    changed: dict[str, str | None], words: str, store: ClearmlStore, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        names = {
            "host": store.place,
            "secure": store.place.replace("http:", "https:"),
            "other": f"http://127.0.0.1:{other.server_address[1]}",
            "busy": f"http://localhost:{other.server_address[1]}",
        }
        for name, value in changed.items():
            if value is None:
                monkeypatch.delenv(name)
                monkeypatch.delenv("CLEARML_API_SECRET_KEY")
            else:
                monkeypatch.setenv(name, value.format(**names))
        stores.log(run_dir, range(1, 4))
        line = open_run(run_dir).close("finished", 60)
        other.shutdown()
    assert line is not None and "\n" not in line
    assert line.startswith(f"ClearML has not stored 12 of 12 points (cannot connect: {words.format(**names)}"), line
    store.server.refused.clear()


@pytest.mark.long
def test_a_server_that_falls_silent_is_given_up_for_a_while(store: ClearmlStore, run_dir: Path) -> None:
    warnings: list[str] = []
    tracker = open_run(run_dir, warn=warnings.append)
    wait_for(lambda: tracker.wake() or [run for run in store.runs() if "environment.txt" in run.files])
    store.server.silent.set()
    stores.log(run_dir, range(1, 4))
    wait_for(lambda: tracker.wake() or warnings, seconds=40)
    tracker.abandon()
    assert warnings[0].startswith(f"ClearML: cannot store points: {store.place} does not answer."), warnings


def test_a_file_server_that_is_down_is_named_and_keeps_no_point_back(
    store: ClearmlStore, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"  # where no server listens from here on
    monkeypatch.setenv("CLEARML_FILES_HOST", nobody)
    stores.log(run_dir, range(1, 4))
    line = open_run(run_dir).close("finished", 60)
    assert line is not None and line.startswith("ClearML has all 12 points, but not all of the rest (cannot store ")
    assert f"{nobody} does not take files (ConnectionError)" in line and store.runs()[0].status == "finished"


def test_a_task_that_a_person_deletes_is_missed_and_made_again(store: ClearmlStore, run_dir: Path) -> None:
    tracker = open_run(run_dir)
    wait_for(lambda: tracker.wake() or [run for run in store.runs() if "environment.txt" in run.files])
    store.server.tasks.clear()
    stores.log(run_dir, range(1, 4))
    line = tracker.close("failed", 60)
    refused = "(cannot store points: events.add_batch: Events not added: Invalid task id "
    assert line is not None and line.startswith(f"ClearML has not stored 12 of 12 points {refused}")
    store.server.files.clear()
    store.server.refused.clear()
    assert open_run(run_dir).close("finished", 60) is None
    (run,) = store.runs()
    assert len(run.points) == 3 and run.status == "finished"


def test_a_run_has_one_task_although_the_answer_to_its_making_is_lost(store: ClearmlStore, run_dir: Path) -> None:
    store.server.lost = {"tasks.create"}
    stores.log(run_dir, range(1, 4))
    tracker = open_run(run_dir)
    wait_for(lambda: tracker.wake() or not store.server.lost)
    assert tracker.close("finished", 60) is None
    (run,) = store.runs()
    assert len(run.points) == 3 and store.server.lost == set() and run.status == "finished"


def test_a_finished_runs_model_is_registered_by_the_address_of_its_checkpoint(
    store: ClearmlStore, run_dir: Path
) -> None:
    first = checkpoint(run_dir, "e1")
    named = TrackerSettings(kind="clearml", register_as="digits")
    assert open_run(run_dir, settings=named).close("finished", 60) is None
    (run,) = store.runs()
    (model,) = store.server.models.values()
    uri = f"{store.place}/savepoint/{run.id}/checkpoints/{{}}/model.safetensors"
    assert (model["name"], model["uri"], model["task"]) == ("digits", uri.format("e1"), run.id)
    assert store.server.tasks[run.id]["models"] == {"output": [{"name": "model", "model": model["id"]}]}
    shutil.rmtree(first)
    assert open_run(run_dir).close("interrupted", 60) is None
    assert store.server.models == {}, "a model whose file is gone is not registered"
    checkpoint(run_dir, "e2")
    for _ in range(2):
        assert open_run(run_dir).close("finished", 60) is None
    (model,) = store.server.models.values()
    assert (model["name"], model["uri"]) == ("first", uri.format("e2"))
    model["ready"] = True  # a person publishes it
    checkpoint(run_dir, "e3")
    assert open_run(run_dir).close("finished", 60) is None
    assert {each["uri"] for each in store.server.models.values()} == {uri.format("e2"), uri.format("e3")}


def test_files_go_where_clearmls_configuration_says(
    store: ClearmlStore, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARML_DEFAULT_OUTPUT_URI", (tmp_path / "kept").as_uri())
    first = checkpoint(run_dir, "e1")
    assert open_run(run_dir).close("finished", 60) is None
    (task,), (model,) = store.server.tasks.values(), store.server.models.values()
    there = tmp_path / "kept" / "savepoint" / task["id"] / "checkpoints"
    assert model["uri"] == (there / "e1" / "model.safetensors").as_uri()
    found = trackers.find_run(CLEARML, repository=tmp_path, text=ID)
    assert found is not None
    (tmp_path / "to").mkdir()
    trackers.fetch_run(CLEARML, repository=tmp_path, found=found, to=tmp_path / "to")
    assert (tmp_path / "to" / "checkpoints" / "e1" / "model.safetensors").read_text() == "e1"
    shutil.rmtree(first)
    assert open_run(run_dir).close("interrupted", 60) is None
    assert not [path for path in there.rglob("*") if path.is_file()] and store.server.files == {}


def test_every_name_is_stored_and_what_json_cannot_say_is_left_out(store: ClearmlStore, run_dir: Path) -> None:
    odd = {"a=b@c": 1.0, "": 2.0, "half\ud800": 3.0, "../up": 4.0, "val/loss": "nan", "train/loss": "-inf"}
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": 5.5, **odd}) + "\n")
    for _ in range(2):
        assert open_run(run_dir).close("finished", 60) is None
    stored = {(each["metric"], each["variant"]): each["value"] for each in store.server.events.values()}
    expected = {("a=b@c", "a=b@c"): 1.0, ("_", "_"): 2.0, ("half?", "half?"): 3.0, ("up", ".."): 4.0}
    assert stored == expected
    assert store.server.asked.count("events.add_batch") == 1, "what is there is not sent again"


def test_a_figure_is_a_plot_that_outlives_its_file(store: ClearmlStore, run_dir: Path) -> None:
    figure = run_dir / "figures" / "curve" / "epoch_0001_step_00000006.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"pixels")
    assert open_run(run_dir).close("interrupted", 60) is None
    figure.unlink()
    assert open_run(run_dir).close("interrupted", 60) is None
    (plot,) = [each for each in store.server.events.values() if each["metric"] == "curve"]
    (shown,) = json.loads(plot["plot_str"])["layout"]["images"]
    assert (plot["iter"], shown["source"]) == (6, "data:image/png;base64,cGl4ZWxz")
    (run,) = store.runs()
    assert not [path for path in run.files if "figures" in path]


def test_nothing_is_fetched_to_a_place_outside(store: ClearmlStore, run_dir: Path, tmp_path: Path) -> None:
    checkpoint(run_dir, "e1")
    assert open_run(run_dir).close("interrupted", 60) is None
    (task,) = store.server.tasks.values()
    task["execution"]["artifacts"].append({"key": "checkpoints/e1/../../../out", "uri": f"{store.place}/out"})
    store.server.files["/out"] = b"out"
    found = trackers.find_run(CLEARML, repository=tmp_path, text=ID)
    assert found is not None
    (tmp_path / "to").mkdir()
    trackers.fetch_run(CLEARML, repository=tmp_path, found=found, to=tmp_path / "to")
    assert not [*tmp_path.rglob("out")] and (tmp_path / "to" / "checkpoints" / "e1" / "manifest.json").exists()


def test_ui_prints_the_address_of_the_server(store: ClearmlStore, monkeypatch: pytest.MonkeyPatch, warm: Warm) -> None:
    def ui(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "savepoint", "ui", "tracker=clearml", *arguments]
        ended = warm.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")})
        return ended.returncode, ended.stdout + ended.stderr

    monkeypatch.setenv("CLEARML_WEB_HOST", "https://app.here")
    assert ui() == (0, "https://app.here/projects\n")
    monkeypatch.delenv("CLEARML_WEB_HOST")
    told = "its web page is unknown. Set web_server in clearml.conf, or CLEARML_WEB_HOST.\n"
    assert ui() == (2, f"error: {store.place}: {told}")
    status, words = ui("tracker.uri=kept")
    assert status == 2 and "is for offline sessions, which have no page. python -c " in words


IMPORT = "import sys; from clearml import Task; Task.import_offline_session(sys.argv[1])"


def test_an_offline_session_has_all_and_goes_to_a_server_once(
    store: ClearmlStore, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = {name: os.environ.pop(name) for name in store.environment}
    monkeypatch.setenv("CLEARML_CONFIG_FILE", "none.conf")
    checkpoint(run_dir, "e1")
    stores.log(run_dir, range(1, 4))
    tracker = trackers.open(OFFLINE, run_dir=run_dir, run_id=ID, repository=tmp_path)
    tracker.start(name="first", params={"lr": "0.1"}, tags={"git.commit": "abc"}, parents=["p1"])
    assert tracker.close("failed", 60, note="Best 1.") is None
    session = tmp_path / "sessions" / f"{ID}.zip"
    assert tracker.page() == Page(None, f"{session.parent}/", session.name) and [*session.parent.iterdir()] == [session]
    run = offline_session(session)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert run.points == [(line["step"], line["train/loss"], int(line["time"] * 1000)) for line in lines]
    assert (run.name, run.status, run.params) == ("first", "failed", {"lr": "0.1"})
    assert run.note == "Started from run p1.\n\nBest 1." and run.ended is not None and run.began <= run.ended
    checkpoints = {f"checkpoints/e1/{name}" for name in ("model.safetensors", "manifest.json")}
    assert run.files == checkpoints | {"environment.txt", "loss.png", "metrics.jsonl"}
    (session.parent / f".{ID}-left").mkdir()  # by a process that was killed
    stores.log(run_dir, range(4, 6))  # resumed, and offline again
    assert open_run(run_dir, settings=OFFLINE).close("finished", 60) is None
    assert len(offline_session(session).points) == 5 and [*session.parent.iterdir()] == [session]
    os.environ.update(online)
    (told,) = [each for each in pages.read(REPOSITORY / "docs" / "tracking.md").snippets if "import_offline" in each]
    command = [sys.executable, "-c", told.replace("sessions/ab12cd34.zip", str(session))]
    imported = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert imported.returncode == 0, imported.stderr
    (task,) = store.server.tasks.values()
    assert store.server.tasks[task["id"]]["status"] == "completed" and len(store.server.files) == 5
    scalars = [each for each in store.server.events.values() if each["type"] == "training_stats_scalar"]
    assert len(scalars) == 20 and {each["task"] for each in scalars} == {task["id"]}
    before = dict(store.server.events)
    # From here on the run is tracked on the server: the tag finds the task that the session became.
    assert open_run(run_dir, upload=False).close("finished", 60) is None
    assert [*store.server.tasks] == [task["id"]]
    assert {key: each for key, each in store.server.events.items() if each["type"] != "plot"} == {
        key: each for key, each in before.items() if each["type"] != "plot"
    }
    store.server.files.clear()


def test_an_offline_session_that_is_not_written_is_reported(clearml: str, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "sessions" / f"{ID}.zip" / "x").mkdir(parents=True)
    stores.log(run_dir, range(1, 4))
    line = open_run(run_dir, settings=OFFLINE).close("finished", 60)
    assert line is not None and "\n" not in line
    assert line.startswith("ClearML has not stored 12 of 12 points (cannot let go of the run: ")
