"""Trackers, against real MLflow stores and real worker processes. What the store holds is read with plain SQL."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools import stores
from tools.stores import MLFLOW, ended, query, wait_for
from tools.warm import POSSIBLE, Nursery

from savepoint import trackers
from savepoint.config import TrackerSettings as Settings
from savepoint.errors import ConfigError, UserError
from savepoint.runs import history
from savepoint.system import files
from savepoint.trackers import Dataset, Found, Page, Sweep
from savepoint.trackers.mirrored import MirroredTracker

ID = "ab12cd34"
VIEW = "?workflowType=machine_learning"
SOURCE = Path(trackers.__file__).parents[2]


@pytest.fixture(autouse=True)
def no_store_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def repository(schema: Path, tmp_path: Path) -> Path:
    shutil.copy(schema, tmp_path / "mlflow.db")
    (tmp_path / "runs" / ID / "checkpoints").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def announced() -> list[str]:
    """MLflow's run ids, in the order in which they become known."""
    return []


@pytest.fixture
def opened(repository: Path, announced: list[str]) -> Iterator[Callable[..., MirroredTracker]]:
    """Opens trackers of the one run in `repository`, and leaves no process behind."""
    with contextlib.ExitStack() as stack:

        def open_one(**arguments: object) -> MirroredTracker:
            run = {"run_dir": repository / "runs" / ID, "run_id": ID, "repository": repository}
            given = {**run, "announce": announced.append, **arguments}
            tracker = trackers.open(given.pop("settings", MLFLOW), **given)
            stack.callback(tracker.abandon)
            return tracker

        yield open_one


def ready(tracker: MirroredTracker, announced: list[str]) -> str:
    """Wait until the tracker has opened its run, and return MLflow's id of the run."""
    wait_for(lambda: tracker.wake() or announced)
    return announced[-1]


def losses(repository: Path) -> list[tuple]:
    return query(repository, "select step, value from metrics where key = 'train/loss' order by step")


def artifacts(repository: Path) -> set[str]:
    """What is stored with the one run that there is."""
    roots = repository.glob("mlartifacts/*/artifacts")
    return {str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.is_file()}


def log(repository: Path, steps: range) -> None:
    stores.log(repository / "runs" / ID, steps)


def expected(steps: range) -> list[tuple]:
    return [(step, 1 / step) for step in steps]


def begin(tracker: trackers.Tracker, **arguments: object) -> None:
    tracker.start(**{"name": None, "params": {}, "tags": {}, **arguments})


def worker_pid(tracker: MirroredTracker) -> int:
    return tracker._session._worker._process.pid


def save_checkpoint(repository: Path, name: str) -> Path:
    path = repository / "runs" / ID / "checkpoints" / name
    path.mkdir()
    for file in ("model.safetensors", "manifest.json"):
        (path / file).write_text(name)
    return path


@pytest.fixture(scope="module", autouse=True)
def orphan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, float]]:
    """A worker at a server that accepts and never answers, whose parent was killed, and when.

    It is started with the first test and looked at by the last one, so that nobody waits.
    """
    root = tmp_path_factory.mktemp("orphan")
    (root / "runs" / ID).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        worker, child = killed_parent(root)
        os.kill(child, signal.SIGKILL)
        yield worker, time.monotonic()


def test_run_arrives_with_points_params_tags_documents_and_plot(repository: Path, opened, announced) -> None:
    run_dir = repository / "runs" / ID
    (run_dir / "config.yaml").write_text("seed: 1\n")
    params = {"optimizer.lr": "0.1", "model.a@b=c": "1", "model.a=b@c": "2", "long": "x" * 7000, "empty": ""}
    documents = [run_dir / "config.yaml", run_dir / "changes.patch"]
    save_checkpoint(repository, "e1")
    data = [Dataset("digits", split, "a.Digits", 7, "0123456789abcdef" * 4) for split in ("train", "val")]
    tracker = opened(upload=False)  # so that the checkpoint stays here
    given = {"params": params, "tags": {"git.commit": "abc"}, "documents": documents, "datasets": data}
    begin(tracker, name="first", parents=["p1", "p2"], **given)
    assert tracker.page() is None, "not known yet"
    run_id = ready(tracker, announced)
    store = f"sqlite:///{(repository / 'mlflow.db').as_posix()}"
    assert tracker.page() == Page(store, None, f"#/experiments/1/runs/{run_id}{VIEW}")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker_pid(tracker), number)  # as Ctrl-C and schedulers do, to the whole process group
    log(repository, range(1, 4))
    lines = history.History(run_dir / "metrics.jsonl")
    lines.append(step=4, epoch=4, values={"odd=key": 1.0, "up": float("inf"), "not": float("nan")})
    lines.close()
    tracker.wake()
    assert tracker.close("finished", 60, note="Best **val/loss 1**.") is None

    assert query(repository, "select run_uuid, name, status from runs") == [(run_id, "first", "FINISHED")]
    assert losses(repository) == expected(range(1, 4))
    odd = query(repository, "select key, value, is_nan from metrics where step = 4 order by key")
    assert odd == [("epoch", 4, 0), ("not", 0, 1), ("odd_key", 1, 0), ("up", 1.7976931348623157e308, 0)]
    stored = dict(query(repository, "select key, value from params"))
    assert stored.keys() == {"optimizer.lr", "model.a_b_c", "model.a_b_c_2", "long", "empty"}
    assert stored["long"].endswith("x … [cut: 7000 characters]") and len(stored["long"]) == 6000
    tags = dict(query(repository, "select key, value from tags"))
    ours = {
        "savepoint.run_id": ID,
        "savepoint.run_dir": str(run_dir),
        "savepoint.parents": "p1,p2",
        "mlflow.note.content": "Started from run p1, p2.\n\nBest **val/loss 1**.",
        "git.commit": "abc",
    }
    assert tags.items() >= ours.items()
    kept = query(repository, "select name, digest, dataset_profile from datasets")
    profile = json.dumps({"num_rows": 7, "sha256": data[0].digest})
    assert kept == [("digits", data[0].digest[:12], profile)], "both splits have the same digest here"
    contexts = query(repository, "select value from input_tags where name = 'mlflow.data.context'")
    assert contexts == [("training",)]
    assert artifacts(repository) == {"config.yaml", "environment.txt", "metrics.jsonl", "loss.png"}
    [picture] = repository.rglob("loss.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (run_dir / "tracker.log").exists()  # nothing to say, no file


@pytest.mark.usefixtures("nursery")
def test_a_run_and_its_fork_link_each_other_and_a_persons_note_is_kept(repository: Path, opened, announced) -> None:
    def note(run_id: str) -> str:
        found = query(repository, "select key, value from tags where run_uuid = ?", run_id)
        return str(dict(found)["mlflow.note.content"])

    first = opened()
    begin(first, name="parent")
    assert first.close("finished", 60, note="Best 1.") is None
    (parent,) = announced
    (repository / "runs" / "fork").mkdir()
    for _ in range(2):  # resumed
        fork = opened(run_dir=repository / "runs" / "fork", run_id="fork0001")
        begin(fork, name="child", parents=[ID])
        assert fork.close("finished", 60, note="Best 2.") is None
    child = announced[-1]
    assert note(parent) == f"Best 1.\n\nForked as [child](#/experiments/1/runs/{child}{VIEW})."
    assert note(child) == f"Started from run [{ID}](#/experiments/1/runs/{parent}{VIEW}).\n\nBest 2."
    mine = "update tags set value = 'Mine.' where key = 'mlflow.note.content' and run_uuid = ?"
    query(repository, mine, parent)
    again = opened()
    begin(again, name="parent")
    assert again.close("finished", 60, note="Best 3.") is None
    assert note(parent) == "Mine."
    assert ("Best 3.",) in query(repository, "select value from tags where run_uuid = ?", parent), "it is not lost"


def test_training_process_imports_neither_mlflow_nor_matplotlib(repository: Path) -> None:
    code = """if True:
        import sys, threading; from pathlib import Path
        from savepoint import trackers
        from savepoint.config import TrackerSettings
        run_dir = Path(sys.argv[1])
        arguments = dict(run_dir=run_dir, run_id="ab12cd34", repository=run_dir.parents[1])
        tracker = trackers.open(TrackerSettings(kind="mlflow"), **arguments)
        tracker.start(name=None, params={}, tags={})
        tracker.wake()
        tracker.close("finished", 0)
        assert threading.active_count() == 1
        sys.exit(any(name.split(".")[0] in ("mlflow", "matplotlib", "torch", "hydra") for name in sys.modules))
    """
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code, str(repository / "runs" / ID)], env=environment, check=True)


@pytest.mark.usefixtures("nursery")
def test_continued_run_has_no_point_twice_and_regains_lost_ones(repository: Path, opened, announced) -> None:
    log(repository, range(1, 7))
    first = opened()
    begin(first, name="kept", params={"lr": "0.1"})
    assert first.close("interrupted", 60) is None
    query(repository, "delete from metrics where step = 2 or key = 'val/loss'")  # lost: a server that was down
    history.cut_history(repository / "runs" / ID / "metrics.jsonl", lines=4)
    log(repository, range(5, 9))  # 5 and 6 once more, at another time

    [first_id] = announced
    announced.clear()
    second = opened(known_run_id=first_id)
    begin(second, params={"lr": "0.2", "new": "1"})
    assert ready(second, announced) == first_id
    assert query(repository, "select status from runs") == [("RUNNING",)]
    assert second.close("finished", 60) is None
    assert losses(repository) == expected(range(1, 9))
    assert query(repository, "select count(*), count(distinct step) from metrics where key = 'val/loss'") == [(8, 8)]
    assert query(repository, "select name, status from runs") == [("kept", "FINISHED")]
    assert query(repository, "select key, value from params order by key") == [("lr", "0.1"), ("new", "1")]


@pytest.mark.usefixtures("nursery")
def test_what_the_machine_did_arrives_with_its_steps_and_once(repository: Path, opened, announced) -> None:
    run_dir = repository / "runs" / ID
    log(repository, range(1, 3))
    for steps, status in (((1, 5, 9), "interrupted"), ((5, 7), "finished")):
        history.cut_usage(run_dir / "system.jsonl", step=4)
        tracker = opened(known_run_id=announced[-1] if announced else None)
        begin(tracker)
        for step in steps:
            history.append_usage(run_dir / "system.jsonl", step=step, values={"system/cpu_percent": float(step)})
        assert tracker.close(status, 60) is None
    stored = query(repository, "select step, value from metrics where key = 'system/cpu_percent' order by step")
    assert stored == [(step, step) for step in (1, 5, 7, 9)]
    assert len(losses(repository)) == 2
    assert "system.jsonl" in {Path(each).name for each in artifacts(repository)}


def other_run(repository: Path, tracker_run_id: str) -> None:
    """A run that is in the store already, of another run directory."""
    columns = "run_uuid, status, lifecycle_stage, experiment_id, start_time, artifact_uri, user_id"
    values = (tracker_run_id, "FINISHED", "active", 0, 1, (repository / "mlartifacts" / "other").as_uri(), "me")
    query(repository, f"insert into runs ({columns}) values (?, ?, ?, ?, ?, ?, ?)", *values)
    query(repository, "insert into tags (key, value, run_uuid) values ('savepoint.run_id', 'other', ?)", tracker_run_id)


@pytest.mark.usefixtures("nursery")
def test_strangers_tracker_run_is_not_written_to(repository: Path, opened, announced) -> None:
    other_run(repository, "f" * 32)
    log(repository, range(1, 3))
    tracker = opened(known_run_id="f" * 32)
    begin(tracker)
    assert tracker.close("failed", 60) is None
    assert query(repository, "select run_uuid, status from runs where experiment_id = 0") == [("f" * 32, "FINISHED")]
    assert query(repository, "select distinct run_uuid from metrics") == [(announced[0],)]
    assert query(repository, "select status from runs where run_uuid = ?", announced[0]) == [("FAILED",)]


def killed_parent(repository: Path, *, worker: str = "starts", nursery: Nursery | None = None) -> tuple[int, int]:
    """Start a training process and kill it right after its fourth line.

    worker: what the worker does by then. It "starts"; it "runs" and has opened the run; or it has opened the run and is
    then "stopped", with every line unread. nursery: where the worker comes from, if not from an interpreter of its own.

    Returns: the process ids of its worker, and of a forked child that outlives it and holds all its pipes open.
    """
    code = """if True:
        import os, sys, time; sys.path.append(sys.argv[2]); from pathlib import Path
        import test_trackers as here
        from savepoint import trackers
        if sys.argv[4]:
            from tools.warm import stand_in
            stand_in(sys.argv[4]).start()
        root = Path(sys.argv[1])
        run, ids = dict(run_dir=root / "runs" / here.ID, run_id=here.ID, repository=root), []
        tracker = trackers.open(here.MLFLOW, **run, announce=ids.append)
        (root / "runs" / here.ID / "metrics.jsonl").touch()
        here.begin(tracker)
        if sys.argv[3] != "starts":
            here.ready(tracker, ids)
        if sys.argv[3] == "stopped":
            os.kill(here.worker_pid(tracker), here.signal.SIGSTOP)
        here.log(root, range(1, 5))
        tracker.wake()
        child = os.fork()
        if child:
            print(here.worker_pid(tracker), child, flush=True)
        time.sleep(60)
    """
    socket_path = str(nursery.start()) if nursery and POSSIBLE else ""
    command = [sys.executable, "-c", code, str(repository), str(Path(__file__).parent), worker, socket_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1])])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        worker_id, child = map(int, process.stdout.readline().split())
        process.kill()
    return worker_id, child


def test_what_a_killed_run_logged_is_stored(repository: Path, the_nursery: Nursery) -> None:
    worker, child = killed_parent(repository, worker="runs", nursery=the_nursery)
    wait_for(lambda: ended(worker))
    os.kill(child, signal.SIGKILL)
    assert losses(repository) == expected(range(1, 5))
    assert query(repository, "select status from runs") == [("KILLED",)]


def test_run_resumed_while_the_killed_ones_points_are_on_their_way_has_each_once(
    repository: Path, opened, announced, nursery: Nursery
) -> None:
    worker, child = killed_parent(repository, worker="stopped", nursery=nursery)
    os.kill(child, signal.SIGKILL)
    history.cut_history(repository / "runs" / ID / "metrics.jsonl", lines=2)
    log(repository, range(3, 8))
    tracker = opened()  # run.json never learned the tracker's id
    begin(tracker)
    for _ in range(200):
        tracker.wake()
        time.sleep(0.02)
    assert announced == []  # it waits for its turn
    os.kill(worker, signal.SIGCONT)
    assert tracker.close("finished", 60) is None
    assert ended(worker)
    assert losses(repository) == expected(range(1, 8))
    assert query(repository, "select status from runs") == [("FINISHED",)]


@pytest.mark.usefixtures("nursery")
def test_worker_that_comes_late_leaves_a_continued_run_alone(repository: Path, opened) -> None:
    tracker = opened()
    (repository / "runs" / ID / ".tracker.turn").write_text(repr(time.time() + 1))
    begin(tracker)
    assert tracker.close("finished", 60) is None, "the younger one has stored everything"
    assert query(repository, "select * from runs") == []


def test_dead_server_delays_nothing_and_says_what_is_not_stored(repository: Path, opened, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    warnings: list[str] = []
    tracker = opened(warn=warnings.append)
    begin(tracker)
    log(repository, range(1, 4))
    longest = 0.0
    deadline = time.monotonic() + 60
    while not warnings:
        before = time.perf_counter()
        tracker.wake()
        longest = max(longest, time.perf_counter() - before)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert longest < 2  # not one of them waited for the worker, which needs seconds to give up
    line = tracker.close("finished", 60)
    why = f"cannot connect: http://127.0.0.1:{port} does not answer"
    kept = "They are kept in metrics.jsonl, and resuming the run sends them."
    assert line == f"MLflow has not stored 12 of 12 points ({why}). {kept}"
    assert warnings == [f"MLflow: {why}. Training goes on; metrics.jsonl keeps every point."]
    assert "secret" not in (repository / "runs" / ID / "tracker.log").read_text()


NEVER = {
    "a directory": (Path.mkdir, "is a directory, not a database"),
    "no database": (lambda path: path.write_text("no database " * 99), "cannot be used as a database (file is not a "),
}


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.usefixtures("nursery")
def test_store_that_can_never_work_is_reported_and_not_waited_for(kind: str, repository: Path, opened) -> None:
    spoil, words = NEVER[kind]
    store = repository / "mlflow.db"
    store.unlink()
    spoil(store)
    warnings: list[str] = []
    tracker = opened(warn=warnings.append)
    begin(tracker)
    log(repository, range(1, 4))
    line = tracker.close("finished", 60)
    assert line is not None and line.startswith(
        f"MLflow has not stored 12 of 12 points (cannot connect: {store} {words}"
    )
    mend = "Move it away, or set tracker.uri or MLFLOW_TRACKING_URI to another store"
    assert line.endswith(f". {mend}). They are kept in metrics.jsonl, and resuming the run sends them.")


@pytest.mark.usefixtures("nursery")
def test_store_that_is_mended_while_the_run_trains_gets_every_point(repository: Path, schema: Path, opened) -> None:
    store = repository / "mlflow.db"
    store.unlink()
    store.mkdir()
    warnings: list[str] = []
    tracker = opened(warn=warnings.append)
    begin(tracker)
    log(repository, range(1, 4))
    wait_for(lambda: tracker.wake() or warnings)
    mend = "Move it away, or set tracker.uri or MLFLOW_TRACKING_URI to another store"
    why = f"cannot connect: {store} is a directory, not a database. {mend}"
    assert warnings == [f"MLflow: {why}. Training goes on; metrics.jsonl keeps every point."]
    store.rmdir()
    shutil.copy(schema, store)
    assert tracker.close("finished", 60) is None
    assert losses(repository) == expected(range(1, 4))


@pytest.mark.usefixtures("nursery")
def test_end_of_a_run_waits_for_a_locked_database(repository: Path, opened) -> None:
    path, said = repository / "mlflow.db", repository / "runs" / ID / "tracker.log"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")

        def unlock() -> None:
            wait_for(lambda: "database is locked" in said.read_text())
            other.execute("ROLLBACK")

        tracker = opened()
        begin(tracker)
        log(repository, range(1, 4))
        threading.Thread(target=unlock, daemon=True).start()
        assert tracker.close("finished", 60) is None
    assert losses(repository) == expected(range(1, 4))


def test_hanging_server_holds_up_the_end_no_longer_than_its_timeout(repository: Path, opened, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = opened()
        begin(tracker)
        log(repository, range(1, 4))
        before = time.monotonic()
        line = tracker.close("finished", 1.0)
        assert time.monotonic() - before < 20  # a request's own time limit is minutes
        assert line is not None and line.startswith("MLflow has not stored 12 of 12 points (not done within 1 s).")


@pytest.mark.usefixtures("nursery")
def test_worker_that_stands_still_never_blocks_training(repository: Path, opened) -> None:
    tracker = opened()
    os.kill(worker_pid(tracker), signal.SIGSTOP)
    begin(tracker, params={str(number): "x" * 5000 for number in range(60)})  # more than a pipe holds
    log(repository, range(1, 4))
    for _ in range(5000):
        tracker.wake()
    os.kill(worker_pid(tracker), signal.SIGCONT)
    assert tracker.close("finished", 60) is None
    assert losses(repository) == expected(range(1, 4))


@pytest.mark.usefixtures("nursery")
def test_worker_that_was_killed_is_reported_in_one_line(repository: Path, opened) -> None:
    warnings: list[str] = []
    tracker = opened(warn=warnings.append)
    begin(tracker)
    log(repository, range(1, 4))
    os.kill(worker_pid(tracker), signal.SIGKILL)
    wait_for(lambda: ended(worker_pid(tracker)))
    wait_for(lambda: tracker.wake() or warnings)  # the warm process tells a moment later
    tracker.wake()
    assert len(warnings) == 1
    line = tracker.close("finished", 60)
    assert line is not None and line.startswith("MLflow has not stored 12 of 12 points (its process ended early")


@pytest.mark.usefixtures("nursery")
def test_stored_checkpoints_follow_those_on_the_disk(repository: Path, opened, announced) -> None:
    def stored() -> set[str]:
        return {path.split("/")[1] for path in artifacts(repository) if path.endswith("/manifest.json")}

    for name in ("e1", "e2", ".damaged-e0"):
        save_checkpoint(repository, name)
    (save_checkpoint(repository, "unfinished") / "manifest.json").unlink()
    tracker = opened()
    begin(tracker)
    ready(tracker, announced)
    wait_for(lambda: stored() == {"e1", "e2"})
    shutil.rmtree(save_checkpoint(repository, "e3").with_name("e1"))
    tracker.wake()
    assert tracker.close("interrupted", 60) is None
    assert stored() == {"e2", "e3"} and not any("e1" in path or "unfinished" in path for path in artifacts(repository))

    [cut_short] = repository.glob("mlartifacts/*/artifacts/checkpoints/e3")
    (cut_short / "manifest.json").unlink()
    (cut_short / "model.safetensors").write_text("half")
    shutil.rmtree(repository / "runs" / ID / "checkpoints" / "e2")  # pruned while nobody looked
    tracker = opened()
    begin(tracker)
    assert tracker.close("failed", 60) is None
    assert stored() == {"e3"} and not any("e2" in path for path in artifacts(repository))
    assert (cut_short / "model.safetensors").read_text() == "e3"


@pytest.mark.usefixtures("nursery")
def test_artifact_storage_that_fails_keeps_no_point_from_being_stored(repository: Path, opened) -> None:
    experiment = "insert into experiments (name, artifact_location, lifecycle_stage) values (?, ?, ?)"
    query(repository, experiment, "savepoint", "nowhere://bucket", "active")
    save_checkpoint(repository, "e1")
    tracker = opened()
    begin(tracker)
    log(repository, range(1, 4))
    line = tracker.close("interrupted", 60)
    assert losses(repository) == expected(range(1, 4))
    assert query(repository, "select status from runs") == [("KILLED",)]
    why = "cannot store documents, store checkpoints, draw: Could not find a registered artifact repository for: nowhere://bucket/"
    assert line is not None and line.startswith(f"MLflow has all 12 points, but not all of the rest ({why}")


@pytest.fixture
def half_made(tmp_path: Path) -> Path:
    """A repository whose first run was killed while it made the store."""
    (tmp_path / "killed").mkdir()
    tracker = trackers.open(MLFLOW, run_dir=tmp_path / "killed", run_id="killed", repository=tmp_path)
    names = ("mlflow.db", "mlflow.db-new")
    wait_for(lambda: any((tmp_path / name).exists() and (tmp_path / name).stat().st_size for name in names))
    tracker.abandon()
    return tmp_path


def test_four_processes_make_one_sound_store_and_one_sweep_parent(half_made: Path, nursery: Nursery) -> None:
    tmp_path = half_made
    sweep = Sweep(id="5weeeeep", name="lr", dir=tmp_path / "sweep")
    with contextlib.ExitStack() as stack:
        jobs = []
        for job in range(4):
            (sweep.dir / str(job)).mkdir(parents=True)
            arguments = {"run_dir": sweep.dir / str(job), "run_id": f"job{job}", "repository": tmp_path}
            jobs.append(trackers.open(MLFLOW, sweep=sweep, **arguments))
            stack.callback(jobs[-1].abandon)
        wait_for((tmp_path / "mlflow.db").exists)
        lock = files.Lock(tmp_path / ".mlflow.lock")
        wait_for(lock.acquire)
        for tracker in jobs:
            begin(tracker)
        time.sleep(4)
        assert query(tmp_path, "select * from runs") == []  # who looks for the parent, and makes it, holds the lock
        lock.release()
        assert [tracker.close("finished", 120) for tracker in jobs] == [None] * 4
    table = tmp_path / "results.csv"
    table.write_text("job,loss\n")
    unstored, page = trackers.finish_sweep(MLFLOW, repository=tmp_path, sweep=sweep, table=table, status="failed")

    parents = "select run_uuid, status from runs join tags using (run_uuid) where key = 'savepoint.sweep_id'"
    [(parent, status)] = query(tmp_path, parents)
    assert status == "FAILED"
    assert unstored == [] and page is not None and page.path == f"#/experiments/1/runs/{parent}{VIEW}"
    assert query(tmp_path, "select value from tags where key = 'mlflow.parentRunId'") == [(parent,)] * 4
    assert query(tmp_path, "select count(*) from runs") == [(5,)]
    assert query(tmp_path, "select count(*) from experiments where name = 'savepoint'") == [(1,)]
    assert [path.parts[-3:] for path in tmp_path.rglob("results.csv")][1:] == [(parent, "artifacts", "results.csv")]


def test_start_that_is_refused_leaves_nothing(repository: Path, opened) -> None:
    tracker = opened()
    if (maps := Path(f"/proc/{worker_pid(tracker)}/maps")).exists():
        wait_for(lambda: "_backend_agg" in maps.read_text())  # matplotlib, the last thing that a worker makes ready
    else:
        time.sleep(5)
    tracker.abandon()
    assert query(repository, "select * from runs") == []
    assert [path.name for path in (repository / "runs" / ID).iterdir()] == ["checkpoints"]


@pytest.mark.usefixtures("nursery")
def test_run_is_found_by_the_beginning_of_the_trackers_id(repository: Path) -> None:
    other_run(repository, "abcdef" + "0" * 26)

    def find(text: str, where: Path = repository) -> Found | None:
        return trackers.find_run(MLFLOW, repository=where, text=text, timeout_seconds=180)

    assert find("abcdef") == Found("abcdef" + "0" * 26, "other", None)
    assert (find("abcde"), find("abcdef%"), find("abcdef", repository / "elsewhere")) == (None, None, None)
    other_run(repository, "abcdef" + "1" * 26)
    with pytest.raises(UserError, match=r"several of MLflow's runs begin with abcdef: abcdef\d+, abcdef\d+\. Give"):
        find("abcdef")


@pytest.mark.parametrize("uri", ["file:./kept", "kept"])
def test_a_plain_directory_is_a_store_where_mlflow_allows_it(
    repository: Path, opened, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """As on many clusters. A resumed run goes on in the same run, and each point is there once."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = Settings(kind="mlflow", experiment="mine", uri=uri)
    for steps in (range(1, 4), range(4, 6)):
        tracker = opened(settings=settings)
        log(repository, steps)
        begin(tracker)
        assert tracker.close("finished", 60) is None
    (stored,) = (repository / "kept").glob("[!.]*/*/metrics/train/loss")
    points = [line.split() for line in stored.read_text().splitlines()]
    assert [(int(step), float(value)) for _, value, step in points] == expected(range(1, 6))
    found = trackers.find_run(settings, repository=repository, text=ID)
    assert found is not None and found.run_id == ID
    assert trackers.find_page(settings, repository=repository).store == (repository / "kept").as_uri()


@pytest.mark.long
def test_a_plain_directory_moves_into_a_database_as_its_refusal_says(
    repository: Path, opened, announced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log(repository, range(1, 4))
    tracker = opened(settings=Settings(kind="mlflow", uri="kept"))
    begin(tracker)
    assert tracker.close("interrupted", 60) is None
    (repository / "mlflow.db").unlink()
    target = f"sqlite:///{(repository / 'mlflow.db').as_posix()}"
    command = [sys.executable, "-P", "-m", "mlflow", "migrate-filestore", "--source", "kept", "--target", target]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(ConfigError, match=r"`mlflow migrate-filestore` brings what is there\.$"):
        opened(settings=Settings(kind="mlflow", uri="kept"))
    log(repository, range(4, 6))
    tracker = opened(known_run_id=announced[0])
    begin(tracker)
    assert tracker.close("finished", 60) is None
    assert losses(repository) == expected(range(1, 6))
    assert query(repository, "select run_uuid, status from runs") == [(announced[0], "FINISHED")]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (
            "file:///tmp/mlruns",
            "MLflow keeps runs in a plain directory only where MLFLOW_ALLOW_FILE_STORE=true is set.",
        ),
        ("mlruns", "Set it, or use sqlite:///<path>.db, into which `mlflow migrate-filestore` brings what is"),
        ("https://me:secret@host", r"tracker.uri=https://me:\*\*\*@host: a config holds no password."),
        ("sqlite://", "a database in memory is gone with its process."),
        ("http://[::1", "this is not a valid address"),
    ],
)
def test_address_that_cannot_work_is_refused_in_one_line(uri: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        trackers.open(Settings(kind="mlflow", uri=uri), run_dir=tmp_path, run_id=ID, repository=tmp_path)
    assert "\n" not in str(refusal.value) and "secret" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_is_a_tracker_too(tmp_path: Path) -> None:
    settings = Settings(kind="none")
    tracker = trackers.open(settings, run_dir=tmp_path, run_id=ID, repository=tmp_path)
    begin(tracker)
    tracker.wake()
    tracker.abandon()
    assert tracker.close("finished", 60) is None
    sweep = Sweep(id="s", name="s", dir=tmp_path)
    table = tmp_path / "results.csv"
    ended = trackers.finish_sweep(settings, repository=tmp_path, sweep=sweep, table=table, status="finished")
    assert ended == ([], None)
    assert trackers.find_run(settings, repository=tmp_path, text="abcdef") is None
    assert list(tmp_path.iterdir()) == []


def test_worker_outlives_a_killed_parent_by_seconds_only(orphan: tuple[int, float]) -> None:
    worker, killed = orphan
    wait_for(lambda: ended(worker), seconds=killed + 25 - time.monotonic())
