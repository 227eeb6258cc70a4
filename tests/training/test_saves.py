"""Saving beside training: when a checkpoint is made, that its bits are those of a save that training waits for, that
nothing which is under way is lost, and who hears of what goes wrong.

The background is held at its syncs. Where it has to go on by itself, it is held for PATIENCE: long enough for whatever
does not wait for it to be seen, and no longer than that where everything waits as it should.
"""

import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import BATCHES, Fitted, Squares, assert_same_run, go
from tools.processes import Ended, Zygote
from torch import nn

from savepoint import checkpoint, runs
from savepoint.checkpoint import layout
from savepoint.commands import diff
from savepoint.config import read_settings
from savepoint.runs import Run, history
from savepoint.system import rng
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.saves import Saves
from savepoint.training.state import TrainState

PATIENCE = 0.3  # seconds
FOREVER = 60.0  # seconds, for what has to happen
EACH_STEP = {"every_n_steps": 1, "every_n_epochs": None}


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Disk:
    """The syncs of this process: `at` is called before each, with its path, in the thread that asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: Callable[[Path], None] = lambda path: None
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        self.at(Path(f"/proc/self/fd/{descriptor}").readlink())
        self._sync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def in_background() -> bool:
    return threading.current_thread() is not threading.main_thread()


class Hold:
    """Holds the background at its `number`-th sync of a file of this name, until `go_on` or for so many seconds."""

    def __init__(self, disk: Disk, name: str, *, seconds: float = PATIENCE, number: int = 1) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._name, self._seconds, self._left = name, seconds, number
        disk.at = self._at

    def _at(self, path: Path) -> None:
        if in_background() and path.name == self._name:
            self._left -= 1
            if self._left == 0:
                self.reached.set()
                self.go_on.wait(self._seconds)


class Bench:
    """A state, and saves of it, without a loop."""

    def __init__(self, directory: Path, **keep: Any) -> None:
        config = {"seed": 0, "data": {"batch_size": 2}, "tracker": {"kind": "none"}}
        full, faults = read_settings(config | {"checkpoint": {"keep_last": 99} | keep})
        assert full is not None, faults
        directory.mkdir(exist_ok=True)
        self.run = Run(directory, {"id": "abcd1234"})
        source: dict[str, Any] = {"git": {"commit": None}, "config_sha256": "0"}
        self.saves = Saves(self.run, full, config="", patch=None, provenance=source, resumed_from=None)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.1, momentum=0.9)
        self.state = TrainState(
            model, {"": Optimization(optimizer, NoSchedule(), torch.amp.GradScaler("cpu", enabled=False))}
        )

    def update(self) -> None:
        for parameter in self.state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state.optimizers[""].optimizer.step()
        self.state.step += 1

    @property
    def steps(self) -> list[int]:
        return steps(self.run.checkpoints)

    @property
    def is_open(self) -> bool:
        """Whether this process still writes the run's metrics, or has a thread that saves."""
        descriptors = [Path(link) for link in Path("/proc/self/fd").iterdir()]
        found = [os.readlink(link) for link in descriptors if os.path.lexists(link)]  # noqa: PTH115 - may be gone
        return str(self.run.metrics) in found or any(each.name.startswith("save") for each in threading.enumerate())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path / "run")
    yield one
    one.saves.close()


def steps(root: Path) -> list[int]:
    return [int(name[-8:]) for name in checkpoint.names(root)]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_sound(root: Path) -> None:
    """Whatever has a name is whole, and nothing half done lies about."""
    assert {name: checkpoint.verify(root / name) for name in checkpoint.names(root)} == dict.fromkeys(
        checkpoint.names(root)
    )
    assert {path.name for path in root.iterdir()} == set(checkpoint.names(root))


def at_update(task: Squares, number: int, call: Callable[[], object]) -> None:
    """Call it once, at the beginning of the `number`-th update."""
    seen: list[bool] = []

    def on_call(training: bool) -> None:
        seen.extend([training] if training else [])
        if training and len(seen) == number:
            call()

    task.on_call = on_call


# The same bits


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 8},
        {"accumulate": 4, "max_epochs": 2},
        {"fp16": 2.0**20, "max_steps": 4},
        {"log_every_n_steps": 1, "max_epochs": 1},
    ],
    ids=str,
)
def test_checkpoints_saved_beside_training_are_byte_for_byte_those_that_training_waits_for(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    waiting = go(tmp_path / "waiting", keep={"every_n_steps": 1, "async_save": False}, **options)
    beside = go(tmp_path / "beside", keep={"every_n_steps": 1, "async_save": True}, **options)
    assert len(beside.checkpoints) > 3
    assert contents(beside.run.checkpoints) == contents(waiting.run.checkpoints)
    assert_same_run(beside, waiting)


REAL = ("tracker=none", "trainer.threads=1", "data.limit_batches=6", "data.batch_size=32", "trainer.max_epochs=2")
REAL = (*REAL, "model=cnn", "data.dataset.augment=true", "scheduler=cosine", "trainer.log_every_n_steps=1")
BY_STEP = (*REAL, "checkpoint.every_n_steps=1", "checkpoint.keep_last=1")


def train(zygote: Zygote, directory: Path, *config: str) -> Run:
    ended = zygote.run("train.py", *config, f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    return runs.read(directory)


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run that saves at its end, and at no other time."""
    return train(zygote, tmp_path_factory.mktemp("whole") / "run", *REAL, "checkpoint.every_n_epochs=null")


def test_a_real_runs_checkpoints_are_the_same_whether_training_waits_for_them_or_not(
    zygote: Zygote, tmp_path: Path
) -> None:
    keep = (*REAL, "checkpoint.every_n_steps=1", "checkpoint.keep_last=99")
    beside = train(zygote, tmp_path / "beside", *keep, "checkpoint.async_save=true")
    waiting = train(zygote, tmp_path / "waiting", *keep, "checkpoint.async_save=false")
    names = checkpoint.names(beside.checkpoints)
    assert names == checkpoint.names(waiting.checkpoints) and len(names) == 14
    for name in names:
        pair = [contents(made.checkpoints / name) for made in (beside, waiting)]
        assert pair[0].keys() == pair[1].keys()
        for file in (layout.STATE, layout.TRAINING):
            assert pair[0][file] == pair[1][file]
        # The header names the run and the digest of its config; the bytes of all tensors follow it.
        tensors = [each[layout.MODEL][8 + int.from_bytes(each[layout.MODEL][:8], "little") :] for each in pair]
        assert tensors[0] == tensors[1]
        assert {key for key, value in provenance(pair[0]).items() if provenance(pair[1])[key] != value} <= {
            *("run_id", "config_sha256", "time", "command", "git")
        }


def provenance(files: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(files[layout.PROVENANCE])


# Beside training


# A line of metrics waits for a sync of the others, and no more of a save than that.
@pytest.mark.parametrize(
    "name, logging_every", [("metrics.jsonl", None), ("model.safetensors", 1), ("manifest.json", 1)]
)
def test_training_goes_on_while_a_checkpoint_is_written_and_its_state_is_written_as_it_was(
    tmp_path: Path, disk: Disk, name: str, logging_every: int | None
) -> None:
    """Whatever is changed in place meanwhile: weights, moments, running statistics, sums, lists, lines of metrics."""
    options: dict[str, Any] = {"log_every_n_steps": logging_every, "max_epochs": 1}
    keep = {"every_n_steps": 3, "every_n_epochs": None}
    waiting = go(tmp_path / "waiting", keep=keep | {"async_save": False}, **options)
    hold, task, meanwhile = Hold(disk, name, seconds=FOREVER), Squares(), []

    def look() -> None:
        """The update after the checkpoint is done, in place, and the next one has begun."""
        assert hold.reached.wait(FOREVER)
        meanwhile.extend(checkpoint.names(tmp_path / "beside" / runs.CHECKPOINTS))
        meanwhile.append("training")
        hold.go_on.set()

    at_update(task, 5, look)
    beside = go(tmp_path / "beside", keep=keep, task=task, **options)
    assert meanwhile == ["training"], "before there is any checkpoint"
    assert contents(beside.run.checkpoints) == contents(waiting.run.checkpoints)
    assert beside.checkpoints == [(0, 3), (0, 6), (1, 6)]


def test_a_save_waits_for_the_one_before_it(bench: Bench, disk: Disk) -> None:
    """The memory that the first is being written from is the memory that the second is copied to."""
    Hold(disk, "metrics.jsonl")
    for step in (1, 2, 3):
        bench.update()
        bench.saves.save(bench.state)
        assert set(bench.steps) >= set(range(1, step)), "those before it are durable once a save returns"
    bench.saves.close()
    assert bench.steps == [1, 2, 3]
    assert_sound(bench.run.checkpoints)


def test_there_are_never_two_saves_at_once(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, rename, noted = os.mkdir, os.rename, []

    def making(path: Any, *arguments: Any, **keywords: Any) -> None:
        if ".tmp-epoch" in str(path):
            noted.append(("begin", Path(path).name[5:27]))
        mkdir(path, *arguments, **keywords)

    def renaming(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name.startswith("epoch"):
            noted.append(("end", Path(target).name[:22]))

    monkeypatch.setattr(os, "mkdir", making)
    monkeypatch.setattr(os, "rename", renaming)
    disk.at = lambda path: time.sleep(0.0005)
    fitted = go(tmp_path / "run", keep={"every_n_steps": 1}, max_epochs=2)
    names = [name[:22] for name in checkpoint.names(fitted.run.checkpoints)]
    assert len(names) == 14 and noted == [(what, name) for name in names for what in ("begin", "end")]


def test_the_last_save_waits_for_the_one_before_it_and_is_durable_on_return(bench: Bench, disk: Disk) -> None:
    hold = Hold(disk, "model.safetensors")
    bench.update()
    bench.saves.save(bench.state)
    bench.update()
    bench.saves.save(bench.state, last=True)
    assert hold.reached.is_set() and bench.steps == [1, 2]
    assert_sound(bench.run.checkpoints)


def test_the_last_save_of_a_step_that_is_being_saved_is_that_checkpoint(bench: Bench, disk: Disk) -> None:
    Hold(disk, "model.safetensors")
    bench.saves.save(bench.state)
    bench.saves.save(bench.state, last=True)
    assert bench.steps == [0]
    assert_sound(bench.run.checkpoints)


def test_a_save_that_training_waits_for_is_durable_on_return_and_needs_no_thread(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", async_save=False)
    bench.saves.save(bench.state)
    assert bench.steps == [0] and not any(each.name.startswith("save") for each in threading.enumerate())
    bench.saves.close()


@pytest.mark.parametrize("begun", [0, 3], ids=["from the start", "resumed"])
def test_with_one_checkpoint_kept_there_is_a_sound_one_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """Looked at after each call that changes the disk, by whichever thread."""
    keep = {"every_n_steps": 1, "keep_last": 1, "keep_best": 0}
    if begun:
        go(tmp_path / "run", keep=keep, stop_at=begun)
    root, found, looking = tmp_path / "run" / runs.CHECKPOINTS, [begun] * bool(begun), threading.Lock()

    def look() -> None:
        newest, damaged = checkpoint.latest(root)
        assert damaged == []
        assert newest is not None or not found, "there was one before"
        found.extend([newest.state["step"]] if newest else [])

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **keywords: Any) -> Any:
            result = call(*arguments, **keywords)
            if looking.acquire(blocking=False):  # or it is the look itself
                try:
                    look()
                finally:
                    looking.release()
            return result

        return calling

    for name in ("mkdir", "rename", "unlink", "rmdir", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    fitted = go(tmp_path / "run", max_epochs=2, keep=keep)
    assert found == sorted(found) and set(found) == set(range(begun or 1, 2 * BATCHES + 1))
    assert fitted.checkpoints == [(2, 2 * BATCHES)]
    assert_sound(root)


# What goes wrong


def raise_at(disk: Disk, name: str, error: BaseException, *, thread: Callable[[], bool] = in_background) -> None:
    def at(path: Path) -> None:
        if thread() and path.name == name:
            raise error

    disk.at = at


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "manifest.json", "checkpoints"])
def test_a_bug_in_the_background_surfaces_at_the_next_save(bench: Bench, disk: Disk, name: str) -> None:
    raise_at(disk, name, TypeError("a bug"))
    bench.saves.save(bench.state)
    bench.update()
    with pytest.raises(TypeError, match="a bug"):
        bench.saves.save(bench.state)
    assert 1 not in bench.steps
    bench.saves.close()  # it has been told
    assert not bench.is_open


@pytest.mark.parametrize("error", [TypeError("a bug"), AssertionError("a bug"), MemoryError("a bug")], ids=repr)
def test_a_bug_in_the_background_surfaces_at_the_end(bench: Bench, disk: Disk, error: Exception) -> None:
    raise_at(disk, "model.safetensors", error)
    bench.saves.save(bench.state)
    assert bench.is_open
    with pytest.raises(type(error), match="a bug"):
        bench.saves.close()
    assert not bench.is_open, "files and thread are let go all the same"
    assert bench.steps == [] and not list(bench.run.checkpoints.iterdir())


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_bug_in_the_background_ends_the_run(tmp_path: Path, disk: Disk, at: int) -> None:
    """At the next save: of the last one too, which there is nothing to come after."""

    def bug(path: Path) -> None:
        if path.name == "manifest.json" and f"{at:08d}" in path.parent.name and in_background():
            raise TypeError("a bug")

    disk.at = bug
    with pytest.raises(TypeError, match="a bug"):
        go(tmp_path / "run", keep=EACH_STEP, max_epochs=1)
    assert steps(tmp_path / "run" / runs.CHECKPOINTS) == list(range(1, at))
    assert_sound(tmp_path / "run" / runs.CHECKPOINTS)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "manifest.json"])
def test_a_disk_that_refuses_in_the_background_is_told_in_one_line_and_costs_one_checkpoint(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    whole = go(tmp_path / "whole", keep={"every_n_epochs": None}, max_epochs=1)
    refused = iter([False, False, True, True])

    def full(path: Path) -> None:
        if in_background() and path.name == name and next(refused, False):
            raise no_space()

    disk.at = full
    with caplog.at_level(logging.WARNING):
        fitted = go(tmp_path / "run", keep=EACH_STEP, max_epochs=1)
    kept = "No space left on device. Training goes on; epoch_0000_step_00000002 is kept."
    assert [record.getMessage() for record in caplog.records] == [f"No checkpoint at step {n}: {kept}" for n in (3, 4)]
    assert steps(fitted.run.checkpoints) == [1, 2, 5, 6, 6]
    assert_sound(fitted.run.checkpoints)
    assert_same_run(fitted, whole)


def test_a_disk_that_never_takes_the_first_checkpoint_is_told_to_have_none(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    raise_at(disk, "model.safetensors", no_space())
    with caplog.at_level(logging.WARNING):
        fitted = go(tmp_path / "run", keep=EACH_STEP, max_steps=2)
    assert [record.getMessage() for record in caplog.records] == [
        "No checkpoint at step 1: No space left on device. Training goes on; there is none."
    ]
    assert steps(fitted.run.checkpoints) == [2]


def test_a_disk_that_refuses_a_resumed_run_is_told_to_have_the_one_that_it_began_with(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    go(tmp_path / "run", keep=EACH_STEP, stop_at=2)
    raise_at(disk, "model.safetensors", no_space())
    with caplog.at_level(logging.WARNING):
        go(tmp_path / "run", keep=EACH_STEP, max_steps=4)
    (record,) = caplog.records
    assert record.getMessage().endswith("Training goes on; epoch_0000_step_00000002 is kept.")


def test_a_checkpoint_that_somebody_removed_is_not_said_to_be_kept(
    bench: Bench, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    bench.saves.save(bench.state)
    bench.saves.wait()
    shutil.rmtree(bench.run.checkpoints / "epoch_0000_step_00000000")
    raise_at(disk, "model.safetensors", no_space())
    bench.update()
    with caplog.at_level(logging.WARNING):
        bench.saves.save(bench.state)
        bench.saves.wait()
    assert caplog.records[0].getMessage().endswith("Training goes on; there is none.")


def test_a_disk_that_refuses_the_last_save_is_an_error_also_if_those_before_it_were_only_told(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    raise_at(disk, "model.safetensors", no_space(), thread=lambda: True)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left"):
        go(tmp_path / "run", keep=EACH_STEP, max_steps=3)
    assert len(caplog.records) == 2 and not list((tmp_path / "run" / runs.CHECKPOINTS).iterdir())


# The end, whatever it is


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors", "manifest.json", "checkpoints"])
def test_close_waits_for_the_save_that_is_under_way(bench: Bench, disk: Disk, name: str) -> None:
    hold = Hold(disk, name)
    bench.saves.save(bench.state)
    assert hold.reached.wait(FOREVER)
    bench.saves.close()
    assert bench.steps == [0] and not bench.is_open
    assert_sound(bench.run.checkpoints)


def test_close_waits_also_for_a_save_whose_waiting_was_interrupted(bench: Bench, disk: Disk) -> None:
    """Ctrl-C while training waits for the disk: what it waits for is still under way."""
    begun = threading.Event()

    def at(path: Path) -> None:
        if in_background() and path.name == "model.safetensors":
            disk.at = lambda path: None
            assert begun.wait(FOREVER)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)

    disk.at = at
    bench.saves.save(bench.state)
    bench.update()
    with pytest.raises(KeyboardInterrupt):
        begun.set()
        bench.saves.save(bench.state)
    bench.saves.close()
    assert bench.steps == [0] and not bench.is_open
    assert_sound(bench.run.checkpoints)


def test_a_bug_in_training_costs_nothing_of_the_save_that_is_under_way(tmp_path: Path, disk: Disk) -> None:
    hold, task = Hold(disk, "model.safetensors", number=4), Squares()

    def bug() -> None:
        assert hold.reached.wait(FOREVER)
        raise RuntimeError("a bug in the model")

    at_update(task, 5, bug)
    with pytest.raises(RuntimeError, match="a bug in the model"):
        go(tmp_path / "run", keep=EACH_STEP, task=task)
    assert steps(tmp_path / "run" / runs.CHECKPOINTS) == [1, 2, 3, 4]
    assert_sound(tmp_path / "run" / runs.CHECKPOINTS)


MOMENTS = ("metrics.jsonl$", "step_00000003.*/model.safetensors$", "step_00000003.*/manifest.json$", "checkpoints$")
BOTH = (signal.SIGINT, signal.SIGTERM)


def signalled(zygote: Zygote, directory: Path, moment: str, number: int, *, times: int) -> Ended:
    order = ("train.py", *BY_STEP, f"hydra.run.dir={directory}")
    return zygote.run("tools.signalled", moment, str(int(number)), str(times), *order)


def goes_on_as_if_nothing_happened(zygote: Zygote, directory: Path, whole: Run) -> None:
    ended = zygote.run("resume.py", f"run={directory}", "checkpoint.every_n_steps=4")
    assert ended.status == 0, ended.output
    assert diff.diff_runs(whole, runs.read(directory)) == []
    assert_sound(directory / runs.CHECKPOINTS)


@pytest.mark.parametrize("number, moment", list(zip(BOTH * 2, MOMENTS)), ids=str)
def test_a_signal_in_the_middle_of_a_save_loses_nothing(
    zygote: Zygote, whole: Run, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    directory = tmp_path / "run"
    ended = signalled(zygote, directory, moment, number, times=1)
    assert ended.status == 128 + number and "Traceback" not in ended.output, ended.output
    newest, damaged = checkpoint.latest(directory / runs.CHECKPOINTS)
    assert newest is not None and damaged == []
    assert f"Interrupted after epoch 0, step {newest.state['step']}. Nothing is lost." in ended.output
    assert 0 < newest.state["batch"] < 6, "in the middle of an epoch"
    assert_sound(directory / runs.CHECKPOINTS)
    assert runs.read(directory).record["status"] == "interrupted"
    goes_on_as_if_nothing_happened(zygote, directory, whole)


@pytest.mark.parametrize("moment", MOMENTS[1::2])
def test_a_second_ctrl_c_in_the_middle_of_a_save_loses_no_more_than_what_came_after_it(
    zygote: Zygote, whole: Run, tmp_path: Path, moment: str
) -> None:
    directory = tmp_path / "run"
    ended = signalled(zygote, directory, moment, signal.SIGINT, times=2)
    assert ended.status == 130 and "Traceback" not in ended.output, ended.output
    assert f"Stopped at once. To go on: python resume.py run={directory}" in ended.output
    newest, damaged = checkpoint.latest(directory / runs.CHECKPOINTS)
    assert newest is not None and damaged == []
    assert newest.state["step"] == (1 if moment == "checkpoints$" else 3), "the one that was being written"
    assert_sound(directory / runs.CHECKPOINTS)
    goes_on_as_if_nothing_happened(zygote, directory, whole)


def test_a_second_sigterm_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(
    zygote: Zygote, whole: Run, tmp_path: Path
) -> None:
    """It ends the process at once, as `kill -9` does. What that leaves is cleared away by the next start."""
    directory = tmp_path / "run"
    ended = signalled(zygote, directory, "step_00000003.*/model.safetensors$", signal.SIGTERM, times=2)
    assert ended.status == -signal.SIGTERM, ended.output
    newest, damaged = checkpoint.latest(directory / runs.CHECKPOINTS)
    assert newest is not None and newest.state["step"] == 2 and damaged == []
    goes_on_as_if_nothing_happened(zygote, directory, whole)


def test_a_run_that_ends_while_a_save_is_under_way_has_both_checkpoints(
    zygote: Zygote, whole: Run, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    order = ("train.py", *BY_STEP, "checkpoint.keep_last=2", "checkpoint.keep_best=0", f"hydra.run.dir={directory}")
    ended = zygote.run("tools.signalled", "step_00000012.*/model.safetensors$", "0", "0", *order)
    assert ended.status == 0, ended.output
    assert checkpoint.names(directory / runs.CHECKPOINTS) == ["epoch_0001_step_00000012", "epoch_0002_step_00000012"]
    assert_sound(directory / runs.CHECKPOINTS)
    assert diff.diff_runs(whole, runs.read(directory)) == []


# By the clock


class Clock:
    """Stands still, but for each update, which takes so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
        self.now = 1e6
        self.task = Squares()
        self.task.on_call = lambda training: self._advance(seconds if training else 0.0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def _advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    "seconds, minutes, expected",
    [
        (20.0, 1, [3, 6, 9, 12, 12]),
        (19.875, 1, [4, 8, 12, 12]),
        (20.125, 1, [3, 6, 9, 12, 12]),
        (600.0, 1, [*range(1, 13), 12]),
        (1.5, 0.1, [4, 8, 12, 12]),
        (30.0, 1.25, [3, 6, 9, 12, 12]),
        (60.0, 12.5, [12]),
        (60.0, None, [12]),
    ],
    ids=str,
)
def test_a_checkpoint_is_made_once_that_many_minutes_have_passed_since_the_last_and_no_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, minutes: float | None, expected: list[int]
) -> None:
    clock = Clock(monkeypatch, seconds=seconds)
    keep = {"every_n_minutes": minutes, "every_n_epochs": None}
    fitted = go(tmp_path / "run", keep=keep, task=clock.task, max_epochs=2)
    assert steps(fitted.run.checkpoints) == expected


def test_minutes_are_counted_from_any_checkpoint_and_from_the_start_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, seconds=60)
    keep = {"every_n_minutes": 4, "every_n_epochs": 1}
    first = go(tmp_path / "run", keep=keep, task=clock.task, stop_at=9)
    assert steps(first.run.checkpoints) == [4, 6, 9], "at the epoch's end 2 minutes later, and 3 minutes after that"
    clock.now += 1e6
    second = go(tmp_path / "run", keep=keep, task=clock.task)
    assert steps(second.run.checkpoints) == [4, 6, 9, 12, 16, 18], "nothing is due at once because the process was away"


@pytest.mark.parametrize(
    "value, fault",
    [
        (0, "checkpoint.every_n_minutes=0: must be greater than 0."),
        (-0.0, "checkpoint.every_n_minutes=-0.0: must be greater than 0."),
        (-1, "checkpoint.every_n_minutes=-1: must be greater than 0."),
        (-0.5, "checkpoint.every_n_minutes=-0.5: must be greater than 0."),
        (float("nan"), "checkpoint.every_n_minutes=nan: must be finite."),
        (float("inf"), "checkpoint.every_n_minutes=inf: must be finite."),
        ("5", "checkpoint.every_n_minutes='5': must be a number or null, and is text."),
        (True, "checkpoint.every_n_minutes=True: must be a number or null, and is a boolean."),
        ([5], "checkpoint.every_n_minutes=[5]: must be a number or null, and is a list."),
    ],
    ids=str,
)
def test_minutes_that_mean_nothing_are_refused_in_one_line(value: object, fault: str) -> None:
    config: dict[str, object] = {"seed": 0, "data": {"batch_size": 2}, "tracker": {"kind": "none"}}
    assert read_settings(config | {"checkpoint": {"every_n_minutes": value}}) == (None, [fault])


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_start_with_minutes_that_mean_nothing_is_refused_and_leaves_nothing(
    zygote: Zygote, tmp_path: Path, value: str
) -> None:
    order = ("tracker=none", f"checkpoint.every_n_minutes={value}", f"hydra.run.dir={tmp_path / 'run'}")
    ended = zygote.run("train.py", *order)
    assert ended.status == 2
    assert ended.output == f"error: checkpoint.every_n_minutes={value}: must be greater than 0.\n"
    assert not (tmp_path / "run").exists()


# Whenever it is made


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A run that saves at its end, and at no other time."""
    with rng.isolated():
        return go(tmp_path_factory.mktemp("never") / "run", keep={"every_n_epochs": None})


@pytest.mark.parametrize(
    "keep",
    [
        {"every_n_steps": 1, "keep_last": 2},
        {"every_n_steps": 4, "async_save": False},
        {"every_n_minutes": 1},
        {"every_n_minutes": 2, "every_n_steps": 4, "every_n_epochs": 2, "keep_last": 1},
    ],
    ids=str,
)
def test_a_run_is_the_same_however_often_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never: Fitted, keep: dict[str, Any]
) -> None:
    clock = Clock(monkeypatch, seconds=25)
    fitted = go(tmp_path / "run", keep=keep, task=clock.task)
    assert never.checkpoints == [(3, 18)]
    assert_same_run(fitted, never)
    last = checkpoint.names(never.run.checkpoints)[-1]
    assert contents(fitted.run.checkpoints / last) == contents(never.run.checkpoints / last)


@pytest.mark.parametrize("cadence", ["checkpoint.every_n_steps=1", "checkpoint.every_n_minutes=1e-6"])
def test_a_real_run_is_the_same_saved_after_every_update_or_never(
    zygote: Zygote, whole: Run, tmp_path: Path, cadence: str
) -> None:
    often = train(zygote, tmp_path / "run", *REAL, cadence, "checkpoint.keep_last=99")
    assert steps(often.checkpoints) == [*range(1, 7), *range(6, 13), 12] and steps(whole.checkpoints) == [12]
    assert diff.diff_runs(whole, often) == []


def test_every_checkpoint_made_in_the_middle_of_an_epoch_counts_on_the_lines_of_its_own_step(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", keep={"every_n_steps": 1}, log_every_n_steps=1, max_steps=BATCHES + 3)
    logged = [line["step"] for line in history.read_history(fitted.run.metrics)]
    for name in checkpoint.names(fitted.run.checkpoints):
        state = checkpoint.load(fitted.run.checkpoints / name).state
        # The line of an epoch's last update is its epoch's, and comes after the validation.
        waits = state["batch"] == BATCHES
        assert logged[: state["history_lines"]] == list(range(1, state["step"] + 1 - waits))
