"""Runs on real servers: MLflow's in front of PostgreSQL and S3, which are read directly. `make test-servers` runs them."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools import servers
from tools.servers import BUCKET, KEYS, PROGRAMS, Server
from tools.stores import wait_for
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs

pytestmark = pytest.mark.long

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
    keys = [each["Key"] for page in pages for each in page.get("Contents", []) if f"/{run_id}/artifacts/" in each["Key"]]
    return {
        key.partition("/artifacts/")[2]: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
    }


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
    started = place.start("train.py", *SMALL, "model.seconds=0.2", "trainer.max_epochs=50", uri, output=output)
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
    assert len(logged(run.directory)) > 150
    assert ask(database, "select run_uuid, status from runs", name="mlflow") == [(run.tracker_id, "FINISHED")]
    kept = objects(storage, run.tracker_id)
    checkpoints = {path: data for path, data in kept.items() if path.startswith("checkpoints/")}
    assert checkpoints == files(run.directory)
    assert len({path.split("/")[1] for path in checkpoints}) == len(list(run.checkpoints.iterdir()))
    assert kept["metrics.jsonl"] == (run.directory / "metrics.jsonl").read_bytes()
