"""What training with several processes costs, against torch's own tools. `python benchmarks/parallel.py`

Steps: Savepoint's fit against a loop by hand, which has nothing but the model, torch's DistributedDataParallel with its
default options, and the optimizer. Both train on the same batches, 64 samples for each rank, with one thread; the loop
by hand has them in memory already. Fetching, shuffling, metrics, progress and metrics.jsonl are counted for Savepoint.
Nothing is evaluated and nothing is saved. With one rank, the loop by hand is a plain one.

The ranks of a measurement are processes that stay. In every round the contenders take turns, in another order each
time, and each ratio is the median of the rounds' own ratios. Two ranks on two cores leave none to other programs.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import shards
import step
import torch
import torch.distributed as dist
from aims import row
from checkpoint import RUNS
from step import REPOSITORY
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from savepoint import parallel, trust
from savepoint.config import compose
from savepoint.training import Parts, TrainState
from savepoint.training.team import Team

BARE, SAVEPOINT = "by hand", "Savepoint"
AIM = 0.97  # Savepoint's steps a second, in those of the loop by hand
MODELS = {"digits MLP": (), "wide MLP": ("model.hidden=[512,512]",)}
Measured = dict[str, list[float]]  # microseconds a step, one for each round


def contestants(model: str, steps: int, folder: Path) -> dict[str, Callable[[], float]]:
    batch_size = 64 * parallel.count()
    overrides = ["trainer.max_epochs=null", f"trainer.max_steps={steps}", "trainer.threads=1", "tracker=none"]
    overrides += ["trainer.device=cpu", f"data.batch_size={batch_size}", *MODELS[model]]
    composed = compose(overrides, REPOSITORY / "conf")
    settings = trust.check_config(composed, source=REPOSITORY / "src")
    assemble = functools.partial(step.repeated, composed, settings, steps, source=REPOSITORY / "src")
    batches = list(itertools.islice(assemble()[1].train.epoch(0), steps))
    return {
        BARE: functools.partial(by_hand, assemble, batches),
        SAVEPOINT: functools.partial(step.savepoint, functools.partial(with_team, assemble), folder, ready=ready),
    }


def by_hand(assemble: step.Assemble, batches: list[list[torch.Tensor]]) -> float:
    state = assemble()[0]
    model: nn.Module = state.model.train()
    optimizer = state.optimizers[""].optimizer
    if parallel.count() > 1:
        model = DistributedDataParallel(model)
    ready()
    begun = time.perf_counter()
    for inputs, targets in batches:
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun


def with_team(assemble: step.Assemble) -> tuple[TrainState, Parts]:
    """Assemble a run as train.py does in a rank."""
    state, parts = assemble()
    if parallel.count() > 1:
        team = Team(state.model, parts.forward, batch_size=64 * parallel.count(), every_parameter=parts.every_parameter)
        parts = dataclasses.replace(parts, team=team)
    return state, parts


def ready() -> None:
    """Wait until all ranks are here."""
    if parallel.count() > 1:
        dist.barrier()


def measure(model: str, rounds: int, steps: int) -> Measured:
    """Train in each round with each contender. Every rank has to call this."""
    with tempfile.TemporaryDirectory() as folder:
        timed = contestants(model, steps, Path(folder))
        for once in timed.values():
            once()  # torch imports parts of itself at the first backward and the first optimizer step
        order, measured = random.Random(0), {name: [] for name in timed}
        for _ in range(rounds):
            for name in order.sample(list(timed), len(timed)):
                measured[name].append(1e6 * timed[name]() / steps)
    return measured


def rank(given: argparse.Namespace) -> None:
    """Measure in this process, which is one of the ranks, and let rank 0 print the results as JSON."""
    results: dict[str, dict[str, Measured]] = {}
    with contextlib.ExitStack() as stack:
        if parallel.count() > 1:
            stack.enter_context(parallel.attended("benchmark"))
            stack.enter_context(parallel.group("benchmark", "cpu", seconds=600))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=given.directory))
            shared = Path(parallel.exchange(folder.encode())[0].decode())
            sizes = given.sizes.split(",")
            results["saves"] = {size: shards.measure(size, given.repeats, shared) for size in sizes}
        results["steps"] = {model: measure(model, given.rounds, given.steps) for model in MODELS}
    if parallel.leads():
        print(json.dumps(results))


def start(ranks: int) -> dict[str, dict[str, Measured]]:
    """Run this program in so many ranks, and return what rank 0 measured."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *launch, *sys.argv[1:]], env=one_thread, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(ended.returncode)
    results: dict[str, dict[str, Measured]] = json.loads(ended.stdout.splitlines()[-1])
    return results


def ratios(measured: Measured) -> list[float]:
    """Return Savepoint's steps a second in those of the loop by hand, for each round."""
    return [bare / ours for bare, ours in zip(measured[BARE], measured[SAVEPOINT], strict=True)]


def table(results: dict[int, dict[str, Measured]]) -> str:
    lines = [
        row("model", "ranks", f"{BARE}, µs a step", f"{SAVEPOINT}, µs a step", f"ratio of speeds (aim ≥ {AIM})"),
        row(*["---"] * 5),
    ]
    for ranks, models in results.items():
        for model, measured in models.items():
            middle = (f"{statistics.median(measured[name]):.0f}" for name in (BARE, SAVEPOINT))
            found = ratios(measured)
            low, ratio, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
            lines.append(row(model, str(ranks), *middle, f"{ratio:.2f} ({low:.2f} … {high:.2f})"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="numbers of processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=230, help="training steps of each contender in a round")
    parser.add_argument("--sizes", default="100MB,500MB", help="of the states that are saved (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of saves and loads")
    parser.add_argument("--directory", type=Path, default=RUNS, help="on the disk to measure (default: %(default)s)")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        rank(given)
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {machine}, one thread in each rank", flush=True)
    results = {int(ranks): start(int(ranks)) for ranks in given.ranks.split(",")}
    print(f"\n{given.rounds} rounds of {given.steps} steps; in brackets the middle half of the ratios\n")
    print(table({ranks: result["steps"] for ranks, result in results.items()}))
    for ranks, result in results.items():
        if "saves" in result:
            print(f"\nCheckpoints, {ranks} ranks, {given.repeats} rounds: median (least … most) of the ratios\n")
            print(shards.tables(result["saves"]))


if __name__ == "__main__":
    main()
