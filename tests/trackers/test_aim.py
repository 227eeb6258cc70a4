"""What is Aim's own: where it keeps runs, what it refuses, what is said where it is not installed, its page."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tools import stores
from tools.kept import needs_aim
from tools.processes import REPOSITORY
from tools.stores import query, wait_for

from savepoint import __main__, trackers
from savepoint.commands.ui import _settings as choose
from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers import Page
from savepoint.trackers.aim import KIND
from savepoint.trackers.aim.address import check
from savepoint.trackers.aim.contents import stored_id

ID = "ab12cd34"
AIM = TrackerSettings(kind="aim")


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIM_REPO", raising=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / ID
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").touch()
    return directory


def open_run(run_dir: Path, **arguments: object) -> trackers.Tracker:
    given = {"run_dir": run_dir, "run_id": ID, "repository": run_dir.parents[1], **arguments}
    tracker = trackers.open(given.pop("settings", AIM), **given)
    tracker.start(name="first", params={}, tags={})
    return tracker


@pytest.mark.parametrize(
    ("uri", "environment", "place", "usual"),
    [
        (None, None, "here", True),
        ("kept", None, "here/kept", False),
        ("kept/.aim", None, "here/kept", False),
        ("kept", "mine", "there/mine", False),
    ],
)
def test_runs_are_kept_where_the_environment_or_the_config_says(
    uri: str | None, environment: str | None, place: str, usual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    if environment:
        monkeypatch.setenv("AIM_REPO", environment)
    page = trackers.find_page(TrackerSettings(kind="aim", uri=uri), repository=tmp_path / "here")
    given = () if usual else (f"tracker.uri={tmp_path / place}",)
    assert page == Page(str(tmp_path / place / ".aim"), None, "runs", ("tracker=aim", *given))
    words = " ".join(("python -m savepoint ui tracker=aim", *given))
    assert page.words == f"{words}, then http://127.0.0.1:5000/runs"
    assert [*(tmp_path / "here").iterdir()] == [], "asking makes no store"


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "aim://host", "aim://:5", "aim://host:port", "ssh://host/x", "aim://[::1"]
)
def test_an_address_that_is_none_of_aims_is_refused_in_one_line(uri: str, run_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"this is no store of Aim's\. Use a directory, or a server's aim://"
    ) as refusal:
        open_run(run_dir, settings=TrackerSettings(kind="aim", uri=uri))
    assert str(refusal.value).startswith(f"tracker.uri={uri}: ") and "\n" not in str(refusal.value)


def test_an_address_with_a_password_is_refused_and_not_repeated(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="has no user and no password") as refusal:
        open_run(run_dir, settings=TrackerSettings(kind="aim", uri="aim://me:secret@host:5"))
    assert "secret" not in str(refusal.value)


def test_where_aim_is_not_installed_one_line_says_so_and_training_goes_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['aim'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    warnings: list[str] = []
    tracker = open_run(run_dir, warn=warnings.append)
    stores.log(run_dir, range(1, 4))
    wait_for(lambda: tracker.wake() or warnings)
    why = "tracker=aim needs a package that is not installed. Install it: pip install 'aim>=3.29,<4'"
    assert warnings == [f"Aim: cannot connect: {why}. Training goes on; metrics.jsonl keeps every point."]
    line = tracker.close("finished", 60)
    assert line is not None and line.startswith(f"Aim has not stored 12 of 12 points (cannot connect: {why}).")


@pytest.fixture(params=[pytest.param("installed", marks=needs_aim)])
def aim(request: pytest.FixtureRequest, nursery: object) -> str:
    """Aim itself, in processes that have imported it."""
    return str(request.param)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the checks before the import can tell."""
    monkeypatch.setattr("savepoint.trackers.aim.address.importlib.util.find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
def test_a_place_that_can_never_be_a_repository_is_refused(tmp_path: Path) -> None:
    order = KIND.locate(AIM, tmp_path, tmp_path)
    (tmp_path / ".aim").touch()
    with pytest.raises(UserError, match=r"/\.aim cannot be used as Aim's repository \(.*\)\. Move it away, or set"):
        check(order)
    (tmp_path / ".aim").unlink()
    check(order)
    assert [*tmp_path.iterdir()] == [], "the check leaves nothing behind"


@pytest.mark.usefixtures("installed")
def test_ui_of_a_store_without_runs_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["ui", "tracker=aim", f"tracker.uri={tmp_path}"]) == 2
    told = "has no runs yet. Train one with tracker=aim, or check tracker.uri and AIM_REPO.\n"
    assert capsys.readouterr().err == f"error: {tmp_path / '.aim'} {told}"


@pytest.mark.parametrize(("chosen", "serves"), [("aim", "aim"), ("mlflow", "mlflow"), ("none", "mlflow")])
def test_ui_serves_the_tracker_that_the_config_chooses(chosen: str, serves: str, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(REPOSITORY / "conf", conf)
    text = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(text.replace("  - tracker: mlflow", f"  - tracker: {chosen}"))
    assert choose(conf, []).kind == serves
    assert choose(conf, ["tracker=aim", "tracker.uri=x"]) == TrackerSettings(kind="aim", uri="x")
    assert choose(conf, ["tracker=none"]).kind == "none"


def test_ui_of_an_aim_server_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["ui", "tracker=aim", "tracker.uri=aim://127.0.0.1:5999"]) == 0
    told = "aim://127.0.0.1:5999, whose page `aim up` serves on that machine: /runs\n"
    assert capsys.readouterr().out == told


def test_every_name_is_stored_and_a_lock_from_another_machine_is_no_obstacle(
    aim: str, run_dir: Path, tmp_path: Path
) -> None:
    odd = {"a=b@c": 1.0, "": 2.0, "half\ud800": 3.0, "../up": 4.0, "nan": "nan", "train/loss": "-inf"}
    with (run_dir / "metrics.jsonl").open("w") as file:
        file.write(json.dumps({"step": 1, "time": 5.5, **odd}) + "\n")
    for _ in range(2):
        assert open_run(run_dir).close("finished", 60) is None
        lock = tmp_path / ".aim" / "locks" / f"{stored_id('run', ID)}.softlock"
        lock.write_text("1-1-0.0")  # of a process that was killed
        os.utime(lock, (time.time() + 999,) * 2)  # new filelocks give up an old one by themselves
    (name,) = query(tmp_path, "select name from run", database=".aim/run_metadata.sqlite")
    assert name == ("first",)


def test_a_repository_that_aim_cannot_read_is_left_alone(aim: str, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / ".aim").mkdir()
    line = open_run(run_dir).close("finished", 60)
    assert line is not None and "was not made by Aim 3, or its making was cut short. Move it away, or" in line
    assert [*(tmp_path / ".aim").iterdir()] == []


def test_ui_serves_aims_page_until_ctrl_c(aim: str, run_dir: Path, tmp_path: Path) -> None:
    stores.log(run_dir, range(1, 4))
    assert open_run(run_dir).close("finished", 60) is None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "savepoint", "ui", "tracker=aim", f"tracker.uri={tmp_path}", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    log = tmp_path / "ui.log"
    with log.open("w") as output:
        served = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)

    def read(path: str) -> bytes:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            return b""

    try:
        wait_for(lambda: b"<title>Aim</title>" in read("/runs"), seconds=60)
        shown = json.loads(read(f"/api/runs/{stored_id('run', ID)}/info?sequence=metric&sequence=images"))
        assert shown["props"]["name"] == "first"
        assert {each["name"] for each in shown["traces"]["metric"]} == {"train/loss", "val/loss", "lr", "epoch"}
        assert [each["name"] for each in shown["traces"]["images"]] == ["loss.png"]
    finally:
        os.killpg(served.pid, signal.SIGINT)
    assert served.wait(60) == 0
    assert log.read_text().startswith(f"http://127.0.0.1:{port}/runs   (Ctrl-C ends it)\n")
    wait_for(lambda: not read("/runs"), seconds=20)
