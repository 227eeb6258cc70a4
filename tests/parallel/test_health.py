"""A rank that dies before training begins ends all ranks within seconds, with one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools import ranked
from tools.moments import Strike
from tools.processes import Zygote
from tools.workshop import Workshop

SHORT = ("tracker=none", "trainer.threads=1", "data.limit_batches=2")


@pytest.fixture
def begun(zygote: Zygote, tmp_path: Path) -> Path:
    """A run of one epoch, which two ranks have trained."""
    directory = tmp_path / "run"
    more = ("trainer.max_epochs=1", f"hydra.run.dir={directory}")
    ended = ranked.run(zygote, tmp_path / "out", 2, "train.py", *SHORT, *more)
    assert ended[0].status == 0, ended[0].output
    return directory


def test_rank_0_says_which_other_rank_died_before_training(begun: Path, zygote: Zygote, tmp_path: Path) -> None:
    """Rank 1 is killed as it opens the checkpoint, and rank 0 waits for it."""
    again = ("resume.py", f"run={begun}", "trainer.max_epochs=2")
    killed, other = ranked.run(zygote, tmp_path / "out", 2, *again, disk=begun, disk_of=1, at=1)[::-1]
    assert killed.status == -signal.SIGKILL and other.status == 2
    assert other.output.startswith("error: Rank 1 of 2 does not train any more: its process has died")
    assert other.output.count("\n") == 1
    assert ranked.run(zygote, tmp_path / "out", 2, *again)[0].status == 0


def test_a_follower_ends_with_rank_0(begun: Path, zygote: Zygote, tmp_path: Path) -> None:
    again = ("resume.py", f"run={begun}", "trainer.max_epochs=2")
    killed, other = ranked.run(zygote, tmp_path / "out", 2, *again, disk=begun, at=1)
    assert killed.status == -signal.SIGKILL and (other.status, other.output) == (0, "")


def test_a_killed_worker_of_another_rank_is_told_as_one_of_a_lone_process_is(zygote: Zygote, tmp_path: Path) -> None:
    more = ("data.num_workers=1", "trainer.max_epochs=9", f"hydra.run.dir={tmp_path / 'run'}")
    strikes = {1: Strike(20, "worker")}
    rank_0, _ = ranked.run(zygote, tmp_path / "out", 2, "train.py", *SHORT, *more, strikes=strikes)
    told = "error: Rank 1 of 2 does not train any more: A loading worker was killed, most often for lack of memory ("
    assert rank_0.status == 2 and rank_0.output.splitlines()[-1].startswith(told), rank_0.output
    assert rank_0.output.endswith("Fewer of data.num_workers change no result.\n")
    assert (tmp_path / "run" / "train.log").read_text().count("The other rank's traceback") == 1


LATE = """
import os, time
from torch import nn

class Late(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        time.sleep(3.0 * (os.environ["RANK"] == "0"))
        raise ValueError("no width")
"""


def test_a_mistake_that_all_ranks_find_is_told_by_rank_0_as_its_own(the_workshop: Workshop, tmp_path: Path) -> None:
    """Rank 0 finds it last, when the others would have given up waiting for it."""
    files = {"src/project/models/late.py": LATE, "conf/model/late.yaml": "_target_: project.models.late.Late"}
    for name, text in files.items():
        (the_workshop.root / name).write_text(text)
    order = ("train.py", *SHORT, "model=late", f"hydra.run.dir={tmp_path / 'run'}")
    rank_0, _ = ranked.run(the_workshop.zygote, tmp_path / "out", 2, *order)
    for name in files:
        (the_workshop.root / name).unlink()
    told = [line for line in rank_0.output.splitlines() if not line.startswith("[Gloo]")]  # torch 2.8 prints that
    assert rank_0.status == 2 and told[0].startswith("error: model: "), rank_0.output
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_signal_to_ranks_that_wait_for_each_other_ends_them_without_blame(zygote: Zygote, tmp_path: Path) -> None:
    code = (
        "from savepoint import parallel, system; system.signals.note(); place = parallel.attended('run')\n"
        "with place, parallel.group('run', 'cpu', seconds=600): pass"
    )
    three = ranked.places(3)
    waiting = [python(code, each) for each in three[:2]]
    notes = ranked._STORES[-1]
    while not all(notes.check([f"savepoint/0/there/run/{rank}"]) for rank in range(2)):
        time.sleep(0.02)
    gone = python("from savepoint import parallel; parallel.leave()", three[2])
    assert gone.communicate() == ("", None)
    for each in waiting:
        each.send_signal(signal.SIGTERM)
    for each in waiting:
        assert each.communicate() == ("", None) and each.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("shared, keeper", [("True", "torchrun, which started"), ("False", "Rank 0 of 2")])
def test_whoever_keeps_the_notes_is_named_when_it_is_gone(shared: str, keeper: str) -> None:
    code = "import sys; from savepoint import parallel; parallel.board().write('a', 1); print('here', flush=True)\n" \
        "sys.stdin.read(); parallel.board().read('a')"  # fmt: skip
    rank = python(code, ranked.places(2)[1] | {"TORCHELASTIC_USE_AGENT_STORE": shared})
    assert rank.stdout is not None and rank.stdout.readline() == "here\n"
    ranked._STORES.pop()  # nobody else refers to it
    output, _ = rank.communicate()
    assert keeper in output.splitlines()[-1] and "cannot be reached any more. Most often it was killed." in output


def python(code: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment, **pipes)  # type: ignore[call-overload,no-any-return]
