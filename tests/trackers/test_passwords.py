"""A server with users and passwords: what a run says that may not in, and that no file of a run holds a password."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from tools import servers, stores
from tools.processes import REPOSITORY
from tools.servers import Server
from tools.stores import logged, wait_for
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs, trackers

pytestmark = pytest.mark.long

Opener = Callable[..., trackers.Tracker]
KEPT = "They are kept in metrics.jsonl, and resuming the run sends them."
ON = "Training goes on; metrics.jsonl keeps every point."


@pytest.fixture(scope="module", autouse=True, params=servers.needing(packages=["flask_wtf"]))
def installed() -> None:
    """What these tests need is there."""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> Iterator[Opener]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with servers.opener(tmp_path) as open_one:
        yield open_one


@pytest.fixture
def place(workshop: Workshop, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A repository whose runs have their trackers' processes from a warm one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with workshop.zygote.tracking(nursery):
        yield workshop


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server with users and passwords."""
    folder = tmp_path_factory.mktemp("guarded")
    users = (REPOSITORY / "docs" / "tracking.md").read_text(encoding="utf-8").split("```ini\n")[1].split("```")[0]
    (folder / "users.ini").write_text(users.replace("default_permission = EDIT", "default_permission = READ"))
    hosts = servers.documented("allowed-hosts").replace("5000", "PORT")
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": "users.ini",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "password-of-admin",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any-text",
    }
    with servers.mlflow(folder, servers.documented("basic-auth") + " " + hosts, **variables) as server:
        yield server


def administer(server: Server, path: str, **values: object) -> dict:
    where = f"http://127.0.0.1:{server.port}/api/{path}"
    answer = requests.post(where, json=values, auth=("admin", "password-of-admin"), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.text.strip() else {}


def test_a_name_that_is_not_in_the_servers_list_is_refused(guarded: Server) -> None:
    def answer(name: str) -> requests.Response:
        where = f"http://127.0.0.1:{guarded.port}/api/2.0/mlflow/experiments/search?max_results=1"
        given = {"headers": {"Host": f"{name}:{guarded.port}"}, "auth": ("admin", "password-of-admin")}
        return requests.get(where, **given, timeout=60)

    assert [answer(name).status_code for name in ("lab-box", "127.0.0.1", "other-box")] == [200, 200, 403]
    assert "Invalid Host header" in answer("other-box").text, "what the engine knows it by"


def test_users_and_passwords(
    place: Workshop, guarded: Server, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{guarded.port}"
    administer(guarded, "2.0/mlflow/users/create", username="ann", password="password-of-ann")
    experiment = administer(guarded, "2.0/mlflow/experiments/create", name="savepoint")["experiment_id"]
    permission = {"username": "ann", "resource_type": "experiment", "resource_id": experiment}
    who = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    stores.log(tmp_path / "run", range(1, 4))

    def refused() -> str:
        warnings: list[str] = []
        tracker = opened(uri, "savepoint", warn=warnings.append)
        wait_for(lambda: tracker.wake() or warnings, seconds=30)
        before = time.monotonic()
        line = str(tracker.close("finished", 60))
        assert time.monotonic() - before < 10, "not waited for"
        why = line.removeprefix("MLflow has not stored 12 of 12 points (").removesuffix(f"). {KEPT}")
        assert warnings == [f"MLflow: {why}. {ON}"]
        return why

    unknown = f"cannot connect: {uri} refuses the user or the password (401). Set {who}"
    assert refused() == unknown
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password-of-bob")
    assert refused() == unknown
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password-of-ann")
    ask_for = "Ask for the permission to edit the experiment 'savepoint', or set tracker.experiment to another, or"
    forbidden = f"{uri} forbids this to the user (403). {ask_for} {who}"
    assert refused() == f"cannot open the run: {forbidden}"

    administer(guarded, "3.0/mlflow/users/permissions/grant", permission="EDIT", **permission)
    ids: list[str] = []
    tracker = opened(uri, "savepoint", announce=ids.append)
    wait_for(lambda: tracker.wake() or ids)
    administer(guarded, "3.0/mlflow/users/permissions/revoke", **permission)
    stores.log(tmp_path / "run", range(4, 7))
    line = str(tracker.close("finished", 60))
    assert f": {forbidden}" in line and "store points" in line, line
    administer(guarded, "3.0/mlflow/users/permissions/grant", permission="EDIT", **permission)
    assert opened(uri, "savepoint", known_run_id=ids[0]).close("finished", 60) is None
    query = "select key, step, value, timestamp from metrics where run_uuid = ?"
    assert sorted(stores.query(guarded.log.parent / "server", query, ids[0])) == logged(tmp_path / "run")

    variables = {name: os.environ[name] for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
    output = tmp_path / "output.txt"
    small = (
        "trainer.threads=1",
        "data.limit_batches=2",
        "data.batch_size=16",
        "model=slow",
        "model.seconds=0",
        "trainer.max_epochs=2",
        f"tracker.uri={uri}",
    )
    assert place.start("train.py", *small, output=output, **variables).wait() == 0
    assert "has not stored" not in output.read_text() and "Training goes on" not in output.read_text()
    (run,) = runs.all_runs(place.root)
    assert sorted(stores.query(guarded.log.parent / "server", query, run.tracker_id)) == logged(run.directory)
    for folder in (run.directory, tmp_path, guarded.log.parent / "server" / "artifacts"):
        assert stores.holding("password-of-ann", folder) == []
