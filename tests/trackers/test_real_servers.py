"""Runs on real servers: MLflow's in front of PostgreSQL and S3, which are read directly. `make test-servers` runs them."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from tools import servers, stores
from tools.servers import BUCKET, KEYS, PROGRAMS, Gate, Server
from tools.stores import wait_for
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs, trackers
from savepoint.config import TrackerSettings

pytestmark = pytest.mark.long

Opener = Callable[..., trackers.Tracker]
ID = "ab12cd34"
KEPT = "They are kept in metrics.jsonl, and resuming the run sends them."
ON = "Training goes on; metrics.jsonl keeps every point."
SMALL = ("trainer.threads=1", "data.limit_batches=2", "data.batch_size=16", "model=slow", "checkpoint.keep_last=2")


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    servers.need(program=PROGRAMS / "postgres", packages=["psycopg"])
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers.need(packages=["moto", "boto3"])
    with servers.s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def team(database: Server, storage: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server, whose data is in PostgreSQL and whose artifacts are in S3."""
    ask(database, "create role tracking login password 'tracking'")
    ask(database, "create database mlflow owner tracking")
    address = f"postgresql+psycopg://tracking:tracking@127.0.0.1:{database.port}/mlflow"
    keys = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{storage.port}"}
    folder = tmp_path_factory.mktemp("team")
    with servers.mlflow(folder, database=address, artifacts=f"s3://{BUCKET}", **keys) as server:
        yield server


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server with its data in a file, as `make server` starts it."""
    folder = tmp_path_factory.mktemp("alone")
    with servers.mlflow(folder, database="sqlite:///mlflow.db", artifacts="artifacts") as server:
        yield server


@pytest.fixture
def gate(alone: Server) -> Iterator[Gate]:
    """A gate in front of that server."""
    one = Gate(alone.port)
    yield one
    one.close()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> Iterator[Opener]:
    """Opens trackers of one run, in an experiment of its own, and leaves no process behind."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").touch()
    with contextlib.ExitStack() as stack:

        def open_one(uri: str | None, experiment: str = tmp_path.name, **arguments: object) -> trackers.Tracker:
            settings = TrackerSettings(kind="mlflow", uri=uri, experiment=experiment)
            run = {"run_dir": tmp_path / "run", "run_id": ID, "repository": tmp_path}
            tracker = trackers.open(settings, **run, **arguments)
            stack.callback(tracker.abandon)
            tracker.start(name=None, params={"lr": "0.1"}, tags={})
            return tracker

        yield open_one


@pytest.fixture
def place(workshop: Workshop, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A repository whose runs have their trackers' processes from a warm one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with workshop.zygote.tracking(nursery):
        yield workshop


def ask(database: Server, text: str, *values: object, name: str = "postgres") -> list[tuple]:
    import psycopg

    address = f"postgresql://postgres@127.0.0.1:{database.port}/{name}"
    with psycopg.connect(address, autocommit=True) as connection:
        asked = connection.execute(text, values)
        return asked.fetchall() if asked.description else []


def objects(storage: Server, run_id: str) -> dict[str, bytes]:
    """The artifacts of a run, as S3 has them."""
    client = servers.bucket_of(storage)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [
        each["Key"] for page in pages for each in page.get("Contents", []) if f"/{run_id}/artifacts/" in each["Key"]
    ]
    return {key.partition("/artifacts/")[2]: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def logged(run_dir: Path) -> list[tuple[str, int, float, int]]:
    """Every point that a run has logged, in the columns of MLflow's table."""
    found = []
    for name in ("metrics.jsonl", "system.jsonl"):
        for line in (run_dir / name).read_text().splitlines() if (run_dir / name).exists() else []:
            values = json.loads(line)
            step, milliseconds = values.pop("step"), int(values.pop("time") * 1000)
            found += [(key, step, float(value), milliseconds) for key, value in values.items()]
    return sorted(found)


def stored(database: Server, run_id: str) -> list[tuple[str, int, float, int]]:
    query = "select key, step, value, timestamp from metrics where run_uuid = %s"
    return sorted(ask(database, query, run_id, name="mlflow"))


def files(run_dir: Path) -> dict[str, bytes]:
    paths = [path for path in (run_dir / "checkpoints").rglob("*") if path.is_file()]
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in paths}


def only_run(place: Workshop) -> runs.Run:
    (run,) = runs.all_runs(place.root)
    return run


def test_a_server_that_is_killed_and_comes_back_has_every_point_and_checkpoint_once(
    place: Workshop, team: Server, database: Server, storage: Server, tmp_path: Path
) -> None:
    output = tmp_path / "output.txt"
    uri = f"tracker.uri=http://127.0.0.1:{team.port}"
    started = place.start("train.py", *SMALL, "model.seconds=0.2", "trainer.max_epochs=30", uri, output=output)
    wait_for(lambda: runs.all_runs(place.root) and only_run(place).tracker_id)
    run = only_run(place)
    of_checkpoints = lambda: {path for path in objects(storage, run.tracker_id) if path.endswith("/manifest.json")}  # noqa: E731
    wait_for(of_checkpoints)
    team.kill()
    before = len(logged(run.directory))
    wait_for(lambda: len(logged(run.directory)) > before + 8)
    team.start()
    assert started.wait() == 0, output.read_text()
    said = output.read_text()
    assert "has not stored" not in said and "Traceback" not in said, said
    assert said.count("Training goes on; metrics.jsonl keeps every point.") == 1, said

    assert stored(database, run.tracker_id) == logged(run.directory)
    assert len(logged(run.directory)) > 100
    assert ask(database, "select run_uuid, status from runs", name="mlflow") == [(run.tracker_id, "FINISHED")]
    kept = objects(storage, run.tracker_id)
    checkpoints = {path: data for path, data in kept.items() if path.startswith("checkpoints/")}
    assert checkpoints == files(run.directory)
    assert len({path.split("/")[1] for path in checkpoints}) == len(list(run.checkpoints.iterdir()))
    assert kept["metrics.jsonl"] == (run.directory / "metrics.jsonl").read_bytes()


def test_wrong_keys_of_the_storage_keep_no_point_back_and_sync_sends_the_rest(
    place: Workshop, team: Server, database: Server, storage: Server
) -> None:
    uri = f"http://127.0.0.1:{team.port}"
    switch = f"http://127.0.0.1:{storage.port}/moto-api/reset-auth"
    requests.post(switch, data="0", timeout=60)  # from now on S3 knows nobody's keys
    try:
        ended = place.run("train.py", *SMALL, "model.seconds=0", "trainer.max_epochs=3", f"tracker.uri={uri}")
    finally:
        requests.post(switch, data="inf", timeout=60)
    assert ended.status == 0, ended.output
    run = only_run(place)
    total = len(logged(run.directory))
    assert f"MLflow has all {total} points, but not all of the rest (cannot store documents, " in ended.output
    assert (
        f": {uri} answers with an error (500). The server's log says why). Resuming the run sends it." in ended.output
    )
    assert stored(database, str(run.tracker_id)) == logged(run.directory)
    assert "InvalidAccessKeyId" in team.log.read_text(), "the server's log says why"
    assert objects(storage, str(run.tracker_id)) == {}

    sent = place.run("savepoint", "sync", run.id, f"tracker.uri={uri}")
    assert (sent.status, sent.output) == (0, f"run {run.id}  everything is stored\n")
    checkpoints = {path: data for path, data in objects(storage, str(run.tracker_id)).items() if "checkpoints/" in path}
    assert checkpoints == files(run.directory)
    assert stored(database, str(run.tracker_id)) == logged(run.directory)


def test_a_database_that_is_killed_and_comes_back_has_every_point_once(
    team: Server, database: Server, opened: Opener, tmp_path: Path
) -> None:
    uri = f"http://127.0.0.1:{team.port}"
    ids: list[str] = []
    warnings: list[str] = []
    tracker = opened(uri, announce=ids.append, warn=warnings.append)
    stores.log(tmp_path / "run", range(1, 4))
    wait_for(lambda: tracker.wake() or (ids and stored(database, ids[0])))
    database.kill()
    stores.log(tmp_path / "run", range(4, 7))
    wait_for(lambda: tracker.wake() or warnings)
    (warning,) = warnings
    assert warning.startswith("MLflow: cannot store ") and warning.endswith(ON) and "\n" not in warning, warning
    database.start()
    stores.log(tmp_path / "run", range(7, 10))
    assert tracker.close("finished", 60) is None
    assert stored(database, ids[0]) == logged(tmp_path / "run")


def test_a_database_user_without_rights_is_named_and_nothing_is_lost(
    team: Server, database: Server, opened: Opener, tmp_path: Path
) -> None:
    uri = f"http://127.0.0.1:{team.port}"
    ids: list[str] = []
    ask(database, "revoke insert on metrics from tracking", name="mlflow")
    try:
        tracker = opened(uri, announce=ids.append)
        stores.log(tmp_path / "run", range(1, 4))
        line = tracker.close("finished", 60)
    finally:
        ask(database, "grant insert on metrics to tracking", name="mlflow")
    assert opened(uri, known_run_id=ids[0]).close("finished", 60) is None
    assert stored(database, ids[0]) == logged(tmp_path / "run")
    why = f"cannot store points: the database at {uri} says: permission denied for table metrics"
    assert line == f"MLflow has not stored 12 of 12 points ({why}). {KEPT}"


def test_a_database_that_lets_nobody_in_says_so_at_once(
    database: Server, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://nobody:wrong-one@127.0.0.1:{database.port}/mlflow")
    warnings: list[str] = []
    tracker = opened(None, warn=warnings.append)
    stores.log(tmp_path / "run", range(1, 4))
    wait_for(lambda: tracker.wake() or warnings, seconds=30)
    line = tracker.close("finished", 30)
    assert line is not None and f"postgresql+psycopg://127.0.0.1:{database.port}/mlflow lets nobody in" in line
    assert 'password authentication failed for user "nobody"). Check the address, the user and the password in' in line
    assert holding("wrong-one", tmp_path) == []


def holding(secret: str, folder: Path) -> list[Path]:
    """The files that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server with users and passwords."""
    servers.need(packages=["flask_wtf"])
    folder = tmp_path_factory.mktemp("guarded")
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": "password-of-admin", "MLFLOW_FLASK_SERVER_SECRET_KEY": "any-text"}
    with servers.mlflow(folder, database="sqlite:///mlflow.db", artifacts="artifacts", **secrets) as server:
        yield server


def administer(server: Server, path: str, **values: object) -> dict:
    where = f"http://127.0.0.1:{server.port}/api/{path}"
    answer = requests.post(where, json=values, auth=("admin", "password-of-admin"), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.text.strip() else {}


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
    assert f": {forbidden}" in line and "cannot store points" in line, line
    administer(guarded, "3.0/mlflow/users/permissions/grant", permission="EDIT", **permission)
    assert opened(uri, "savepoint", known_run_id=ids[0]).close("finished", 60) is None
    query = "select key, step, value, timestamp from metrics where run_uuid = ?"
    assert sorted(stores.query(guarded.log.parent, query, ids[0])) == logged(tmp_path / "run")

    variables = {name: os.environ[name] for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
    output = tmp_path / "output.txt"
    small = (*SMALL, "model.seconds=0", "trainer.max_epochs=2", f"tracker.uri={uri}")
    assert place.start("train.py", *small, output=output, **variables).wait() == 0
    assert "has not stored" not in output.read_text() and "Training goes on" not in output.read_text()
    (run,) = runs.all_runs(place.root)
    assert sorted(stores.query(guarded.log.parent, query, run.tracker_id)) == logged(run.directory)
    for folder in (run.directory, tmp_path, guarded.log.parent / "artifacts"):
        assert holding("password-of-ann", folder) == []


TROUBLE = {
    "error": "cannot connect: {} answers with an error (500). The server's log says why",
    "login": "cannot connect: {} does not answer as an MLflow server does, but maybe as a login page. Check tracker.uri and MLFLOW_TRACKING_URI",
    "away": "cannot connect: {} does not answer as an MLflow server does, but maybe as a login page. Check tracker.uri and MLFLOW_TRACKING_URI",
    "silent": "not done within 1 s",
    "slow": "not done within 1 s",
}


def of_alone(alone: Server, run_id: str) -> list[tuple]:
    query = "select key, step, value, timestamp from metrics where run_uuid = ?"
    return sorted(stores.query(alone.log.parent, query, run_id))


@pytest.mark.parametrize("manner", TROUBLE)
def test_a_server_in_trouble_delays_no_step_and_gets_everything_later(
    manner: str, alone: Server, gate: Gate, opened: Opener, tmp_path: Path
) -> None:
    gate.manner = manner
    ids: list[str] = []
    warnings: list[str] = []
    tracker = opened(gate.uri, warn=warnings.append)
    longest = 0.0
    for step in range(1, 11):
        stores.log(tmp_path / "run", range(step, step + 1))
        before = time.perf_counter()
        tracker.wake()
        longest = max(longest, time.perf_counter() - before)
        time.sleep(0.1)
    assert longest < 1
    waits = TROUBLE[manner].startswith("not done")
    if not waits:
        wait_for(lambda: tracker.wake() or warnings)
    why = TROUBLE[manner].format(gate.uri)
    assert tracker.close("finished", 1 if waits else 60) == f"MLflow has not stored 40 of 40 points ({why}). {KEPT}"
    assert warnings == ([] if waits else [f"MLflow: {why}. {ON}"])
    gate.manner = "open"
    assert opened(gate.uri, announce=ids.append).close("finished", 60) is None
    assert of_alone(alone, ids[0]) == logged(tmp_path / "run")


@pytest.mark.parametrize("only", ["experiments/create", "runs/create", "runs/log-batch", "runs/update"])
def test_what_a_server_did_before_its_answer_got_lost_is_not_done_twice(
    only: str, alone: Server, gate: Gate, opened: Opener, tmp_path: Path
) -> None:
    gate.manner, gate.only = "lost", only
    ids: list[str] = []
    stores.log(tmp_path / "run", range(1, 4))
    assert opened(gate.uri, announce=ids.append).close("finished", 60) is None
    assert gate.manner == "open", "an answer was lost"
    query = "select run_uuid from runs join experiments using (experiment_id) where experiments.name = ?"
    assert stores.query(alone.log.parent, query, tmp_path.name) == [(ids[0],)]
    assert of_alone(alone, ids[0]) == logged(tmp_path / "run")


def test_a_large_file_may_take_longer_than_other_requests(
    gate: Gate, alone: Server, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    checkpoint = tmp_path / "run" / "checkpoints" / "e1"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(20_000_000))
    (checkpoint / "manifest.json").touch()
    gate.manner, gate.only, gate.seconds = "slow", "model.safetensors", 4
    assert opened(gate.uri).close("failed", 60) is None
    (kept,) = alone.log.parent.glob("artifacts/*/*/artifacts/checkpoints/e1/model.safetensors")
    assert kept.stat().st_size == 20_000_000


def test_a_run_that_begins_before_its_server_is_stored_in_full(alone: Server, opened: Opener, tmp_path: Path) -> None:
    alone.kill()
    uri = f"http://127.0.0.1:{alone.port}"
    ids: list[str] = []
    warnings: list[str] = []
    tracker = opened(uri, warn=warnings.append, announce=ids.append)
    stores.log(tmp_path / "run", range(1, 4))
    wait_for(lambda: tracker.wake() or warnings)
    assert warnings == [f"MLflow: cannot connect: {uri} does not answer. {ON}"]
    alone.start()
    wait_for(lambda: tracker.wake() or (ids and of_alone(alone, ids[0])))  # while it trains
    stores.log(tmp_path / "run", range(4, 7))
    assert tracker.close("finished", 60) is None
    assert of_alone(alone, ids[0]) == logged(tmp_path / "run")
