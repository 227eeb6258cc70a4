"""fit(): from wherever the state is to the planned end, or until somebody asks it to stop."""

import errno
import functools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tools import fitting
from tools.fitting import BATCHES, Fitted, Squares, assert_same_run, go, parameters
from torch import Tensor
from torch.optim import lr_scheduler

from savepoint import checkpoint
from savepoint.system import rng
from savepoint.system.signals import Stop
from savepoint.training.loop import finished
from savepoint.training.state import TrainState
from savepoint.training.task import Outcome


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Three epochs that nobody interrupted."""
    with rng.isolated():
        return go(tmp_path_factory.mktemp("loop") / "whole")


# Interruption


SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "step": {"scheduler": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=18), "interval": "step"},
    "epoch": {"scheduler": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5), "interval": "epoch"},
    "plateau": {
        "scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
        "interval": "epoch",
        "monitor": "val/loss",
    },
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_stopped_around_an_epochs_end_and_resumed_equals_one_that_was_not(
    tmp_path: Path, schedule: dict[str, Any], accumulate: int
) -> None:
    at_the_end = {"every_n_epochs": None}
    whole = go(tmp_path / "whole", accumulate=accumulate, keep=at_the_end, **schedule)
    per_epoch = math.ceil(BATCHES / accumulate)
    total = 3 * per_epoch
    assert whole.state.step == total
    for at in sorted({1, per_epoch - 1, per_epoch, per_epoch + 1, total - 1}):
        first = go(tmp_path / f"{at}", accumulate=accumulate, stop_at=at, keep=at_the_end, **schedule)
        assert first.state.step == at
        second = go(tmp_path / f"{at}", accumulate=accumulate, keep=at_the_end, **schedule)
        assert second.watcher.steps == list(range(at + 1, total + 1))
        assert_same_run(second, whole)


def test_a_run_stopped_after_every_update_equals_one_that_was_not(tmp_path: Path, whole: Fitted) -> None:
    for at in range(1, 19):
        last = go(tmp_path / "pieces", stop_at=at)
    assert_same_run(go(tmp_path / "pieces"), whole)
    assert last.state.step == 18


def test_a_run_goes_on_in_the_order_that_it_began_with(tmp_path: Path, whole: Fitted) -> None:
    """Runs of an older version have another order than runs that begin today."""
    with pytest.MonkeyPatch.context() as before:
        before.setattr(fitting, "TrainState", functools.partial(TrainState, order="randperm"))
        older = go(tmp_path / "older")
        go(tmp_path / "resumed", stop_at=8)
    assert_same_run(go(tmp_path / "resumed"), older)
    assert [line["train/loss"] for line in older.epoch_lines] != [line["train/loss"] for line in whole.epoch_lines]


def test_a_stop_in_the_middle_of_an_epoch_saves_where_it_stands(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", stop_at=BATCHES + 2)
    newest, _ = checkpoint.latest(fitted.run.checkpoints)
    assert newest is not None and newest.path.name == "epoch_0001_step_00000008"
    assert (newest.state["epoch"], newest.state["step"], newest.state["batch"]) == (1, BATCHES + 2, 2)
    assert newest.state["samples"] == 4 and "loss" in newest.state["sums"]
    assert not finished(fitted.state, fitted.parts)


@pytest.mark.parametrize("batch", [1, 3, BATCHES])
def test_a_stop_during_validation_is_as_if_validation_had_not_begun(tmp_path: Path, whole: Fitted, batch: int) -> None:
    stop, task, seen = Stop(), Squares(), []

    def on_call(training: bool) -> None:
        seen.append(training)
        if seen.count(False) == BATCHES + batch:  # in the second epoch's validation
            stop.signal = 2

    task.on_call = on_call
    first = go(tmp_path / "run", stop=stop, task=task)
    if batch < BATCHES:
        assert (first.state.epoch, first.state.step, first.state.batch) == (1, 2 * BATCHES, BATCHES)
        assert len(first.epoch_lines) == 1
    else:  # it came with the last batch: nothing was left to give up
        assert (first.state.epoch, first.state.step, first.state.batch) == (2, 2 * BATCHES, 0)
    assert_same_run(go(tmp_path / "run"), whole)


def test_a_stop_at_the_last_update_of_an_epoch_leaves_its_validation_to_the_resumed_run(
    tmp_path: Path, whole: Fitted
) -> None:
    first = go(tmp_path / "run", stop_at=BATCHES)
    assert (first.state.epoch, first.state.batch) == (0, BATCHES)
    assert first.epoch_lines == []
    assert_same_run(go(tmp_path / "run"), whole)


def test_a_stop_asked_for_before_the_first_update_saves_the_beginning(tmp_path: Path, whole: Fitted) -> None:
    first = go(tmp_path / "run", stop=Stop(15))
    assert first.checkpoints == [(0, 0)] and first.watcher.steps == []
    assert_same_run(go(tmp_path / "run"), whole)


def test_a_kill_loses_what_came_after_the_newest_checkpoint_and_repeats_it_with_the_same_bits(
    tmp_path: Path, whole: Fitted
) -> None:
    """Lines that the checkpoint does not know are cut, a torn one among them, and logged again."""
    killed = go(tmp_path / "run", stop_at=16, keep={"every_n_steps": 5})
    newest = killed.run.checkpoints / "epoch_0002_step_00000016"
    checkpoint.set_aside(newest)
    with open(killed.run.metrics, "ab") as file:
        file.write(b'{"step": 18, "epo')
    assert_same_run(go(tmp_path / "run"), whole)


# The end


@pytest.mark.parametrize("max_steps, epoch, batch", [(1, 0, 1), (BATCHES - 1, 0, BATCHES - 1), (BATCHES + 1, 1, 1)])
def test_max_steps_ends_training_within_an_epoch(tmp_path: Path, max_steps: int, epoch: int, batch: int) -> None:
    fitted = go(tmp_path / "run", max_steps=max_steps)
    assert (fitted.state.step, fitted.state.epoch, fitted.state.batch) == (max_steps, epoch, batch)
    assert finished(fitted.state, fitted.parts)
    assert len(fitted.epoch_lines) == epoch, "half an epoch is not measured as if it were one"
    assert fitted.checkpoints[-1] == (epoch, max_steps)


@pytest.mark.parametrize("epochs", [1, 2])
def test_max_steps_at_an_epochs_end_still_gets_that_epochs_validation(tmp_path: Path, epochs: int) -> None:
    fitted = go(tmp_path / "run", max_steps=epochs * BATCHES, max_epochs=None)
    assert (fitted.state.step, fitted.state.epoch, fitted.state.batch) == (epochs * BATCHES, epochs, 0)
    assert [line["epoch"] for line in fitted.epoch_lines] == list(range(1, epochs + 1))
    assert finished(fitted.state, fitted.parts)


def test_max_steps_at_an_epochs_end_still_gets_that_validation_if_it_was_stopped_in_it(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", max_steps=BATCHES, max_epochs=None)
    first = go(tmp_path / "run", max_steps=BATCHES, max_epochs=None, stop_at=BATCHES)
    assert not finished(first.state, first.parts)
    assert_same_run(go(tmp_path / "run", max_steps=BATCHES, max_epochs=None), whole)


def test_max_epochs_ends_training_if_it_comes_before_max_steps(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", max_steps=1000, max_epochs=2)
    assert (fitted.state.step, fitted.state.epoch) == (2 * BATCHES, 2)


@pytest.mark.parametrize("short", [{"max_steps": 8}, {"max_steps": BATCHES}, {"max_epochs": 1}], ids=str)
def test_a_run_that_is_continued_past_its_end_equals_one_that_was_planned_longer(
    tmp_path: Path, whole: Fitted, short: dict[str, int]
) -> None:
    go(tmp_path / "run", **short)
    assert_same_run(go(tmp_path / "run"), whole)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run")
    before = {path: path.read_bytes() for path in fitted.run.directory.rglob("*") if path.is_file()}
    again = go(tmp_path / "run")
    assert again.watcher.steps == []
    assert {path: path.read_bytes() for path in fitted.run.directory.rglob("*") if path.is_file()} == before


def test_the_window_ends_with_the_epoch(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", accumulate=4, max_epochs=2)
    assert fitted.state.step == 4  # of four batches, and of two


def test_accumulating_more_batches_than_there_are_makes_one_update_an_epoch(tmp_path: Path) -> None:
    assert go(tmp_path / "run", accumulate=100).state.step == 3


# Schedules


def rates(fitted: Fitted) -> list[float]:
    return [line["lr"] for line in fitted.lines if "train/recent_loss" in line]


def test_a_schedule_by_step_follows_updates(tmp_path: Path) -> None:
    options: dict[str, Any] = {"scheduler": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step))}
    fitted = go(tmp_path / "run", max_epochs=2, log_every_n_steps=1, interval="step", **options)
    assert rates(fitted) == [0.05 * (1 / (1 + step)) for step in range(12)]
    assert [line["lr"] for line in fitted.epoch_lines] == [0.05 * (1 / 6), 0.05 * (1 / 12)]


def test_a_schedule_by_epoch_follows_epochs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"scheduler": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch))}
    fitted = go(tmp_path / "run", max_epochs=2, log_every_n_steps=1, interval="epoch", **options)
    assert rates(fitted) == [0.05] * BATCHES + [0.025] * BATCHES


def test_a_plateau_schedule_follows_its_metric(tmp_path: Path) -> None:
    seen: list[float] = []

    class Plateau(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            seen.append(metrics)
            super().step(metrics, epoch)

    fitted = go(tmp_path / "run", scheduler=Plateau, interval="epoch", monitor="train/absolute")
    assert seen == [line["train/absolute"] for line in fitted.epoch_lines] and len(seen) == 3


def test_a_schedule_follows_updates_that_the_scaler_skips_without_a_warning(tmp_path: Path) -> None:
    """Most fp16 runs begin with a skipped update, and torch would warn of a schedule that steps before the optimizer."""

    class Large(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            outcome = super().__call__(model, batch)
            return Outcome(outcome.loss * 2.0**40, outcome.samples, outcome.sums)

    options: dict[str, Any] = {"scheduler": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5), "interval": "step"}
    fitted = go(tmp_path / "run", max_steps=3, log_every_n_steps=1, fp16=2.0**120, task=Large(), **options)
    assert fitted.state.optimizers[""].scaler.get_scale() == 2.0**117, "the updates were to be skipped"
    assert (fitted.state.step, rates(fitted)) == (3, [0.05, 0.025, 0.0125])


# What is saved when


@pytest.mark.parametrize(
    "keep, expected",
    [
        ({}, [(1, 6), (2, 12), (3, 18)]),
        ({"every_n_epochs": 2}, [(2, 12), (3, 18)]),
        ({"every_n_epochs": None}, [(3, 18)]),
        ({"every_n_epochs": None, "every_n_steps": 4}, [(0, 4), (1, 8), (1, 12), (2, 16), (3, 18)]),
        ({"every_n_epochs": 3, "every_n_steps": 6}, [(0, 6), (1, 12), (2, 18), (3, 18)]),
        ({"keep_last": 1, "keep_best": 0}, [(3, 18)]),
    ],
    ids=str,
)
def test_checkpoints_are_where_the_cadence_asks_for_them_and_at_the_end(
    tmp_path: Path, keep: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    assert go(tmp_path / "run", keep=keep).checkpoints == expected


def test_every_checkpoint_of_a_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", max_epochs=2, keep={"every_n_steps": 1})
    for name in checkpoint.names(whole.run.checkpoints)[:-1]:
        directory = tmp_path / name
        shutil.copytree(whole.run.directory, directory)
        for later in checkpoint.names(directory / "checkpoints"):
            if later > name:
                shutil.rmtree(directory / "checkpoints" / later)
        assert_same_run(go(directory, max_epochs=2), whole)


def test_neither_cadence_nor_logging_changes_what_is_trained(tmp_path: Path) -> None:
    one = go(tmp_path / "one", log_every_n_steps=None, keep={"every_n_epochs": None})
    two = go(tmp_path / "two", log_every_n_steps=1, keep={"every_n_steps": 1})
    assert all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(two), strict=True))
    known = ("train/loss", "val/loss", "train/absolute", "val/absolute", "lr")
    assert [[line[name] for name in known] for line in one.epoch_lines] == [
        [line[name] for name in known] for line in two.epoch_lines
    ]


def test_the_history_is_on_the_disk_before_the_checkpoint_that_counts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(path.name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    fitted = go(tmp_path / "run", max_epochs=1)
    assert synced.index("metrics.jsonl") < synced.index("manifest.json")
    newest, _ = checkpoint.latest(fitted.run.checkpoints)
    assert newest is not None and newest.state["history_lines"] == len(fitted.lines) == 3


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_full_disk_in_mid_training_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, whole: Fitted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    real = getattr(os, call)
    full = Squares()
    training = [0]

    def on_call(is_training: bool) -> None:
        training[0] += is_training
        # The disk is full from the second epoch on, and has room again in the third.
        monkeypatch.setattr(os, call, no_space if BATCHES < training[0] <= 2 * BATCHES else real)

    full.on_call = on_call
    with caplog.at_level(logging.WARNING):
        fitted = go(tmp_path / "run", task=full, keep={"async_save": False})
    assert fitted.checkpoints == [(1, 6), (3, 18)]
    assert [record.getMessage() for record in caplog.records] == [
        "No checkpoint at step 12: No space left on device. Training goes on; epoch_0001_step_00000006 is kept."
    ]
    assert_same_run(fitted, whole)


def test_a_full_disk_at_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no next checkpoint: whoever started the run must know that it is not saved."""
    monkeypatch.setattr(os, "rename", no_space)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path / "run", max_epochs=1)


def test_a_checkpoint_that_cannot_be_deleted_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def refuse(source: Any, target: Any) -> None:
        if ".tmp-pruned" in str(target):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    fitted = go(tmp_path / "run", keep={"keep_last": 1, "keep_best": 0})
    assert len(fitted.checkpoints) == 3


def test_the_checkpoint_resumed_from_is_kept_until_a_newer_one_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "run", stop_at=2)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "rename", no_space)
        go(tmp_path / "run", keep={"keep_last": 1, "keep_best": 0})
    resumed = go(tmp_path / "run", keep={"keep_last": 1, "keep_best": 0})
    assert resumed.watcher.steps[0] == 3 and resumed.checkpoints == [(3, 18)]


def test_a_checkpoint_says_which_run_it_belongs_to(tmp_path: Path) -> None:
    newest, _ = checkpoint.latest(go(tmp_path / "run", max_epochs=1).run.checkpoints)
    assert newest is not None and newest.provenance["run_id"] == "abcd1234" and newest.config == ""
    assert json.loads((newest.path / "provenance.json").read_text())["tracker_run_id"] is None


# What is logged


def test_an_epochs_line_holds_every_metric_as_a_mean_over_samples(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", max_epochs=1, log_every_n_steps=None)
    (line,) = fitted.epoch_lines
    assert set(line) == {"step", "epoch", "time", "train/loss", "train/absolute", "val/loss", "val/absolute", "lr", "system/samples_per_second"}  # fmt: skip
    assert (line["step"], line["epoch"]) == (BATCHES, 1)
    model = fitted.state.model.eval()
    squares = [(model(inputs).squeeze(1) - targets).square() for inputs, targets in fitted.parts.val.epoch(0)]
    assert line["val/loss"] == pytest.approx(torch.cat(squares).mean().item(), rel=1e-6)


def test_recent_loss_is_the_mean_over_the_samples_since_it_was_last_logged(tmp_path: Path) -> None:
    each = go(tmp_path / "each", max_epochs=2, log_every_n_steps=1)
    some = go(tmp_path / "some", max_epochs=2, log_every_n_steps=4)
    loss = {line["step"]: line["train/recent_loss"] for line in each.lines if "train/recent_loss" in line}
    sizes = {step: 1 if step % BATCHES == 0 else 2 for step in loss}

    def mean(*steps: int) -> float:
        return sum(loss[step] * sizes[step] for step in steps) / sum(sizes[step] for step in steps)

    found = {line["step"]: line["train/recent_loss"] for line in some.lines if "train/recent_loss" in line}
    expected = {4: mean(1, 2, 3, 4), 8: mean(7, 8), 12: mean(9, 10, 11, 12)}  # never across two epochs
    assert found == pytest.approx(expected, rel=1e-6)
    assert [line["train/loss"] for line in each.epoch_lines] == pytest.approx([mean(*range(1, 7)), mean(*range(7, 13))])


def test_progress_and_tracker_are_told_of_every_line(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", max_epochs=2, log_every_n_steps=4)
    assert fitted.watcher.steps == list(range(1, 13)) and fitted.watcher.epochs == [1, 2]
    assert fitted.tracker.lines == [1, 2, 3, 4] == list(range(1, len(fitted.lines) + 1))


def test_a_step_has_one_line(tmp_path: Path) -> None:
    """The end of an epoch too, where both are due: a tracker keeps one point for each key and step."""
    fitted = go(tmp_path / "run", max_epochs=2, log_every_n_steps=1)
    assert [line["step"] for line in fitted.lines] == list(range(1, 2 * BATCHES + 1))
    assert all("train/recent_loss" in line for line in fitted.lines)


def test_training_is_in_training_mode_from_the_start_and_after_validation(tmp_path: Path) -> None:
    task, seen = Squares(), []
    task.on_call = seen.append
    go(tmp_path / "run", task=task, max_epochs=2)
    assert seen == ([True] * BATCHES + [False] * BATCHES) * 2


# The best


@pytest.mark.parametrize("mode, pick", [("min", min), ("max", max)])
def test_the_best_is_remembered_with_its_place(tmp_path: Path, mode: str, pick: Callable[..., float]) -> None:
    fitted = go(tmp_path / "run", keep={"mode": mode, "monitor": "train/loss"}, max_epochs=4)
    values = [line["train/loss"] for line in fitted.epoch_lines]
    epoch = values.index(pick(values)) + 1
    assert fitted.state.best == {"metric": "train/loss", "value": pick(values), "epoch": epoch, "step": epoch * BATCHES}


class Planned(Squares):
    """Validation measures these, one after the other."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self._values = iter(values)
        self._train = True

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        return {"absolute": next(self._values)}


@pytest.mark.parametrize(
    "mode, values, epoch",
    [
        ("min", [math.nan, 3.0, 2.0], 3),
        ("min", [3.0, math.nan, 4.0], 1),
        ("max", [math.nan, 3.0, 2.0], 2),
        ("min", [2.0, 2.0, 2.0], 1),
        ("max", [-math.inf, math.nan, -math.inf], 1),
        ("min", [math.nan, math.nan, math.nan], None),
    ],
    ids=str,
)
def test_nan_is_never_best_and_always_beaten(tmp_path: Path, mode: str, values: list[float], epoch: int | None) -> None:
    """An epoch's training metrics are computed after those of validation, hence each value twice."""
    task = Planned([value for value in values for _ in range(2)])
    keep = {"mode": mode, "monitor": "val/absolute", "keep_last": 1}
    fitted = go(tmp_path / "run", task=task, keep=keep, log_every_n_steps=None)
    assert (fitted.state.best and fitted.state.best["epoch"]) == epoch
    # The best checkpoint is the one that is kept besides the last.
    assert fitted.checkpoints == sorted({(epoch or 3, 6 * (epoch or 3)), (3, 18)})


def test_without_a_monitor_there_is_no_best(tmp_path: Path) -> None:
    assert go(tmp_path / "run", keep={"monitor": None}, max_epochs=1).state.best is None
