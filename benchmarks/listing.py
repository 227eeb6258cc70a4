"""How long `python -m savepoint ls` takes over many runs. `python benchmarks/listing.py --runs 10000`

Generates runs with what real ones hold and what a listing could read: run.json, config.yaml, 20 to 200 lines of
metrics.jsonl, up to three checkpoints with their state.json, provenance.json and manifest.json. Then times the whole
process, from the start of Python to its end, in turns with a process that only starts.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# The command line works on its own repository, so the generated one takes its place.
LIST = "import pathlib, sys; from savepoint import __main__ as m; m.REPOSITORY = pathlib.Path(sys.argv[1]); m.main({})"
STATUSES = ("finished",) * 8 + ("interrupted", "failed", "running")
BATCHES = 23  # of an epoch


def generate(root: Path, runs: int) -> None:
    """Write `runs` run directories under root/runs, about 40 a day."""
    draw = random.Random(0)
    config = (REPOSITORY / "tests" / "frozen" / "format_1" / "run" / "config.yaml").read_text(encoding="utf-8")
    rng = [draw.randrange(2**32) for _ in range(625)]
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for number in range(runs):
        started = start + datetime.timedelta(minutes=36 * number)
        run = f"{draw.choice('abcdefghjk')}{number:07x}"
        directory = root / "runs" / f"{started:%Y-%m-%d}" / f"{started:%H%M%S}-{run}"
        directory.mkdir(parents=True)
        model, lr = draw.choice(("mlp", "cnn")), draw.choice((0.1, 0.01, 0.001))
        record = {
            "id": run,
            "name": draw.choice((None, None, "baseline", "colder")),
            "status": draw.choice(STATUSES),
            "started": started.isoformat(timespec="microseconds"),
            "tracker": {"kind": "mlflow", "run_id": f"{draw.randrange(2**128):032x}"},
            "parents": [],
            "sweep": None,
            "overrides": [f"model={model}", f"optimizer.lr={lr}", "trainer.max_epochs=20", "tracker=none"],
            "forked_from": None,
        }
        (directory / "run.json").write_text(json.dumps(record, indent=1))
        (directory / "config.yaml").write_text(config)
        (directory / ".lock").touch()
        epochs = draw.randrange(10, 101)
        lines = [_line(step, draw) for step in range(BATCHES // 2, epochs * BATCHES + 1, BATCHES // 2 + 1)]
        (directory / "metrics.jsonl").write_text("".join(lines))
        for epoch in range(max(1, epochs - 2), epochs + 1):
            _checkpoint(directory / "checkpoints", epoch, run, draw.random(), rng)


def _line(step: int, draw: random.Random) -> str:
    values = {name: draw.random() for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")}
    rest = {"lr": 0.005, "system/samples_per_second": 20000 * draw.random()}
    return json.dumps({"step": step, "epoch": step // BATCHES, "time": 1.79e9 + step, **values, **rest}) + "\n"


def _checkpoint(root: Path, epoch: int, run: str, loss: float, rng: list[int]) -> None:
    path = root / f"epoch_{epoch:04d}_step_{epoch * BATCHES:08d}"
    path.mkdir(parents=True)
    state: dict[str, Any] = {"format": 1, "epoch": epoch, "step": epoch * BATCHES, "batch": 0}
    state |= {"metrics": {"train/loss": 2 * loss, "val/loss": loss, "lr": 0.005}}
    state |= {"best": {"metric": "val/loss", "value": loss, "epoch": epoch, "step": epoch * BATCHES}}
    state |= {"history_lines": 2 * epoch, "evaluated": epoch * BATCHES}
    state |= {"rng": {"python": {"$tuple": [3, {"$tuple": rng}, None]}}}
    (path / "state.json").write_text(json.dumps(state, indent=1))
    provenance: dict[str, Any] = {"git": {"commit": "5f" * 20, "branch": "main", "dirty": epoch % 2 == 0}}
    provenance |= {"versions": {"python": "3.11.7", "torch": "2.13.0"}, "command": "train.py", "run_id": run}
    (path / "provenance.json").write_text(json.dumps(provenance, indent=1))
    (path / "manifest.json").write_text('{"format": 1, "files": {}}')


def seconds(root: Path, arguments: list[str]) -> float:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    started = time.perf_counter()
    command = [sys.executable, "-c", LIST.format(arguments), str(root)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    assert len(done.stdout.splitlines()) > 1
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="savepoint-listing-") as folder:
        generate(Path(folder), given.runs)
        timed = {
            "start": ["--help"],
            "ls": ["ls"],
            "ls --json": ["ls", "--json"],
            "ls status=killed": ["ls", "status=killed"],
        }
        turns = [{name: seconds(Path(folder), each) for name, each in timed.items()} for _ in range(given.turns)]
    print(f"{platform.machine()}, {os.cpu_count()} cores; {given.runs:,} runs, median of {given.turns} (least … most)")
    for name in timed:
        values = [turn[name] for turn in turns]
        print(f"{name:<18} {statistics.median(values):5.2f} s ({min(values):.2f} … {max(values):.2f})")


if __name__ == "__main__":
    main()
