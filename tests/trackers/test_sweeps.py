"""The runs of a sweep share one process, which stores what they logged while the next ones train."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.processes import REPOSITORY
from tools.stores import MLFLOW, ended, log, query, wait_for
from tools.warm import Nursery

from savepoint import trackers
from savepoint.system import files
from savepoint.trackers import Sweep
from savepoint.trackers.mirrored import MirroredTracker


@pytest.fixture
def repository(schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(schema, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def sweep(repository: Path) -> Iterator[Sweep]:
    """Nothing of it is left running."""
    one = Sweep(id="5weeeeep", name="lr", dir=repository / "sweeps" / "5weeeeep")
    yield one
    finish(repository, one, timeout_seconds=0)


def job(repository: Path, sweep: Sweep, number: int, *, announced: list[str] | None = None) -> MirroredTracker:
    """Start a run of the sweep, which logs two points."""
    directory = sweep.dir / str(number)
    directory.mkdir(parents=True)
    heard = [] if announced is None else announced
    run = {"run_dir": directory, "run_id": f"job{number}", "repository": repository, "announce": heard.append}
    tracker = trackers.open(MLFLOW, sweep=sweep, shared=True, warn=heard.append, **run)
    (directory / "metrics.jsonl").touch()
    tracker.start(name=f"job {number}", params={"seed": str(number)}, tags={})
    log(directory, range(1, 3))
    return tracker


def finish(repository: Path, sweep: Sweep, **how: object) -> tuple[list[str], trackers.Page | None]:
    table = repository / "results.csv"
    table.write_text("job,loss\n0,a|b\n")
    given = {"sweep": sweep, "table": table, "status": "finished", **how}
    return trackers.finish_sweep(MLFLOW, repository=repository, **given)


def pid(tracker: MirroredTracker) -> int:
    return tracker._session._worker._process.pid


def points(repository: Path) -> list[tuple]:
    return query(
        repository, "select name, count(*) from metrics join runs using (run_uuid) group by name order by name"
    )


def statuses(repository: Path) -> dict[str, str]:
    return dict(query(repository, "select name, status from runs"))


@pytest.mark.usefixtures("nursery")
def test_one_process_serves_all_runs_and_is_gone_with_the_sweep(repository: Path, sweep: Sweep) -> None:
    announced: list[str] = []
    jobs = []
    for number in range(3):
        jobs.append(job(repository, sweep, number, announced=announced))
        assert jobs[-1].close("failed" if number == 1 else "finished", 60) is None, "it waits for nothing"
        assert jobs[-1].page() is None, "the sweep has one"
    (process,) = {pid(one) for one in jobs}
    unstored, page = finish(repository, sweep, status="failed")
    assert unstored == [] and page is not None and ended(process)
    assert points(repository) == [(f"job {number}", 8) for number in range(3)]
    assert statuses(repository) == {"job 0": "FINISHED", "job 1": "FAILED", "job 2": "FINISHED", "lr": "FAILED"}
    assert len(announced) == 3, "each run knows its id, also if it has ended by then"
    assert len(query(repository, "select * from tags where key = 'mlflow.parentRunId'")) == 3
    assert len([*repository.glob("mlartifacts/**/loss.png")]) == 3
    (note,) = query(repository, "select value from tags where key = 'mlflow.note.content'")
    assert note == ("| job | loss |\n| --- | --- |\n| 0 | a\\|b |",), "of the sweep: its table"
    assert not [*repository.glob("sweeps/**/tracker.log")], "nothing to say, no file"


@pytest.mark.usefixtures("nursery")
def test_a_run_that_is_stored_can_be_resumed_while_the_sweep_goes_on(repository: Path, sweep: Sweep) -> None:
    first = job(repository, sweep, 0)
    first.close("finished", 60)
    second = job(repository, sweep, 1)
    wait_for(lambda: second.wake() or first.stored_all)
    lock = files.Lock(sweep.dir / "0" / ".tracker.lock")
    wait_for(lock.acquire, seconds=5)
    lock.release()


@pytest.mark.usefixtures("nursery")
def test_a_refused_run_leaves_no_trace_and_the_others_go_on(repository: Path, sweep: Sweep) -> None:
    job(repository, sweep, 0).close("finished", 60)
    (sweep.dir / "refused").mkdir()
    refused = trackers.open(
        MLFLOW, run_dir=sweep.dir / "refused", run_id="refused", repository=repository, sweep=sweep, shared=True
    )
    refused.abandon()
    job(repository, sweep, 1).close("finished", 60)
    assert finish(repository, sweep)[0] == []
    assert statuses(repository) == {"job 0": "FINISHED", "job 1": "FINISHED", "lr": "FINISHED"}


@pytest.mark.usefixtures("nursery")
def test_a_process_that_was_killed_has_a_successor_and_is_told_of_at_the_end(repository: Path, sweep: Sweep) -> None:
    said: list[str] = []
    first = job(repository, sweep, 0, announced=said)
    os.kill(pid(first), signal.SIGKILL)
    wait_for(lambda: first.wake() or len(said) == 1)
    assert "its process ended early, see" in said[0] and str(sweep.dir / "tracker.log") in said[0]
    first.close("finished", 60)
    job(repository, sweep, 1).close("finished", 60)
    unstored, _ = finish(repository, sweep)
    assert len(unstored) == 1 and unstored[0].startswith("MLflow has not stored 8 of 8 points (its process ended early")
    assert points(repository) == [("job 1", 8)]
    assert statuses(repository) == {"job 1": "FINISHED", "lr": "FINISHED"}


def test_a_dead_server_is_told_of_once_and_each_run_at_the_end(
    repository: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, nursery: Nursery
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    said: list[str] = []
    for number in range(3):
        tracker = job(repository, sweep, number, announced=said)
        if number == 0:
            wait_for(lambda: tracker.wake() or said)  # noqa: B023 - at once
        assert tracker.close("finished", 60) is None
    unstored, page = finish(repository, sweep)
    assert len(said) == 1 and f"127.0.0.1:{port} does not answer" in said[0]
    assert [line.partition("(")[0] for line in unstored[:3]] == ["MLflow has not stored 8 of 8 points "] * 3
    table = f"MLflow has not stored the sweep's table (http://127.0.0.1:{port} does not answer). It is complete in"
    assert unstored[3].startswith(table) and page is None and len(unstored) == 4


@pytest.mark.usefixtures("nursery")
def test_what_could_not_be_stored_is_tried_again_while_the_next_ones_train(repository: Path, sweep: Sweep) -> None:
    (repository / "mlflow.db").rename(repository / "aside.db")
    (repository / "mlflow.db").mkdir()
    said: list[str] = []
    first = job(repository, sweep, 0, announced=said)
    wait_for(lambda: first.wake() or said)
    first.close("finished", 60)
    (repository / "mlflow.db").rmdir()
    (repository / "aside.db").rename(repository / "mlflow.db")
    second = job(repository, sweep, 1)
    wait_for(lambda: second.wake() or points(repository) == [("job 0", 8), ("job 1", 8)], seconds=40)
    second.close("finished", 60)
    assert finish(repository, sweep)[0] == []
    assert statuses(repository) == {"job 0": "FINISHED", "job 1": "FINISHED", "lr": "FINISHED"}


KILLED = """
import sys, time
sys.path.append(sys.argv[2])
from pathlib import Path
import test_sweeps as here
from tools.warm import stand_in
if sys.argv[3]:
    stand_in(sys.argv[3]).start()
root = Path(sys.argv[1])
sweep = here.Sweep(id="5weeeeep", name="lr", dir=root / "sweeps" / "5weeeeep")
for number in range(3):
    tracker = here.job(root, sweep, number)
    if number < 2:
        tracker.close("finished", 60)
print(here.pid(tracker), flush=True)
time.sleep(60)
"""


def test_what_a_killed_sweep_logged_is_stored(repository: Path, nursery: Nursery) -> None:
    command = [sys.executable, "-c", KILLED, str(repository), str(Path(__file__).parent), str(nursery.start())]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY / 'tests'}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        wait_for(lambda: ended(worker), seconds=40)
    assert points(repository) == [(f"job {number}", 8) for number in range(3)]
    assert statuses(repository) == {"job 0": "FINISHED", "job 1": "FINISHED", "job 2": "KILLED", "lr": "KILLED"}
