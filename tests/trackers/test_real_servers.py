"""Runs on real servers: MLflow's in front of PostgreSQL and S3, which are read directly. `make test-servers` runs them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from tools import servers, stores
from tools.servers import BUCKET, KEYS, PROGRAMS, Server
from tools.stores import logged, wait_for
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs, trackers

pytestmark = pytest.mark.long

Opener = Callable[..., trackers.Tracker]
KEPT = "They are kept in metrics.jsonl, and resuming the run sends them."
ON = "Training goes on; metrics.jsonl keeps every point."
SMALL = ("trainer.threads=1", "data.limit_batches=2", "data.batch_size=16", "model=slow", "checkpoint.keep_last=2")


@pytest.fixture(
    scope="module",
    autouse=True,
    params=servers.needing(program=PROGRAMS / "postgres", packages=["psycopg", "moto", "boto3"]),
)
def installed() -> None:
    """What these tests need is there."""


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def team(database: Server, storage: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server, whose data is in PostgreSQL and whose artifacts are in S3."""
    ask(database, "create role tracking login password 'tracking'")
    ask(database, "create database mlflow owner tracking")
    values = {"user": "tracking", "password": "tracking", "database": "mlflow", "bucket": BUCKET}
    arguments = servers.documented("postgresql", host=f"127.0.0.1:{database.port}", **values)
    keys = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{storage.port}"}
    with servers.mlflow(tmp_path_factory.mktemp("team"), arguments, **keys) as server:
        yield server


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
    (line,) = [each for each in ended.output.splitlines() if "Resuming the run sends it." in each]
    assert line.startswith(f"MLflow has all {total} points, but not all of the rest (cannot "), line
    # A server that refuses a file before it has read all of it may break the connection off.
    assert re.search(rf"{uri} (answers with an error \(500\)|broke the connection off)", line), line
    assert all(each in line for each in ("store documents", "store checkpoints", "store the model")), line
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
    assert line is not None and f"postgresql+psycopg://127.0.0.1:{database.port}/mlflow refuses the connection" in line
    assert 'password authentication failed for user "nobody"). Check the address, the user and the password in' in line
    assert stores.holding("wrong-one", tmp_path) == []
