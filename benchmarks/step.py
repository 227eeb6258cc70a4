"""What one training step costs: a bare loop, a plain DataLoader loop, Savepoint's fit. `python benchmarks/step.py`

The MLP of conf/ on the digits, batch size 64, AdamW, one thread. The three take turns in every round, so that a noisy
machine disturbs all alike, and each ratio is the median of the rounds' own ratios.

Counted are training steps alone: the rounds end before an epoch does, so nothing is evaluated, and the checkpoint that
`fit` would save at its end is left out. Fetching, shuffling, metrics, progress and metrics.jsonl are counted.
"""

import argparse
import dataclasses
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from project.data.digits import Digits  # noqa: E402
from savepoint import parallel, runs, system, training, trust  # noqa: E402
from savepoint.config import Settings, compose  # noqa: E402
from savepoint.data import Batches  # noqa: E402
from savepoint.trackers import NoTracker  # noqa: E402
from savepoint.training import (  # noqa: E402
    Parts,
    Saves,
    TrainState,
    fit,
    progress,
)

LIMIT, PLAIN, SAVEPOINT = "bare loop", "DataLoader loop", "Savepoint"
Assemble = Callable[[], tuple[TrainState, Parts]]
Timed = Callable[[], float]  # trains a new model and returns the seconds


def bare(assemble: Assemble, images: Tensor, targets: Tensor, steps: int) -> float:
    """The limit: nothing but the model and the optimizer, over batches that were cut and shuffled beforehand."""
    state = assemble()[0]
    model, optimizer = state.model.train(), state.optimizers[""].optimizer
    order = torch.randperm(len(images))
    batches = list(zip(images[order].split(64), targets[order].split(64), strict=True))[:steps]
    begun = time.perf_counter()
    for inputs, answers in batches:
        loss = cross_entropy(model(inputs), answers)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun


def plain(assemble: Assemble, images: Tensor, targets: Tensor, steps: int) -> float:
    """The loop of every tutorial."""
    state = assemble()[0]
    model, optimizer = state.model.train(), state.optimizers[""].optimizer
    loader = DataLoader(TensorDataset(images, targets), batch_size=64, shuffle=True)
    total = 0.0
    begun = time.perf_counter()
    for step, (inputs, answers) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), answers)
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step == steps:
            break
    return time.perf_counter() - begun


class _Unsaved(Saves):
    """A checkpoint is no part of a step."""

    def save(self, state: TrainState, *, last: bool = False) -> None:
        pass


def savepoint(assemble: Assemble, folder: Path, *, ready: Callable[[], None] = lambda: None) -> float:
    """The engine's own loop, as train.py runs it. ready: called just before the clock starts."""
    state, parts = assemble()
    directory = Path(tempfile.mkdtemp(dir=folder))
    one = runs.create(directory, id=runs.new_id(), name=None, config="", overrides=[])
    saves = _Unsaved(one, parts.settings, config="", patch=None, provenance={}, resumed_from=None)
    training.environment(parts.settings, threads=1)
    try:
        steps = parts.settings.trainer.max_steps
        with system.signals.watch() as stop, progress.show(epochs=None, steps=steps, done=0) as shown:
            ready()
            begun = time.perf_counter()
            fit(state, parts, saves, NoTracker(), shown, stop)
            return time.perf_counter() - begun
    finally:
        saves.history.close()
        torch.use_deterministic_algorithms(False)  # the other two run as torch comes


def repeated(config: dict[str, Any], settings: Settings, steps: int, *, source: Path) -> tuple[TrainState, Parts]:
    """Assemble a run on the digits again and again: an epoch that is longer than a round."""
    digits = Digits("train")
    copies = 1 + settings.data.batch_size * (steps + 1) // len(digits)
    digits.images, digits.targets = np.tile(digits.images, (copies, 1, 1)), np.tile(digits.targets, copies)
    state, parts = training.assemble(config, settings, source=source)
    place = {"rank": parallel.rank(), "ranks": parallel.count()}
    train = Batches(digits, split="train", settings=settings.data, seed=settings.seed, **place)
    return state, dataclasses.replace(parts, train=train)


def contestants(steps: int, folder: Path) -> dict[str, Timed]:
    overrides = ["trainer.max_epochs=null", f"trainer.max_steps={steps}", "trainer.threads=1", "tracker=none"]
    composed = compose([*overrides, "trainer.device=cpu", "data.batch_size=64"], REPOSITORY / "conf")
    settings = trust.check_config(composed, source=REPOSITORY / "src")
    assemble = functools.partial(repeated, composed, settings, steps, source=REPOSITORY / "src")
    digits = assemble()[1].train.dataset
    images, targets = torch.from_numpy(digits.images), torch.from_numpy(digits.targets)
    return {
        LIMIT: functools.partial(bare, assemble, images, targets, steps),
        PLAIN: functools.partial(plain, assemble, images, targets, steps),
        SAVEPOINT: functools.partial(savepoint, assemble, folder),
    }


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Microseconds a step, for each of the three and each round."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        timed = contestants(steps, Path(folder))
        for once in timed.values():
            once()  # torch imports parts of itself at the first backward and the first optimizer step
        turns = [{name: 1e6 * once() / steps for name, once in timed.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in timed}


def table(measured: dict[str, list[float]]) -> str:
    lines = [f"{'':<16} {'µs a step':>9}   {'middle half':>13}   {'times the bare loop':>19}"]
    for name, values in measured.items():
        ratio = statistics.median(one / limit for one, limit in zip(values, measured[LIMIT], strict=True))
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        lines.append(f"{name:<16} {statistics.median(values):>9.0f}   {low:>5.0f} … {high:>5.0f}   {ratio:>19.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=230, help="training steps of each of the three in a round")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, one thread")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps each")
    print(table(measure(arguments.rounds, arguments.steps)))


if __name__ == "__main__":
    main()
