"""What every kind of tracker does, whatever its store: the same tests for each, with real stores and processes."""

import contextlib
import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import stores
from tools.kept import AimStore, ClearmlStore, Kept, MlflowStore, NoStore, needs_aim, needs_clearml
from tools.stores import ended, wait_for
from tools.warm import Nursery

from savepoint import trackers
from savepoint.runs import history
from savepoint.trackers import Dataset, Found, Sweep

Opener = Callable[..., trackers.Tracker]
ID = "ab12cd34"
KINDS = {store.kind: store for store in (MlflowStore, AimStore, ClearmlStore, NoStore)}


@pytest.fixture(scope="module")
def aim_schema(tmp_path_factory: pytest.TempPathFactory, the_nursery: Nursery) -> Path:
    """A repository of Aim's without runs: making one takes two seconds."""
    root = tmp_path_factory.mktemp("aim")
    with the_nursery.serving():
        tracker = trackers.open(AimStore.settings, run_dir=root, run_id=ID, repository=root)
        wait_for((root / ".aim").exists)
        tracker.abandon()
    return root / ".aim"


@pytest.fixture(
    params=["mlflow", pytest.param("aim", marks=needs_aim), pytest.param("clearml", marks=needs_clearml), "none"]
)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery
) -> Iterator[Any]:
    for name in ("MLFLOW_TRACKING_URI", "AIM_REPO", "CLEARML_OFFLINE_MODE"):
        monkeypatch.delenv(name, raising=False)
    schema = {"mlflow": "schema", "aim": "aim_schema"}.get(request.param)
    made = KINDS[request.param](tmp_path, request.getfixturevalue(schema) if schema else tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def opened(store: Any) -> Iterator[Opener]:
    """Opens trackers of runs in the repository, and leaves no process behind."""
    with contextlib.ExitStack() as stack:

        def open_one(run_id: str = ID, **arguments: object) -> trackers.Tracker:
            place = directory(store, run_id)
            given = {"run_dir": place, "run_id": run_id, "repository": store.root, **arguments}
            tracker = trackers.open(store.settings, **given)
            stack.callback(tracker.abandon)
            return tracker

        yield open_one


def directory(store: Any, run_id: str = ID) -> Path:
    place = Path(store.root / "runs" / run_id)
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    (place / "metrics.jsonl").touch()
    return place


def begin(tracker: trackers.Tracker, name: str | None = "first", **arguments: object) -> trackers.Tracker:
    tracker.start(**{"name": name, "params": {}, "tags": {}, **arguments})
    return tracker


def kept(store: Any, name: str = "first") -> Kept:
    (found,) = [run for run in store.runs() if run.name == name]
    return found


def logged(store: Any, run_id: str = ID) -> list[tuple[int, float, int]]:
    """The points of train/loss as metrics.jsonl has them."""
    lines = [json.loads(line) for line in (directory(store, run_id) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"], int(line["time"] * 1000)) for line in lines]


def pid(tracker: Any) -> int:
    return int(tracker._session._worker._process.pid)


def untouched(store: Any) -> bool:
    """Whether this is the kind that stores nothing, and nothing is stored."""
    return store.kind == "none" and [path.name for path in store.root.iterdir()] == ["runs"]


def test_a_run_is_stored_with_all_that_is_known_of_it(store: Any, opened: Opener) -> None:
    said: list[str] = []
    tracker = opened(announce=said.append, warn=said.append)
    params = {"model": "cnn", "model.a@b": "x=y", "optimizer.lr": "0.1", "empty": ""}
    data = [Dataset("digits", "train", "a.Digits", 7, "0123456789abcdef" * 4)]
    begin(tracker, params=params, tags={"git.commit": "abc"}, datasets=data, parents=["p1"])
    stores.log(directory(store), range(1, 4))
    tracker.wake()
    assert tracker.close("finished", 60, note="Best 1.") is None
    if untouched(store):
        return
    run = kept(store)
    assert said == [run.id]
    assert run.points == logged(store) and len(run.points) == 3
    assert {"optimizer.lr": "0.1", "empty": ""}.items() <= run.params.items()
    assert {"x=y", "cnn"} <= {*run.params.values()}
    assert run.note == "Started from run p1.\n\nBest 1."
    assert run.ended is not None and run.began <= logged(store)[0][2] <= logged(store)[-1][2] <= run.ended
    assert run.files == {"environment.txt", "loss.png", "metrics.jsonl"}
    page = tracker.page()
    assert page is not None and run.id in page.words
    found = Found(run.id, ID, str(directory(store)))
    for text in (ID, run.id, run.id[:6]):
        assert trackers.find_run(store.settings, repository=store.root, text=text) == found
    assert trackers.find_run(store.settings, repository=store.root, text="ffffffff") is None
    assert not (directory(store) / "tracker.log").exists(), "nothing to say, no file"


def test_a_killed_process_loses_nothing_and_a_resumed_run_has_each_point_once(store: Any, opened: Opener) -> None:
    ids: list[str] = []
    first: Any = begin(opened(announce=ids.append), params={"lr": "0.1"})
    stores.log(directory(store), range(1, 5))
    if store.kind == "none":
        assert first.close("failed", 60) is None and untouched(store)
        return
    wait_for(lambda: first.wake() or first._stored == 16)
    before = kept(store)
    os.kill(pid(first), signal.SIGKILL)
    wait_for(lambda: ended(pid(first)))
    stores.log(directory(store), range(5, 7))
    line = first.close("failed", 60)
    assert line is not None and "has not stored 8 of 24 points (its process ended early" in line
    history.cut_history(directory(store) / "metrics.jsonl", lines=2)
    stores.log(directory(store), range(3, 9))  # 3 and 4 once more, at another time
    second = begin(opened(known_run_id=ids[0], announce=ids.append), "other", params={"lr": "0.2", "new": "1"})
    wait_for(lambda: second.wake() or ids[1:])
    assert kept(store).status == "running" and kept(store).ended is None
    assert second.close("finished", 60) is None
    after = kept(store)
    assert (after.id, after.began, ids) == (before.id, before.began, [before.id] * 2)
    assert after.points == before.points + logged(store)[4:], "the first value of a step is the one that is kept"
    assert after.params == {"lr": "0.1", "new": "1"}, "how the run began"
    assert len(store.runs()) == 1


def test_each_status_is_stored_and_a_resumed_run_goes_on(store: Any, opened: Opener) -> None:
    for status in ("failed", "interrupted", "finished"):
        tracker = begin(opened())
        assert tracker.close(status, 60) is None
        if not untouched(store):
            assert kept(store).status == status and kept(store).ended is not None


def test_a_run_and_its_fork_name_each_other_and_a_persons_note_is_kept(store: Any, opened: Opener) -> None:
    ids: list[str] = []
    parent = begin(opened(announce=ids.append), "parent")
    if store.kind != "none":
        wait_for(lambda: parent.wake() or ids)
    for _ in range(2):  # resumed
        fork = begin(opened("fork0001"), "child", parents=[ID])  # while the parent goes on
        assert fork.close("finished", 60, note="Best 2.") is None
    assert parent.close("finished", 60, note="Best 1.") is None
    if untouched(store):
        return
    one, two = kept(store, "parent"), kept(store, "child")
    assert two.note.startswith("Started from ") and ID in two.note and one.id in two.note
    assert two.note.endswith("\n\nBest 2.")
    start, forked = one.note.split("\n\n")
    assert start == "Best 1." and forked.startswith("Forked as ") and two.id in forked
    store.write_note(one.id, "Mine.")
    assert begin(opened(), "parent").close("finished", 60, note="Best 3.") is None
    assert begin(opened("fork0002"), "second", parents=[ID]).close("finished", 60) is None
    assert kept(store, "parent").note == "Mine."


def test_the_runs_of_a_sweep_share_one_that_has_its_table(store: Any, opened: Opener) -> None:
    sweep = Sweep(id="5weeeeep", name="rates", dir=store.root / "runs")
    for number, status in enumerate(("finished", "failed")):
        tracker = begin(opened(f"job{number}", sweep=sweep, shared=True), f"job {number}")
        stores.log(directory(store, f"job{number}"), range(1, 3))
        assert tracker.close(status, 60) is None, "it waits for nothing"
    closed = time.time() * 1000
    alone = begin(opened("job2", sweep=sweep), "job 2")  # of a process of its own
    assert alone.close("interrupted", 60) is None
    table = store.root / "runs" / "results.csv"
    table.write_text("job,loss\n0,a|b\n")
    given = {"repository": store.root, "sweep": sweep, "table": table}
    unstored, page = trackers.finish_sweep(store.settings, **given, status="failed")
    assert unstored == []
    if untouched(store):
        return
    assert {run.name: (run.status, run.belongs_to, len(run.points)) for run in store.runs()} == {
        "job 0": ("finished", "rates", 2),
        "job 1": ("failed", "rates", 2),
        "job 2": ("interrupted", "rates", 0),
        "rates": ("failed", None, 0),
    }
    ends = [kept(store, name).ended for name in ("job 0", "job 1")]
    assert all(end is not None and end <= closed for end in ends), "when the runs ended, not when that was stored"
    parent = kept(store, "rates")
    assert parent.note == "| job | loss |\n| --- | --- |\n| 0 | a\\|b |" and parent.files == {"results.csv"}
    assert page is not None and parent.id in page.path
    unstored, again = trackers.finish_sweep(store.settings, **given, status="finished")  # printed once more
    assert (unstored, again) == ([], page) and kept(store, "rates").status == "finished"


def picture(path: Path) -> None:
    """Write a PNG of one grey pixel."""
    parts = [
        (b"IHDR", bytes.fromhex("00000001000000010800000000")),
        (b"IDAT", zlib.compress(b"\0\x80")),
        (b"IEND", b""),
    ]
    chunks = [
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in parts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def checkpoint(store: Any, name: str) -> Path:
    path = directory(store) / "checkpoints" / name
    path.mkdir()
    for file in ("model.safetensors", "manifest.json"):
        (path / file).write_text(name)
    return path


def test_checkpoints_and_figures_follow_those_on_the_disk_and_come_back(store: Any, opened: Opener) -> None:
    place, pictures = directory(store), directory(store) / "figures" / "curve"
    (place / "run.json").write_text("{}")
    first, second = checkpoint(store, "e1"), checkpoint(store, "e2")
    picture(pictures / "epoch_0001_step_00000006.png")
    assert begin(opened()).close("interrupted", 60) is None
    if untouched(store):
        return
    of_first = {f"checkpoints/e1/{file.name}" for file in first.iterdir()}
    of_second = {f"checkpoints/e2/{file.name}" for file in second.iterdir()}
    figure = "figures/curve/epoch_0001_step_00000006.png"
    before = kept(store).files
    assert of_first | of_second | {figure, "run.json"} <= before
    shutil.rmtree(first)
    (pictures / "epoch_0001_step_00000006.png").unlink()
    picture(pictures / "epoch_0002_step_00000012.png")
    of_third = {f"checkpoints/e3/{file.name}" for file in checkpoint(store, "e3").iterdir()}
    assert begin(opened()).close("failed", 60) is None  # a finished run would need a real model
    newer = figure.replace("0001_step_00000006", "0002_step_00000012")
    after = kept(store).files
    assert after == before - of_first - {figure} | of_third | {newer}
    found = trackers.find_run(store.settings, repository=store.root, text=ID)
    assert found is not None
    to = store.root / "fetched"
    to.mkdir()
    trackers.fetch_run(store.settings, repository=store.root, found=found, to=to)
    fetched = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert fetched == after - {"environment.txt", "loss.png"}
    assert (to / "checkpoints" / "e3" / "model.safetensors").read_text() == "e3"


def test_a_store_that_comes_back_gets_every_point(store: Any, opened: Opener) -> None:
    if store.kind == "none":
        return
    with store.unreachable():
        warnings: list[str] = []
        tracker = begin(opened(warn=warnings.append))
        stores.log(directory(store), range(1, 4))
        wait_for(lambda: tracker.wake() or warnings)
        assert len(warnings) == 1 and warnings[0].endswith(" Training goes on; metrics.jsonl keeps every point.")
        assert "\n" not in warnings[0] and str(store.place) in warnings[0]
    assert tracker.close("finished", 60) is None
    assert kept(store).points == logged(store) and kept(store).status == "finished"
