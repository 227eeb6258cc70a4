"""The promise, place by place: wherever in an epoch a run is stopped, and however often, it goes on to the same bits.

Random places are in test_resume.py, test_matrix.py and chaos.py; these are those that a person would ask about.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
from tools.moments import Strike
from tools.processes import Zygote
from tools.share import some

from savepoint import checkpoint, runs
from savepoint.commands import diff

# Six batches in an epoch, the last one smaller; windows of four batches and of two; three epochs, six updates.
CONFIG = (
    *("tracker=none", "trainer.threads=1", "model.hidden=[12]", "model.batch_norm=true", "data.dataset.augment=true"),
    *(
        "data.dataset.limit=85",
        "data.batch_size=16",
        "trainer.accumulate=4",
        "trainer.max_epochs=3",
        "scheduler=cosine",
    ),
    *("scheduler.interval=step", "trainer.ema_decay=0.8", "trainer.log_every_n_steps=1"),
)
BATCHES, UPDATES = 6, 2  # in an epoch
VAL = 12  # batches of validation in an epoch, of the weights and of their average
PLACES = {
    "before the first step": Strike(1, of="step.update"),
    "in the first batch": Strike(1, of="state.outcome"),
    "inside an accumulation window": Strike(3, of="state.outcome"),
    "between two updates": Strike(2, of="step.update"),
    "in the last batch of an epoch": Strike(BATCHES, of="state.outcome"),
    "after the last batch, before validation": Strike(1, of="evaluation.evaluate"),
    "in the first batch of validation": Strike(BATCHES + 1, of="state.outcome"),
    "in the last batch of validation": Strike(BATCHES + VAL, of="state.outcome"),
    "on the boundary of two epochs": Strike(1, of="loop._note_best"),
    "in the save of an epoch": Strike(1, of="saves._draft"),
    "in the first batch of the second epoch": Strike(BATCHES + VAL + 1, of="state.outcome"),
    "in the last epoch, inside a window": Strike(2 * (BATCHES + VAL) + 2, of="state.outcome"),
    "when the data is exhausted": Strike(3, of="evaluation.evaluate"),
    "after the last epoch, before its save": Strike(3, of="saves._draft"),
}


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    directory = tmp_path_factory.mktemp("whole") / "run"
    ended = zygote.run("train.py", *CONFIG, f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    assert checkpoint.names(directory / runs.CHECKPOINTS)[-1] == "epoch_0003_step_00000006"
    return runs.read(directory)


def each_place_and_way() -> list[Any]:
    """Every place with every way to stop. `make test` takes every second place with one way, in turn."""
    ways = ("kill", "term", "ctrl-c")
    return [
        pytest.param(
            place, how, marks=() if (number // 2 + turn) % len(ways) == 0 and number % 2 == 0 else pytest.mark.long
        )
        for number, place in enumerate(PLACES)
        for turn, how in enumerate(ways)
    ]


@pytest.mark.parametrize(("place", "how"), each_place_and_way())
def test_a_run_that_is_stopped_here_goes_on_to_the_same_bits(
    zygote: Zygote, whole: runs.Run, tmp_path: Path, place: str, how: str
) -> None:
    directory, where = tmp_path / "run", tmp_path / "where"
    strike = Strike(PLACES[place].at, how, of=PLACES[place].of, where=str(where))
    ended = zygote.run("train.py", *CONFIG, f"hydra.run.dir={directory}", strike=strike)
    assert where.read_text().split() == [strike.of], ended.output
    # The last save is waited for, and a stop that comes in it is none.
    assert ended.status == ({"kill": -9, "term": 143, "ctrl-c": 130}[how] if ended.status else 0), ended.output
    again = zygote.run("resume.py", f"run={directory}")
    assert again.status == 0, again.output
    assert diff.diff_runs(whole, runs.read(directory)) == []


@pytest.mark.parametrize(
    ("times", "how"),
    some(itertools.product((2, 3, 10), ("kill", "term")), lambda case: case in ((2, "term"), (3, "kill"))),
)
def test_an_epoch_that_is_interrupted_so_often_goes_on_to_the_same_bits(
    zygote: Zygote, tmp_path: Path, how: str, times: int
) -> None:
    """An epoch of twelve updates. What is killed has saved each update before; what is asked to stop saves itself."""
    twelve = (*CONFIG, "trainer.accumulate=1", "data.batch_size=8", "data.limit_batches=11", "trainer.max_epochs=2")
    saves = ("checkpoint.every_n_steps=1", "checkpoint.async_save=false") if how == "kill" else ()
    directories = tmp_path / "whole", tmp_path / "run"
    ended = zygote.run("train.py", *twelve, f"hydra.run.dir={directories[0]}")
    assert ended.status == 0, ended.output
    arguments = ("train.py", *twelve, *saves, f"hydra.run.dir={directories[1]}")
    reached = []
    for _ in range(times):
        ended = zygote.run(*arguments, strike=Strike(2, how, of="step.update"))
        assert ended.status == {"kill": -9, "term": 143}[how], ended.output
        newest, _ = checkpoint.latest(directories[1] / runs.CHECKPOINTS)
        assert newest is not None
        reached.append((newest.state["epoch"], newest.state["batch"]))
        arguments = ("resume.py", f"run={directories[1]}")
    each = 1 if how == "kill" else 2  # the update in which it is asked to stop is finished
    assert reached == [divmod(each * (number + 1), 11) for number in range(times)]
    ended = zygote.run(*arguments)
    assert ended.status == 0, ended.output
    assert diff.diff_runs(runs.read(directories[0]), runs.read(directories[1])) == []


def test_a_resumed_run_loads_and_trains_on_what_is_left_and_nothing_else(zygote: Zygote, tmp_path: Path) -> None:
    config, count = (*CONFIG, "trainer.max_epochs=1"), tmp_path / "count"
    counted = {}
    for what in ("state.outcome", "digits.__getitems__"):
        strike = Strike(of=what, count=str(count))
        ended = zygote.run("train.py", *config, f"hydra.run.dir={tmp_path / what / 'whole'}", strike=strike)
        assert ended.status == 0, ended.output
        counted[what] = int(count.read_text())
        directory = tmp_path / what / "run"
        ended = zygote.run(
            "train.py", *config, f"hydra.run.dir={directory}", strike=Strike(1, "term", of="step.update")
        )
        assert ended.status == 143, ended.output
        newest, _ = checkpoint.latest(directory / runs.CHECKPOINTS)
        assert newest is not None
        assert newest.state["batch"] == 4
        ended = zygote.run("resume.py", f"run={directory}", strike=strike)
        assert ended.status == 0, ended.output
        counted[what] -= int(count.read_text())
    assert counted == {"state.outcome": 4, "digits.__getitems__": 4}
