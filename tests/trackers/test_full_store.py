"""A store on a disk that is full: nothing is lost, and what is missing is sent once there is space."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import servers, stores
from tools.stores import logged, wait_for

pytestmark = pytest.mark.long


@pytest.fixture(params=["a local database", "a server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, servers.Filler]]:
    """The address of a store on a small disk, and what fills that disk."""
    (tmp_path / "disk").mkdir()
    address = f"sqlite:///{tmp_path}/disk/mlflow.db"
    with contextlib.ExitStack() as stack:
        fill = stack.enter_context(servers.small_disk(tmp_path / "disk"))
        if request.param == "a server":
            place = str(tmp_path / "disk" / "mlartifacts")
            server = stack.enter_context(
                servers.mlflow(tmp_path, f"--backend-store-uri={address} --artifacts-destination={place}")
            )
            address = f"http://127.0.0.1:{server.port}"
        yield address, fill


@pytest.mark.usefixtures("nursery")
def test_a_full_disk_of_the_store_loses_nothing(
    store: tuple[str, servers.Filler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, fill = store
    run_dir = tmp_path / "run"
    ids: list[str] = []
    warnings: list[str] = []
    with servers.opener(tmp_path) as opened:
        tracker = opened(uri, announce=ids.append, warn=warnings.append)
        stores.log(run_dir, range(1, 4))
        wait_for(lambda: tracker.wake() or (ids and of(tmp_path, ids[0])))
        filler = fill()
        stores.log(run_dir, range(4, 1000))
        checkpoint = run_dir / "checkpoints" / "e1"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"weights" * 30_000)
        (checkpoint / "manifest.json").write_text("{}")
        wait_for(lambda: tracker.wake() or warnings)
        line = str(tracker.close("failed", 60))
        filler.unlink()
        assert opened(uri, known_run_id=ids[0]).close("failed", 60) is None
    assert of(tmp_path, ids[0]) == logged(run_dir)
    full = f"{uri} answers with an error (503). The server's log says why"
    if uri.startswith("sqlite"):
        full = f"the database at {uri} says: database or disk is full"
    assert line.startswith("MLflow has not stored ") and f"cannot store points: {full}" in line, line
    (warning,) = warnings
    assert warning.endswith(". Training goes on; metrics.jsonl keeps every point.") and "\n" not in warning + line
    for path in checkpoint.iterdir():
        (kept,) = (tmp_path / "disk" / "mlartifacts").glob(f"**/artifacts/checkpoints/e1/{path.name}")
        assert kept.read_bytes() == path.read_bytes()


def of(tmp_path: Path, run_id: str) -> list[tuple]:
    """The points that the database on the small disk has of a run."""
    query = "select key, step, value, timestamp from metrics where run_uuid = ?"
    return sorted(stores.query(tmp_path / "disk", query, run_id))
