"""A loading worker that is killed: the run ends in one line, at once, and goes on to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools.moments import Strike
from tools.processes import REPOSITORY, Zygote
from tools.share import some
from tools.warm import Warm
from tools.workshop import Workshop

from savepoint import runs
from savepoint.commands import diff
from savepoint.data import workers

SMALL = ("tracker=none", "trainer.threads=1", "data.batch_size=16", "data.limit_batches=8", "trainer.max_epochs=3")
CONFIG = (*SMALL, "data.num_workers=2", "data.dataset.augment=true", "checkpoint.every_n_steps=3")
TOLD = "error: A loading worker was killed, most often for lack of memory (DataLoader worker (pid"


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, int]:
    """A run that nothing happens to, and the number of its moments."""
    folder = tmp_path_factory.mktemp("whole")
    strike = Strike(count=str(folder / "moments"))
    ended = zygote.run("train.py", *CONFIG, f"hydra.run.dir={folder / 'run'}", strike=strike)
    assert ended.status == 0, ended.output
    return runs.read(folder / "run"), int((folder / "moments").read_text())


@pytest.mark.parametrize("trial", some(range(3), lambda trial: trial == 0))
def test_a_killed_worker_ends_the_run_in_one_line_and_it_goes_on_to_the_same_bits(
    zygote: Zygote, whole: tuple[runs.Run, int], tmp_path: Path, trial: int
) -> None:
    at = random.Random(f"worker {trial}").randint(1, whole[1] // 2)  # later, it may have done all that was asked
    ended = zygote.run("train.py", *CONFIG, f"hydra.run.dir={tmp_path / 'run'}", strike=Strike(at, "worker"))
    struck = runs.read(tmp_path / "run")
    assert ended.status == 2, f"struck at {at}: {ended.output}"
    last = ended.output.splitlines()[-1]
    assert last.startswith(TOLD)
    assert last.endswith(
        f"data.num_workers is 2; fewer change no result: python resume.py run={tmp_path / 'run'} data.num_workers=1"
    )
    assert "Traceback" not in ended.output
    assert "Traceback" in (struck.directory / "train.log").read_text(), "for whoever looks for a bug"
    assert struck.record["status"] == "failed"
    again = zygote.run("resume.py", f"run={struck.directory}", "data.num_workers=1")
    assert again.status == 0, again.output
    assert diff.diff_runs(whole[0], runs.read(tmp_path / "run")) == []


def test_a_process_with_a_killed_worker_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """An interpreter of its own: what waited for ever was its exit."""
    strike = json.dumps(vars(Strike(60, "worker")))
    command = [sys.executable, str(REPOSITORY / "tests" / "tools" / "moments.py"), strike, "train.py", *CONFIG]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert TOLD in done.stderr


DYING = """
import os
from tools.sources import Drawing

class Dying(Drawing):
    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        if self.asked == 20:  # while the first samples are on their way
            {how}
        return super().__getitem__(index)
"""


# Twice in `make test-all`: which of its ends is noticed first is a matter of chance, and torch looks every five seconds.
WAYS = [(how, turn) for how in ("os.kill(os.getpid(), 9)", "raise SystemExit(3)") for turn in (1, 2)]


@pytest.mark.parametrize(("how", "turn"), some(WAYS, lambda case: case == WAYS[0]))
def test_a_worker_that_dies_before_training_is_told_of_in_one_line(workshop: Workshop, how: str, turn: int) -> None:
    source = DYING.format(how=how).replace("from tools.sources", "from project.data.sources")
    (workshop.root / "src" / "project" / "data" / "dying.py").write_text(source)
    dying = ("data=drawing", "data.dataset._target_=project.data.dying.Dying", "data.num_workers=2")
    ended = workshop.run("train.py", "tracker=none", "data.batch_size=8", *dying)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    last = ended.output.splitlines()[-1]
    assert last.startswith(TOLD.removesuffix("(pid")) and "Nothing was trained yet." in last
    assert last.endswith("fewer change no result: python train.py … data.num_workers=1")


def test_only_what_torch_says_of_a_worker_is_about_one() -> None:
    told = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    first = ConnectionResetError(104, "Connection reset by peer")
    first.__context__ = told
    assert workers.worker_death(told) == "DataLoader worker (pid 7) is killed by signal: Killed"
    assert workers.worker_death(first) == "DataLoader worker (pid 7) is killed by signal: Killed"
    assert workers.worker_death(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert workers.worker_death(ValueError("DataLoader worker (pid 7) of mine")) is None


BATCHES = """
import gc, multiprocessing, torch
from torch.utils.data import TensorDataset
from savepoint.config import DataSettings
from savepoint.data import Batches

gc.disable()
settings = DataSettings(batch_size=8, num_workers=2, persistent_workers={persistent})
batches = Batches(TensorDataset(torch.arange(200)), split="train", settings=settings, seed=0)
epoch = batches.epoch(0)
next(epoch)
"""


def in_an_interpreter(warm: Warm, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = warm.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_end_with_the_batches_that_they_load(warm: Warm, persistent: bool) -> None:
    """And not when the collector comes by: a process that is forked until then would inherit a loader of others."""
    code = BATCHES.format(persistent=persistent) + "del epoch, batches; print(multiprocessing.active_children())"
    assert in_an_interpreter(warm, code) == "[]\n"


def test_a_process_ends_also_where_something_keeps_its_workers() -> None:
    code = BATCHES.format(persistent=True) + "kept = [epoch, batches]; kept.append(kept); del epoch, batches"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


HANGING = """
import os, signal, time, torch
from savepoint.config import DataSettings
from savepoint.data import Batches

class Hanging:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        print(os.getpid(), flush=True)
        time.sleep(60)

next(Batches(Hanging(), split="train", settings=DataSettings(batch_size=8, num_workers=1), seed=0).epoch(0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own signal")
def test_a_worker_in_the_middle_of_a_sample_ends_with_a_main_process_that_is_killed(warm: Warm) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    main = warm.popen([sys.executable, "-c", HANGING], env=environment, stdout=subprocess.PIPE)
    worker = int(main.stdout.readline())
    main.kill()
    main.wait()
    main.stdout.close()
    for _ in range(200):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("it went on")
