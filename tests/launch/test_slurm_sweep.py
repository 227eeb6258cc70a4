"""The jobs of a sweep as jobs of submitit's: on a real SLURM, and by its local executor."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import cluster, pages
from tools.processes import REPOSITORY
from tools.stores import wait_for
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed"),
]
SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=3", "data.batch_size=32")
CONFIG = (*SMALL, "trainer.max_epochs=300", "seed=1,2,3,4")


@pytest.fixture(scope="module")
def whole(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    ended = the_workshop.run("train.py", "-m", *CONFIG, f"hydra.sweep.dir={directory}")
    assert ended.status == 0, ended.output
    return directory


@pytest.fixture(scope="module")
def slurm() -> Iterator[cluster.Cluster]:
    if not cluster.POSSIBLE:
        pytest.skip("no SLURM here: as root, apt-get install slurm-wlm munge")
    with cluster.started() as one:
        yield one


def start(root: Path, script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(root / script), *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=root, env=kept, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def training(root: Path) -> list[Path]:
    """The directories of the jobs that have logged something."""
    return [path.parent for path in root.glob("sweeps/*/*/*/metrics.jsonl") if path.read_bytes().count(b"\n") > 2]


def check(whole: Path, directory: Path) -> None:
    for number in range(4):
        assert diff.diff_runs(*(runs.read(each / str(number)) for each in (whole, directory))) == []


def starts(directory: Path, job: int) -> int:
    return len(runs.read(directory / str(job)).record["commands"])


def test_on_slurm_jobs_are_queued_again_stopped_and_resumed_to_the_same_bits(
    workshop: Workshop, whole: Path, slurm: cluster.Cluster
) -> None:
    arguments = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=4", *CONFIG)  # two at once
    sweep = start(workshop.root, "train.py", "-m", *arguments, **slurm.environment)
    wait_for(lambda: training(workshop.root), seconds=90)
    (directory,) = workshop.root.glob("sweeps/*/*")
    assert (directory / "sweep.json").exists() and slurm.jobs("PENDING")
    told = training(workshop.root)[0].name
    (job,) = [each for each in slurm.jobs("RUNNING") if each.endswith(f"_{told}")]
    slurm.send("USR2", job)
    wait_for(lambda: runs.read(directory / told).record["status"] == "interrupted", seconds=30)
    time.sleep(1)
    sweep.send_signal(signal.SIGINT)
    time.sleep(1)
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "Traceback" not in output, output
    assert "Ctrl-C: each job finishes its step and saves." in output and "To go on: python resume.py run=" in output
    slurm.clear()

    again = start(workshop.root, "resume.py", "run=latest-sweep", **slurm.environment)
    wait_for(lambda: len(slurm.jobs("RUNNING")) == 2, seconds=60)
    time.sleep(5)
    for lost in slurm.jobs("RUNNING"):
        slurm.run("scontrol", "requeue", lost)  # as when a node is lost
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0 and "Traceback" not in output, output
    assert starts(directory, int(told)) > 1
    check(whole, directory)


def test_the_command_of_the_page_runs(workshop: Workshop, slurm: cluster.Cluster) -> None:
    page = pages.read(REPOSITORY / "docs" / "sweeps.md")
    (command,) = [arguments for _, script, *arguments in page.commands if "hydra/launcher=slurm" in arguments]
    here = ("hydra.launcher.partition=main", "hydra.launcher.gpus_per_node=null", "trainer.max_epochs=1")
    sweep = start(workshop.root, "train.py", *command, *SMALL, *here, **slurm.environment)
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, output
    (directory,) = workshop.root.glob("sweeps/*/*")
    assert [result.status for result in runs.results(directory)] == ["finished"] * 3


def test_a_job_whose_time_is_up_saves_and_is_started_again(workshop: Workshop, whole: Path) -> None:
    sweep = start(workshop.root, "train.py", "-m", "hydra/launcher=submitit_local", *CONFIG)
    wait_for(lambda: len(training(workshop.root)) == 4, seconds=120)
    (directory,) = workshop.root.glob("sweeps/*/*")
    listed = subprocess.run(["pgrep", "-f", f"submitit.core._submit {directory}"], capture_output=True, text=True)
    told = int(listed.stdout.split()[0])
    os.kill(told, signal.SIGUSR2)
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, output
    assert sorted(starts(directory, job) for job in range(4)) == [1, 1, 1, 2]
    assert runs.read(directory / "0").record["commands"][0]["command"].startswith("train.py -m hydra/launcher=")
    check(whole, directory)
