"""A small training through `fit`, in this process: from the newest checkpoint of a directory, as a new process would."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import checkpoint
from savepoint.commands import diff
from savepoint.config import read_settings
from savepoint.data.batches import Batches
from savepoint.runs import Run, history
from savepoint.system import rng
from savepoint.system.signals import Stop
from savepoint.trackers.none import NoTracker
from savepoint.training import state as states
from savepoint.training.loop import fit
from savepoint.training.optimization import NoSchedule, Optimization, Scaler
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome

SAMPLES = 11  # in batches of 2: five, and one of a single sample
BATCHES = 6


class Noisy:
    """Pairs whose loading draws, so that a batch loaded twice or in another order is another batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs, self.targets = torch.randn(SAMPLES, 3, generator=generator), torch.arange(SAMPLES) / SAMPLES

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[chosen] + torch.randn(len(chosen), 3) / 8, self.targets[chosen]


class Squares:
    metrics = ("absolute",)

    def __init__(self) -> None:
        self.on_call: Callable[[bool], None] = lambda training: None

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        self.on_call(model.training)
        errors = model(batch[0]).squeeze(1) - batch[1]
        return Outcome(errors.square().mean(), len(errors), {"absolute": errors.detach().abs().sum()})

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        return {"absolute": float(sums["absolute"]) / samples}


@dataclass
class Watcher:
    """A Progress that asks for a stop after update `at`, and remembers what it was told."""

    stop: Stop
    at: int | None = None
    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def advance(self, *, epoch: int, step: int) -> None:
        self.steps.append(step)
        if step == self.at:
            self.stop.signal = 15

    def row(self, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self.epochs.append(epoch)


class Awakened(NoTracker):
    def __init__(self, run: Run) -> None:
        self.lines: list[int] = []
        self._run = run

    def wake(self) -> None:
        self.lines.append(len(history.read_history(self._run.metrics)))


@dataclass
class Fitted:
    """What a process left."""

    run: Run
    state: TrainState
    parts: Parts
    saves: Saves
    watcher: Watcher
    tracker: Awakened

    @property
    def lines(self) -> list[dict[str, Any]]:
        return history.read_history(self.run.metrics)

    @property
    def epoch_lines(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "val/loss" in line]

    @property
    def checkpoints(self) -> list[tuple[int, int]]:
        return [(int(name[6:10]), int(name[-8:])) for name in checkpoint.names(self.run.checkpoints)]


def go(
    directory: Path,
    *,
    stop_at: int | None = None,
    scheduler: Any = None,
    interval: str = "step",
    monitor: str | None = None,
    fp16: float | None = None,
    stop: Stop | None = None,
    task: Squares | None = None,
    keep: dict[str, Any] | None = None,
    **trainer: Any,
) -> Fitted:
    """Train in `directory` as a process would: from its newest checkpoint if there is one, everything built anew."""
    config = {
        "seed": 5,
        "data": {"batch_size": 2},
        "tracker": {"kind": "none"},
        "trainer": {"max_epochs": 3, "log_every_n_steps": 2} | trainer,
        "checkpoint": {"keep_last": 99} | (keep or {}),
        "scheduler": {"interval": interval, "monitor": monitor},
    }
    full, faults = read_settings(config)
    assert full is not None, faults
    rng.seed(full.seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.5), nn.Dropout(0.3), nn.Linear(4, 1))
    # In training, batch norm refuses a batch of one sample: its statistics are frozen, but for the running ones' shape.
    model[1].eval()
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign,assignment]
    model.eval()  # as libraries of pretrained models give them
    optimizer = torch.optim.Adam(list(model.named_parameters()), lr=0.05)
    schedule = scheduler(optimizer) if scheduler else NoSchedule()
    scaler = Scaler("cpu", enabled=fp16 is not None, init_scale=fp16 or 1.0)
    state = TrainState(model, {"": Optimization(optimizer, schedule, scaler)})
    batches = [Batches(Noisy(), split=split, settings=full.data, seed=full.seed) for split in ("train", "val")]
    parts = Parts(full, task or Squares(), model, batches[0], batches[1], torch.device("cpu"), None)

    directory.mkdir(exist_ok=True)
    run = Run(directory, {"id": "abcd1234"})
    newest, damaged = checkpoint.latest(run.checkpoints)
    assert damaged == []
    if newest is not None:
        states.restore(state, newest)
    history.cut_history(run.metrics, lines=state.history_lines)
    history.cut_usage(run.usage, step=state.step)
    saves = Saves(
        run,
        full,
        config="",
        patch=None,
        provenance={"git": {"commit": None}, "config_sha256": "0"},
        resumed_from=newest.path.name if newest else None,
    )
    stop = stop or Stop()
    watcher, tracker = Watcher(stop, stop_at), Awakened(run)
    fitted = Fitted(run, state, parts, saves, watcher, tracker)
    try:
        fit(state, parts, saves, tracker, watcher, stop)
    finally:
        saves.close()
    return fitted


def parameters(fitted: Fitted) -> list[Tensor]:
    return [parameter.detach() for parameter in fitted.state.model.parameters()]


def assert_same_run(one: Fitted, other: Fitted) -> None:
    """Bit for bit: the newest checkpoint, and every line of the history but for the clock."""
    assert diff.diff_runs(one.run, other.run) == []
    assert all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(other), strict=True))
    assert len(one.lines) == len(other.lines) > 0
