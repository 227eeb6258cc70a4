"""MLflow's server in every kind of trouble: wrong answers, none, lost ones, slow ones, and a late start."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools import servers, stores
from tools.servers import Gate, Server
from tools.stores import logged, wait_for
from tools.warm import Nursery

from savepoint import trackers

pytestmark = pytest.mark.long

Opener = Callable[..., trackers.Tracker]
KEPT = "They are kept in metrics.jsonl, and resuming the run sends them."
ON = "Training goes on; metrics.jsonl keeps every point."


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's server with its data in a file, as `make server` starts it."""
    folder = tmp_path_factory.mktemp("alone")
    with servers.mlflow(folder) as server:
        yield server


@pytest.fixture
def gate(alone: Server) -> Iterator[Gate]:
    """A gate in front of that server."""
    one = Gate(alone.port)
    yield one
    one.close()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> Iterator[Opener]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with servers.opener(tmp_path) as open_one:
        yield open_one


TROUBLE = {
    "error": "cannot connect: {} answers with an error (500). The server's log says why",
    "login": "cannot connect: {} does not answer like an MLflow server. It may be a login page. Check tracker.uri and MLFLOW_TRACKING_URI",
    "away": "cannot connect: {} does not answer like an MLflow server. It may be a login page. Check tracker.uri and MLFLOW_TRACKING_URI",
    "silent": "not done within 1 s",
    "slow": "not done within 1 s",
}


def of_alone(alone: Server, run_id: str) -> list[tuple]:
    query = "select key, step, value, timestamp from metrics where run_uuid = ?"
    return sorted(stores.query(alone.log.parent / "server", query, run_id))


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
    assert stores.query(alone.log.parent / "server", query, tmp_path.name) == [(ids[0],)]
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
    (kept,) = alone.log.parent.glob("server/artifacts/*/*/artifacts/checkpoints/e1/model.safetensors")
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
