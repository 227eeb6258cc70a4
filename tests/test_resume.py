"""The promise: a run that was killed anywhere, and resumed in a new process, ends in the same bits."""

import collections
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools.moments import Strike
from tools.processes import REPOSITORY, Zygote
from tools.share import some
from tools.warm import Nursery

from savepoint import checkpoint, runs
from savepoint.commands import diff

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
SHORT = ("tracker=none", "trainer.log_every_n_steps=5", "data.batch_size=128", "trainer.threads=1")
CONFIGS = {
    "plain": ("trainer.max_epochs=4",),
    "batch norm, dropout, augmentation, cosine": (
        *("model=cnn", "data.dataset.augment=true", "optimizer=sgd", "scheduler=cosine", "trainer.max_epochs=3"),
    ),
    "two workers, augmentation, onecycle": (
        *("data.num_workers=2", "data.dataset.augment=true", "optimizer=rmsprop", "scheduler=onecycle"),
        "trainer.max_epochs=3",
    ),
    "fp16, accumulation, clipping, plateau": (
        *("amp=fp16", "amp.init_scale=1e20", "amp.growth_interval=5", "optimizer=adam", "scheduler=plateau"),
        *("scheduler.patience=0", "scheduler.threshold=0.5", "trainer.accumulate=3", "trainer.clip_grad_norm=1.0"),
        *("data.batch_size=48", "trainer.max_epochs=3"),
    ),
    "averaged weights, batch norm, nadam": (
        *("trainer.ema_decay=0.9", "model.batch_norm=true", "optimizer=nadam", "checkpoint.monitor=val/ema_loss"),
        *("data.drop_last=true", "data.limit_batches=7", "trainer.max_epochs=3"),
    ),
    "bf16, warm-up, checkpoints by step": (
        *("amp=bf16", "data.dataset.augment=true", "scheduler=warmup_cosine", "checkpoint.every_n_steps=3"),
        "trainer.max_epochs=3",
    ),
    "multistep, ends within an epoch": (
        *("scheduler=multistep", "scheduler.milestones=[1,2]", "model.batch_norm=true", "data.drop_last=true"),
        *("trainer.max_epochs=null", "trainer.max_steps=29", "checkpoint.every_n_steps=4"),
    ),
    "regression, plateau by rmse": (
        *("task=regression", "model.in_features=10", "model.out_features=1", "model.hidden=[16]", "scheduler=plateau"),
        *("scheduler.monitor=val/rmse", "scheduler.patience=0", "data.batch_size=64", "trainer.max_epochs=4"),
    ),
    "tied weights, label smoothing, two workers, moved windows, accumulation": (
        *("model=transformer", "task=language_model", "task.label_smoothing=0.1", "model.width=16", "model.layers=1"),
        *("optimizer.weight_decay_on=matrices", "data.num_workers=2", "trainer.accumulate=3", "data.batch_size=8"),
        *("data.limit_batches=10", "checkpoint.every_n_steps=3", "trainer.max_epochs=3"),
    ),
    "exponential by step, few checkpoints": (
        *("scheduler=exponential", "scheduler.interval=step", "scheduler.gamma=0.99", "data.shuffle=false"),
        *("checkpoint.every_n_epochs=2", "checkpoint.keep_last=1", "trainer.max_epochs=4"),
    ),
}
NOT_POINTS = ("step", "time")  # of a line of metrics.jsonl; all else is a point in the tracker
TRIALS = 5  # for each config: 50 in all, 10 of them in `make test`
# From any update in `make test`: a scaler and a window, averaged weights, workers and tied weights.
QUICK = [name for name in CONFIGS if name.startswith(("fp16", "averaged", "tied"))]
UPDATES = 4  # of each config, from which it goes on


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[runs.Run, float]]:
    """For each config a run that nothing interrupted, and the seconds it took."""
    done = {}
    for name, config in CONFIGS.items():
        directory = tmp_path_factory.mktemp("uninterrupted") / "run"
        ended = zygote.run("train.py", *SHORT, *config, f"hydra.run.dir={directory}")
        assert ended.status == 0, ended.output
        done[name] = runs.read(directory), ended.seconds
    return done


def continue_or_start(zygote: Zygote, directory: Path, config: tuple[str, ...], **kill: float) -> int:
    """Resume the run, or start it if it was killed before it was one."""
    if (directory / runs.RECORD).exists():
        ended = zygote.run("resume.py", f"run={directory}", **kill)
    else:
        ended = zygote.run("train.py", *SHORT, *config, f"hydra.run.dir={directory}", **kill)
    assert ended.status in (0, -signal.SIGKILL), ended.output
    return ended.status


@pytest.mark.parametrize("trial", some(range(TRIALS), lambda trial: trial == 0))
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_and_resumed_run_equals_uninterrupted_run(
    zygote: Zygote, uninterrupted: dict[str, tuple[runs.Run, float]], tmp_path: Path, name: str, trial: int
) -> None:
    whole, seconds = uninterrupted[name]
    chance = random.Random(f"{SEED} {name} {trial}")
    directory = tmp_path / "run"
    kills = [chance.uniform(0, seconds) for _ in range(chance.randint(1, 3))]
    for moment in kills:
        continue_or_start(zygote, directory, CONFIGS[name], kill_after=moment)
    assert continue_or_start(zygote, directory, CONFIGS[name]) == 0
    resumed = runs.read(directory)
    assert diff.diff_runs(whole, resumed) == [], f"killed after {kills} s; SAVEPOINT_TEST_SEED={SEED}"
    assert checkpoint.names(resumed.checkpoints) == checkpoint.names(whole.checkpoints)


@pytest.mark.parametrize("name", some(CONFIGS, lambda name: name in QUICK))
def test_a_run_goes_on_from_any_update_and_saving_at_each_changes_nothing(
    zygote: Zygote, uninterrupted: dict[str, tuple[runs.Run, float]], tmp_path: Path, name: str
) -> None:
    """As if it had been killed right after it: a kill by the clock seldom comes within the second of training."""
    whole, _ = uninterrupted[name]
    every = ("checkpoint.every_n_steps=1", "checkpoint.every_n_epochs=1", "checkpoint.keep_last=999")
    ended = zygote.run("train.py", *SHORT, *CONFIGS[name], *every, f"hydra.run.dir={tmp_path / 'every'}")
    assert ended.status == 0, ended.output
    saved = runs.read(tmp_path / "every")
    assert diff.diff_runs(whole, saved) == []
    names = checkpoint.names(saved.checkpoints)
    chosen = random.Random(f"{SEED} {name} any").sample(range(len(names) - 1), UPDATES)
    for index in chosen:
        directory = tmp_path / str(index)
        shutil.copytree(saved.directory, directory)
        for later in names[index + 1 :]:
            shutil.rmtree(directory / runs.CHECKPOINTS / later)
        assert continue_or_start(zygote, directory, CONFIGS[name]) == 0
        assert diff.diff_runs(whole, runs.read(directory)) == [], f"from {names[index]}; SAVEPOINT_TEST_SEED={SEED}"


def test_a_tracked_run_killed_in_fresh_interpreters_equals_one_that_was_not(
    zygote: Zygote, nursery: Nursery, tmp_path: Path
) -> None:
    """As a person does it, MLflow included: what it shows is every line of metrics.jsonl, and no point twice.

    Between the two interpreters a third process goes on and is killed too. It is a fork, which costs no import.
    """
    store = tmp_path / "mlflow.db"
    there = f"tracker.uri=sqlite:///{store}"
    config = (
        *("trainer.max_epochs=20", "data.dataset.augment=true", "model=cnn", "trainer.log_every_n_steps=1"),
        *("data.batch_size=32", "data.limit_batches=6"),
    )
    whole, directory = tmp_path / "whole", tmp_path / "killed"
    ended = zygote.run("train.py", *SHORT, *config, f"hydra.run.dir={whole}")
    assert ended.status == 0, ended.output
    start = [sys.executable, str(REPOSITORY / "train.py"), *SHORT[2:], *config, there, f"hydra.run.dir={directory}"]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        lines = random.Random(SEED).randint(3, 15)
        while len(runs.read_history(directory / runs.METRICS)) <= lines and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "killed before its end"
        process.kill()
    with zygote.tracking(nursery):
        ended = zygote.run("resume.py", f"run={directory}", there, strike=Strike(20, of="step.update"))
    assert ended.status == -signal.SIGKILL, ended.output
    again = [sys.executable, str(REPOSITORY / "resume.py"), f"run={directory}", there]
    done = subprocess.run(again, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "MLflow has" not in done.stdout, done.stdout
    resumed = runs.read(directory)
    assert diff.diff_runs(runs.read(whole), resumed) == []
    logged = [
        (key, line["step"]) for line in runs.read_history(resumed.metrics) for key in line if key not in NOT_POINTS
    ]
    with sqlite3.connect(store) as database:
        shown = database.execute("select key, step from metrics where run_uuid = ?", [resumed.tracker_id]).fetchall()
        tracked = database.execute("select count(*) from runs").fetchone()
    database.close()
    assert collections.Counter(shown) == collections.Counter(logged)
    assert len(set(shown)) == len(shown), "one point for each key and step"
    assert tracked == (1,), "the same run of the tracker each time"
