"""Train small runs in processes of their own, kill them with SIGKILL, resume them, and compare every bit.

`python killed.py ORDER` is the child process: it trains one run as the JSON text ORDER says. See `Order`.
"""

import dataclasses
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

import torch  # noqa: E402

from savepoint import checkpoint, parallel, runs, trackers, training, trust  # noqa: E402
from savepoint.commands import diff  # noqa: E402
from savepoint.training import Outcome, TrainState  # noqa: E402

KILLED_AT = 7  # updates: within an epoch, and after the save at update 4 is durable
CHILD_SECONDS = 300

# name: (the model, changes of its config by dotted keys)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32, batch norm": ("mlp", {}),
    "bf16, 2 workers": ("transformer", {"amp.dtype": "bfloat16", "data.num_workers": 2}),
    "fp16, scaler, clipping": (
        "transformer",
        # The scale doubles every second update, so that some updates overflow and are skipped.
        {"amp.dtype": "float16", "amp.growth_interval": 2, "trainer.clip_grad_norm": 1.0, "trainer.accumulate": 2},
    ),
    "averaged weights": ("transformer", {"trainer.ema_decay": 0.9}),
    "compiled": ("mlp", {"trainer.compile": True}),
}
# Two processes train these, on a GPU each: (the model, changes of its config).
RANKED: dict[str, tuple[str, dict[str, Any]]] = {
    "2 ranks, DDP, bf16": ("transformer", {"amp.dtype": "bfloat16", "trainer.parallel": "ddp"}),
    "2 ranks, DDP, batch norm, averaged": ("mlp", {"trainer.ema_decay": 0.9, "trainer.parallel": "ddp"}),
    "2 ranks, FSDP": ("transformer", {"trainer.parallel": "fsdp", "trainer.clip_grad_norm": 1.0}),
}
QUICK = ("bf16, 2 workers", "2 ranks, FSDP")
# Trainings whose updates and saves must not wait for a CUDA device. Those in fp16 do: torch's scaler reads whether a
# gradient overflowed before it steps the optimizer.
GUARDED: dict[str, dict[str, Any]] = {
    "fp32": {"trainer.clip_grad_norm": 1.0},
    "bf16, 2 workers": {"amp.dtype": "bfloat16", "data.num_workers": 2, "trainer.accumulate": 2},
    "averaged weights": {"trainer.ema_decay": 0.9},
}


@dataclass(frozen=True)
class Order:
    """What a child process does.

    directory: the run's. If it holds a checkpoint, the run is resumed. config: the whole config.
    kill: end the process with SIGKILL in the forward pass of update KILLED_AT + 1.
    guard: raise an error wherever an update or an asynchronous save waits for the CUDA device.
    ranks: how many processes train. group: a name for what they do together, used once.
    """

    directory: str
    config: dict[str, Any]
    kill: bool = False
    guard: bool = False
    ranks: int = 1
    group: str = ""


def make_config(model: str, device: str, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Build the config of a small run. A GPU gets a larger model, so that its usual fast kernels are chosen.

    model: `mlp` or `transformer`. folder: receives the model's data.
    """
    large = device != "cpu"
    width, context = (256, 128) if large else (32, 32)
    if model == "mlp":
        parts: dict[str, Any] = {
            "model": {"_target_": "project.models.mlp.Mlp", "in_features": 16, "hidden": [width, width],
                      "out_features": 1, "dropout": 0.2, "batch_norm": True},
            "task": {"_target_": "project.tasks.regression.Regression"},
            "dataset": {"_target_": "project.data.table.Csv", "csv": str(_table(folder)), "target": "y"},
        }  # fmt: skip
    else:
        parts = {
            "model": {"_target_": "project.models.transformer.Transformer", "context": context, "width": width,
                      "layers": 4 if large else 1, "heads": 4, "dropout": 0.2},
            "task": {"_target_": "project.tasks.language_model.LanguageModel"},
            "dataset": {"_target_": "project.data.text.Text", "file": str(_text(folder)), "context": context},
        }  # fmt: skip
    config: dict[str, Any] = {
        "seed": 1,
        "model": parts["model"],
        "task": parts["task"],
        "data": {"dataset": parts["dataset"], "batch_size": 16, "limit_batches": 8},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.003},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1, "gamma": 0.9},
        "trainer": {"device": device, "max_epochs": 3, "threads": 1, "log_every_n_steps": 3},
        "checkpoint": {"every_n_steps": 2, "keep_last": 99},
        "amp": {},
        "tracker": {"kind": "none"},
    }
    for key, value in changes.items():
        group, name = key.split(".")
        config[group][name] = value
    return config


def _table(folder: Path) -> Path:
    """Write a table of 400 rows: 16 columns of numbers, and their noisy sum `y`."""
    draw, path = random.Random(0), folder / "table.csv"
    rows = [[draw.gauss(0, 1) for _ in range(16)] for _ in range(400)]
    lines = [",".join([*(f"x{index}" for index in range(16)), "y"])]
    lines += [",".join(f"{value:.6f}" for value in [*row, sum(row) + draw.gauss(0, 1)]) for row in rows]
    path.write_text("\n".join(lines))
    return path


def _text(folder: Path) -> Path:
    """Write a text of 400 kB: random words of a small vocabulary."""
    draw, path = random.Random(0), folder / "text.txt"
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(200)]
    path.write_text(" ".join(draw.choices(words, k=80_000)))
    return path


def compare_killed(case: str, device: str, folder: Path) -> tuple[int, list[str]]:
    """Train a case uninterrupted, then train it again with a SIGKILL and a resume.

    Returns: the step from which the resumed process went on, and what differs between the two runs, which is nothing if
    the promise holds: every tensor of the checkpoint, every value of its state, every line of metrics.jsonl.
    Raises: RuntimeError with the output of a child that did not end as it should.
    """
    model, changes = (CASES | RANKED)[case]
    ranks = 2 if case in RANKED else 1
    folder.mkdir()
    config = make_config(model, device, folder, changes)
    whole, killed = folder / "whole", folder / "killed"
    _run(Order(str(whole), config, ranks=ranks, group="whole"), status=0)
    _run(Order(str(killed), config, kill=True, ranks=ranks, group="killed"), status=-signal.SIGKILL)
    left, _ = checkpoint.latest(runs.read(killed).checkpoints)
    if left is None or not 0 < left.state["step"] <= KILLED_AT:
        raise RuntimeError(
            f"The killed run left no checkpoint of a step from 1 to {KILLED_AT}: nothing to resume from."
        )
    _run(Order(str(killed), config, ranks=ranks, group="resumed"), status=0)
    return left.state["step"], diff.diff_runs(runs.read(whole), runs.read(killed))


def check_no_synchronisation(device: str, folder: Path, changes: dict[str, Any]) -> None:
    """Train with updates and saves that fail if they wait for the device. Raises: RuntimeError with the output."""
    folder.mkdir()
    _run(Order(str(folder / "run"), make_config("transformer", device, folder, changes), guard=True), status=0)


def _run(order: Order, *, status: int) -> None:
    """Do what an order says. Raises: RuntimeError if the process, or rank 0, does not end with this status."""
    command = [sys.executable, __file__, json.dumps(dataclasses.asdict(order))]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    several = {"WORLD_SIZE": str(order.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [several | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(order.ranks)]
    children = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | (place if order.ranks > 1 else {}),
        )
        for place in places
    ]
    try:
        outputs = [child.communicate(timeout=CHILD_SECONDS)[0].decode(errors="replace") for child in children]
    finally:
        for child in children:
            child.kill()
    if children[0].returncode != status:
        codes, output = [child.returncode for child in children], "\n".join(each[-3000:] for each in outputs)
        raise RuntimeError(f"The child process ended with {codes}, and not with {status}:\n{output}")


def train(order: Order) -> None:
    """Train the run that `order` describes, from its newest checkpoint if it has one."""
    directory, config = Path(order.directory), order.config
    newest, _ = checkpoint.latest(directory / "checkpoints")
    if not parallel.leads():  # what a follower writes about the run counts for nothing
        directory = directory.with_name(f"{directory.name}-{order.group}-{parallel.rank()}")
    settings = trust.check_config(config, source=REPOSITORY / "src")
    if (directory / runs.RECORD).exists():
        run = runs.read(directory)
    else:
        run = runs.create(directory, id=runs.new_id(), name=None, config=trust.dump_config(config), overrides=[])
    tracker = trackers.NoTracker()
    job = runs.Job(run, config, settings, tracker, REPOSITORY, checkpoint=newest, group=order.group)
    with training.session(job):
        state, parts = training.prepare(job)
        if order.kill:
            parts = dataclasses.replace(parts, task=_KillingTask(parts.task, state))
        with training.supervise(job, state, parts) as (saves, progress, stop):
            training.fit(state, parts, saves, tracker, progress, stop)


class _KillingTask:
    """A task that ends its process with SIGKILL in the forward pass of update KILLED_AT + 1."""

    def __init__(self, task: Any, state: TrainState) -> None:
        self._task, self._state = task, state
        self.compute = task.compute

    def __call__(self, model: Any, batch: Any) -> Outcome:
        outcome: Outcome = self._task(model, batch)
        if self._state.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome


def guard_against_synchronisation() -> None:
    """Make updates and asynchronous saves raise RuntimeError where they wait for the CUDA device.

    Not the first ones: they create the optimizer's state, the handles of CUDA's libraries and the pinned memory.
    """
    from savepoint.training import loop, saves

    with _NoSynchronisation():
        try:
            torch.ones((), device="cuda").item()
        except RuntimeError:
            pass
        else:
            raise AssertionError("torch did not notice that .item() waits for the device: the check proves nothing")

    loop.update = _guarded(loop.update, from_call=3)
    saves.Saves.save = _guarded(saves.Saves.save, from_call=3)  # type: ignore[method-assign]


def _guarded(function: Callable[..., Any], *, from_call: int) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def guarded(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        # The last save of a run writes from the device's memory, and so has to wait for it.
        if calls < from_call or keywords.get("last"):
            return function(*arguments, **keywords)
        with _NoSynchronisation():
            return function(*arguments, **keywords)

    return guarded


class _NoSynchronisation:
    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    received = Order(**json.loads(sys.argv[1]))
    if received.guard:
        guard_against_synchronisation()
    train(received)
