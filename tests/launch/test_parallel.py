"""Jobs of a sweep in processes that a launcher starts: the same table and bits, and Ctrl-C and a resume as ever."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tools import pages
from tools.processes import REPOSITORY
from tools.stores import query, wait_for
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff
from savepoint.launch import gpus

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=3", "data.batch_size=32")
CONFIG = (*SMALL, "trainer.max_epochs=25", "data.dataset.augment=true", "seed=1,2,3,4")
# Other tests run these commands of the page; Ray's is run by hand, since it needs other versions than constraints.txt has.
ELSEWHERE = {"hydra/sweeper=optuna", "hydra/launcher=slurm", "hydra/launcher=ray_cluster"}
PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


def start(root: Path, script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a script in a process group of its own, as a terminal does."""
    command = [sys.executable, str(root / script), *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=root, env=kept, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def table(directory: Path) -> list[str]:
    """The table without the ids of the runs."""
    return [line.rpartition(",")[0] for line in (directory / "results.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    ended = the_workshop.run("train.py", "-m", *CONFIG, f"hydra.sweep.dir={directory}")
    assert ended.status == 0, ended.output
    return directory


def test_a_sweep_of_several_at_once_stops_on_ctrl_c_and_is_resumed_to_the_same_table_and_bits(
    workshop: Workshop, whole: Path
) -> None:
    sweep = start(workshop.root, "train.py", "-m", *PARALLEL, *CONFIG)
    wait_for(lambda: [*workshop.root.glob("sweeps/*/*/sweep.json")], seconds=60)
    assert [*workshop.root.glob("sweeps/*/*/*/")] == [], "the jobs are recorded before the first one begins"

    def training() -> list[Path]:
        found = workshop.root.glob("sweeps/*/*/*/metrics.jsonl")
        return [path for path in found if path.read_bytes().count(b"\n") > 3]

    wait_for(training, seconds=60)
    os.killpg(sweep.pid, signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert "Ctrl-C: each job finishes its step and saves. Once more stops now." in output
    assert sweep.returncode == 130 and "Traceback" not in output, output
    (directory,) = workshop.root.glob("sweeps/*/*")
    assert f"To go on: python resume.py run={runs.sweep_of(directory).id}\n" in output
    statuses = [result.status for result in runs.results(directory)]
    assert statuses.count("not begun") >= 1 and {*statuses} <= {"finished", "interrupted", "not begun"}

    again = start(workshop.root, "resume.py", "run=latest-sweep")
    output, _ = again.communicate(timeout=100)
    assert again.returncode == 0, output
    assert len(re.findall(r"^job \d: finished", output, re.MULTILINE)) == 4
    assert table(directory) == table(whole)
    for number in range(4):
        assert diff.diff_runs(*(runs.read(each / str(number)) for each in (whole, directory))) == []


@pytest.mark.long
def test_the_commands_of_the_page_run(workshop: Workshop) -> None:
    ends = []
    for program, script, *arguments in pages.read(REPOSITORY / "docs" / "sweeps.md").commands:
        if program != "python" or {*arguments} & ELSEWHERE:
            continue
        if PARALLEL[0] in arguments:
            sweep = start(workshop.root, script, *arguments, *SMALL)
            output, _ = sweep.communicate(timeout=100)
            assert sweep.returncode == 0, output
            ends.append(output)
        else:
            ended = workshop.run(script, *arguments, "tracker=none", "data.limit_batches=2")
            assert ended.status == 0, ended.output
            ends.append(ended.output)
    assert [len(re.findall(r"^\d .* finished ", each, re.MULTILINE)) for each in ends] == [4, 2]


@pytest.mark.long
def test_a_killed_process_and_a_refused_job_are_told_in_one_line(workshop: Workshop) -> None:
    sweep = start(workshop.root, "train.py", "-m", *PARALLEL, *CONFIG, "optimizer.lr=0.01,-1")
    output, _ = sweep.communicate(timeout=100)
    assert sweep.returncode == 2 and output.splitlines()[-1].startswith("error: job 1: optimizer.lr=-1"), output
    (directory,) = workshop.root.glob("sweeps/*/*")
    statuses = [result.status for result in runs.results(directory)]
    assert (statuses.count("finished"), statuses.count("refused")) == (4, 4)

    workshop.clear()
    sweep = start(workshop.root, "train.py", "-m", *PARALLEL, *CONFIG, "trainer.max_epochs=4000")
    wait_for(lambda: [*workshop.root.glob("sweeps/*/*/*/metrics.jsonl")], seconds=60)
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "-g", str(sweep.pid)], capture_output=True, text=True, check=True
    )
    worker = next(line.split()[0] for line in listed.stdout.splitlines() if "LokyProcess" in line)
    os.kill(int(worker), signal.SIGKILL)
    output, _ = sweep.communicate(timeout=100)
    assert sweep.returncode == 2 and "Traceback" not in output, output
    assert output.splitlines()[-1].startswith("error: The launcher of the jobs has failed: "), output


@pytest.mark.long
def test_eight_processes_at_once_fill_a_new_store(workshop: Workshop, tmp_path: Path) -> None:
    store = f"tracker.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    small = (*SMALL[1:], "trainer.max_epochs=2", "seed=range(0,8)", store)
    sweep = start(workshop.root, "train.py", "-m", PARALLEL[0], "hydra.launcher.n_jobs=8", *small)
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 0 and "has not stored" not in output, output
    assert query(tmp_path, "select status, count(*) from runs group by status") == [("FINISHED", 9)]
    assert query(tmp_path, "select count(distinct value) from tags where key = 'mlflow.parentRunId'") == [(1,)]
    (directory,) = workshop.root.glob("sweeps/*/*")
    for number in range(8):
        run = runs.read(directory / str(number))
        lines = runs.read_history(run.metrics)
        logged = {(key, line["step"]) for line in lines for key in line if key not in ("step", "time")}
        stored = query(tmp_path, "select key, step from metrics where run_uuid = ?", run.tracker_id)
        assert len(stored) == len({*stored}) and logged <= {*stored}


def test_each_process_gets_a_gpu_of_its_own_and_then_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: A (UUID: x)\\nGPU 1: A (UUID: y)\\n'\n")
    tool.chmod(0o755)
    code = "import os, sys, time; from pathlib import Path; from savepoint.launch import gpus\n" \
        "gpus.claim(Path(sys.argv[1]), int(sys.argv[2])); gpus.claim(Path(sys.argv[1]), 0)\n" \
        "print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"  # fmt: skip

    def claimed(number: int, **environment: str) -> "subprocess.Popen[str]":
        kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        kept |= {"PATH": f"{tmp_path}{os.pathsep}{kept['PATH']}", **environment}
        command = [sys.executable, "-c", code, str(tmp_path), str(number)]
        process = subprocess.Popen(command, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    def answer(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    processes: list[subprocess.Popen[str]] = []
    try:
        assert [answer(claimed(number)) for number in (0, 1)] == ["0", "1"]
        assert [answer(claimed(number)) for number in (2, 3)] == ["0", "1"]
        processes[1].communicate()  # it ends, and another one takes its place
        assert answer(claimed(4)) == "1"
        assert answer(claimed(5, CUDA_VISIBLE_DEVICES="6, 7")) == "6"
        assert answer(claimed(6, CUDA_VISIBLE_DEVICES="5")) == "5"
        assert answer(claimed(7, CUDA_VISIBLE_DEVICES="")) == ""
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert "torch" in sys.modules  # which has read the variable by now
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpus.claim(tmp_path, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
