"""Evaluations fall where the config wants them, measure what the task wants, and an interruption of one leaves no trace."""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.fitting import BATCHES, Fitted, Squares, assert_same_run, go
from tools.processes import REPOSITORY
from tools.share import some
from torch import Tensor
from torch.optim import lr_scheduler

from project.tasks.classification import Classification
from savepoint import checkpoint
from savepoint.checkpoint import storage
from savepoint.config import compose
from savepoint.errors import ConfigError
from savepoint.system import rng
from savepoint.system.signals import Stop
from savepoint.training import assemble
from savepoint.trust import validation


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Median(Squares):
    """Measures by itself: the median error, which is no sum over samples. Draws, and leaves its model in another mode."""

    def evaluate(self, model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        assert not model.training and not torch.is_grad_enabled()
        errors = []
        for batch in batches:
            self.on_call(model.training)
            errors.append((model(batch[0]).squeeze(1) - batch[1]).abs())
        torch.rand(3)
        return {"median": torch.cat(errors).median(), "loss": torch.cat(errors).square().mean()}


def interrupted_in_evaluation(task: Squares, stop: Stop, at: int) -> None:
    """Ask for a stop in the `at`-th batch of validation of this process."""
    seen: list[bool] = []

    def on_call(training: bool) -> None:
        seen.append(training)
        if seen.count(False) == at:
            stop.signal = 15

    task.on_call = on_call


def evaluated(fitted: Fitted) -> list[int]:
    return [line["step"] for line in fitted.epoch_lines]


@pytest.mark.parametrize(
    "trainer, steps",
    [
        ({}, [6, 12, 18]),
        ({"evaluate_first": True}, [0, 6, 12, 18]),
        ({"evaluate_every_n_steps": 4}, [4, 8, 12, 16, 18]),
        ({"evaluate_every_n_steps": 4, "max_steps": 10}, [4, 8, 10]),
        ({"evaluate_every_n_steps": 6, "evaluate_first": True}, [0, 6, 12, 18]),
        ({"evaluate_every_n_steps": 100}, [18]),
        ({"evaluate_every_n_steps": 4, "accumulate": 4}, [4, 6]),
    ],
    ids=str,
)
def test_evaluations_fall_where_the_config_wants_them(
    tmp_path: Path, trainer: dict[str, Any], steps: list[int]
) -> None:
    fitted = go(tmp_path / "run", **trainer)
    assert evaluated(fitted) == steps
    lines = [line["step"] for line in fitted.lines]
    assert lines == sorted(set(lines)), "a step has one line"
    first = fitted.epoch_lines[0]
    assert ("train/loss" in first) == ("lr" in first) == (first["step"] > 0)


def test_training_metrics_are_those_since_the_evaluation_before(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", evaluate_every_n_steps=4, log_every_n_steps=1)
    losses = {line["step"]: line["train/recent_loss"] for line in fitted.lines}
    weights = {step: 1 if step % BATCHES == 0 else 2 for step in losses}
    begin = 0
    for line in fitted.epoch_lines:
        steps = range(begin + 1, line["step"] + 1)
        mean = sum(losses[step] * weights[step] for step in steps) / sum(weights[step] for step in steps)
        assert line["train/loss"] == pytest.approx(mean, rel=1e-6)
        begin = line["step"]
    assert [line["epoch"] for line in fitted.epoch_lines] == [0, 1, 2, 2, 3]


PLATEAU: dict[str, Any] = {
    "scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "interval": "epoch",
    "monitor": "val/loss",
}
KEPT = {"every_n_steps": 4, "keep_last": 1, "keep_best": 2}
RUNS: dict[str, dict[str, Any]] = {
    "by steps": {"evaluate_every_n_steps": 4},
    "by steps, saved at the same": {"evaluate_every_n_steps": 4, "keep": KEPT},
    "at the end of epochs too": {"evaluate_every_n_steps": 3, "keep": {"every_n_steps": 3}},
    "first": {"evaluate_first": True},
    "first, by steps, ended within an epoch": {"evaluate_first": True, "evaluate_every_n_steps": 4, "max_steps": 10},
    "ended with an epoch": {"evaluate_every_n_steps": 4, "max_steps": 2 * BATCHES, "max_epochs": None},
    "patience ends with an epoch": {
        "evaluate_every_n_steps": BATCHES,
        "patience": 1,
        "keep": {"monitor": "train/loss", "mode": "max"},
    },
    "plateau": {"evaluate_every_n_steps": 2, **PLATEAU},
    "windows": {"evaluate_every_n_steps": 2, "accumulate": 4},
    "patience": {"evaluate_every_n_steps": 2, "patience": 2, "keep": {"monitor": "train/loss", "mode": "max"}},
}


# In `make test` every second run, with one kind of evaluation, by turns.
EITHER = {(name, (Squares, Median)[number % 4 // 2]) for number, name in enumerate(RUNS) if number % 2 == 0}


@pytest.mark.parametrize(
    ("name", "kind"), some(itertools.product(RUNS, (Squares, Median)), lambda case: case in EITHER)
)
def test_a_run_stopped_in_an_evaluation_or_beside_it_equals_one_that_was_not(
    tmp_path: Path, name: str, kind: type[Squares]
) -> None:
    whole = go(tmp_path / "whole", task=kind(), **RUNS[name])
    # A process is stopped after an update, and the next one in the evaluation that is due then, if one is.
    for at in sorted({0, 1, *evaluated(whole)}):
        directory = tmp_path / f"{at}"
        go(directory, task=kind(), stop_at=at or None, stop=Stop() if at else Stop(15), **RUNS[name])
        for batch in (1, BATCHES - 1, BATCHES):
            task, stop = kind(), Stop()
            interrupted_in_evaluation(task, stop, batch)
            go(directory, task=task, stop=stop, **RUNS[name])
        second = go(directory, task=kind(), **RUNS[name])
        assert_same_run(second, whole)
        assert second.state.stale == whole.state.stale and second.state.best == whole.state.best
        if RUNS[name].get("keep") is KEPT:
            assert second.checkpoints == whole.checkpoints
        assert evaluated(second) == evaluated(whole)


def test_a_run_evaluated_by_steps_and_continued_past_its_end_has_the_weights_of_one_planned_longer(
    tmp_path: Path,
) -> None:
    """The evaluation at the earlier end stays in its history, and no schedule has followed it."""
    longer = go(tmp_path / "longer", evaluate_every_n_steps=4, max_steps=16, **PLATEAU)
    go(tmp_path / "run", evaluate_every_n_steps=4, max_steps=10, **PLATEAU)
    again = go(tmp_path / "run", evaluate_every_n_steps=4, max_steps=16, **PLATEAU)
    assert evaluated(again) == sorted({*evaluated(longer), 10})
    pairs = zip(again.state.model.parameters(), longer.state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert again.state.optimizers[""].scheduler.state_dict() == longer.state.optimizers[""].scheduler.state_dict()


class Planned(Median):
    """Evaluations measure these, one after the other."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self._values = iter(values)

    def evaluate(self, model: Any, batches: Iterable[Any]) -> dict[str, Any]:
        return {"loss": next(self._values)}


def test_patience_counts_evaluations(tmp_path: Path) -> None:
    task = Planned(3.0, 2.0, math.nan, 2.0, 2.5, 1.0)
    fitted = go(tmp_path / "run", task=task, evaluate_every_n_steps=2, patience=3)
    assert fitted.state.step == 10 and fitted.state.best == {
        "metric": "val/loss",
        "value": 2.0,
        "epoch": 0,
        "step": 4,
    }


def test_the_best_checkpoint_is_kept_wherever_it_was_evaluated(tmp_path: Path) -> None:
    task = Planned(*[5.0, 4.0, 1.0, 3.0, 2.0, 4.0, 4.0, 4.0, 4.0])
    keep = {"every_n_epochs": None, "every_n_steps": 1, "keep_last": 1}
    fitted = go(tmp_path / "run", task=task, evaluate_every_n_steps=2, keep=keep)
    # The checkpoint at step 7 has the metrics of step 6, and is not the best for that.
    assert fitted.checkpoints == [(1, 6), (3, 18)] or fitted.checkpoints == [(0, 6), (3, 18)]
    assert checkpoint.best(fitted.run.checkpoints, monitor="val/loss", mode="min")[0].endswith("00000006")


# A checkpoint that lacks its evaluation


def pending(tmp_path: Path) -> Fitted:
    """A run that was stopped in the evaluation of step 4."""
    task, stop = Squares(), Stop()
    interrupted_in_evaluation(task, stop, 1)
    fitted = go(tmp_path / "run", task=task, stop=stop, evaluate_every_n_steps=4)
    assert fitted.checkpoints == [(0, 4)] and fitted.state.evaluated is None
    return fitted


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "refused by the disk"])
def test_a_checkpoint_that_was_being_replaced_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    root, rename, failed = pending(tmp_path).run.checkpoints, os.rename, False

    def failing(source: Path, target: Path) -> None:
        nonlocal failed
        if Path(source).name.startswith(".tmp-epoch") or (failed and dies):
            failed = True
            raise OSError(5, "dead")
        rename(source, target)

    path = root / "epoch_0000_step_00000004"
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    monkeypatch.setattr(storage.os, "rename", failing)
    with pytest.raises(OSError, match="dead"):
        go(tmp_path / "run", evaluate_every_n_steps=4, max_steps=4)
    monkeypatch.undo()
    assert path.exists() is not dies
    checkpoint.clean(root)
    assert [entry.name for entry in root.iterdir()] == [path.name]
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


def test_only_a_checkpoint_without_its_evaluation_is_replaced(tmp_path: Path) -> None:
    fitted = pending(tmp_path)
    path = fitted.run.checkpoints / "epoch_0000_step_00000004"
    again = go(tmp_path / "run", evaluate_every_n_steps=4, max_steps=4)
    assert again.checkpoints == [(0, 4)] and checkpoint.load(path).state["evaluated"] == 4
    inode = path.stat().st_ino
    go(tmp_path / "run", evaluate_every_n_steps=4, max_steps=4)
    assert path.stat().st_ino == inode


# Evaluations of the task's own


def test_an_evaluation_of_the_tasks_own_replaces_the_means(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", task=Median())
    plain = go(tmp_path / "plain", task=Squares())
    assert [{"val/median", "val/loss"} <= line.keys() for line in fitted.epoch_lines] == [True] * 3
    assert all("val/absolute" not in line and "train/absolute" in line for line in fitted.epoch_lines)
    # What it draws and what it measures changes no bit of training.
    pairs = zip(fitted.state.model.parameters(), plain.state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [line["val/loss"] for line in fitted.epoch_lines] == pytest.approx(
        [line["val/loss"] for line in plain.epoch_lines], rel=1e-5
    )


class Swallowing(Median):
    """Catches everything, the end of its batches too."""

    def evaluate(self, model: Any, batches: Iterable[Any]) -> dict[str, Any]:
        try:
            return super().evaluate(model, batches)
        except Exception:
            return {"loss": 0.0}


def test_an_evaluation_that_catches_its_interruption_is_made_again(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", task=Swallowing())
    task, stop = Swallowing(), Stop()
    interrupted_in_evaluation(task, stop, 2)
    first = go(tmp_path / "run", task=task, stop=stop)
    assert first.epoch_lines == []
    assert_same_run(go(tmp_path / "run", task=Swallowing()), whole)


def a(value: Any) -> Callable[..., Any]:
    return lambda self, model, batches: value


@pytest.mark.parametrize(
    "value, message",
    [
        (0.5, "task: evaluate of Median returns a float, and has to return numbers by name"),
        (None, "task: evaluate of Median returns a NoneType"),
        ({"x": "much"}, "task: evaluate of Median returns what is no number"),
        ({"x": torch.zeros(2)}, "task: evaluate of Median returns what is no number"),
        (
            {"other": 1},
            "checkpoint.monitor=val/loss: the evaluation at step 6 did not measure that. It measured train/",
        ),
    ],
    ids=str,
)
def test_what_an_evaluation_returns_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.setattr(Median, "evaluate", a(value))
    with pytest.raises(ConfigError, match=message):
        go(tmp_path / "run", task=Median())


# Before training


class Few(Classification):
    """A task whose `evaluate` looks at some of its batches alone."""

    def evaluate(self, model: Any, batches: Iterator[Any]) -> Mapping[str, float]:
        inputs, targets = next(batches)
        return {"first": float((model(inputs).argmax(1) == targets).float().mean())}


def build(task: Any, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("savepoint.training.build.trust.make", _made(task))
    chosen = compose(["tracker=none", *overrides], REPOSITORY / "conf")
    settings = validation.check_config(chosen, source=REPOSITORY / "src")
    return assemble(chosen, settings, source=REPOSITORY / "src")


def _made(task: Any) -> Callable[..., Any]:
    from savepoint.trust import make

    return lambda node, *, path, source: task if path == "task" else make(node, path=path, source=source)


def test_a_monitor_has_to_be_what_the_evaluation_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Few(), monkeypatch=monkeypatch)
    logged = "train/loss, train/accuracy, val/first."
    assert str(caught.value) == f"checkpoint.monitor=val/loss: nothing logs that. Logged are {logged}"
    build(Few(), "checkpoint.monitor=val/first", monkeypatch=monkeypatch)


class Undefined(Few):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def evaluate(self, model: Any, batches: Iterator[Any]) -> Mapping[str, float]:
        raise self.error


def test_an_evaluation_that_needs_more_samples_is_no_reason_to_refuse_a_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(Undefined(ValueError("one class only")), monkeypatch=monkeypatch)
    told = "evaluate of Undefined was tried on one batch of validation and failed, which more samples may mend"
    assert f"{told}: one class only" in caplog.text
    with pytest.raises(ConfigError, match="do not work together on a validation batch"):
        build(Undefined(TypeError("no such argument")), monkeypatch=monkeypatch)
