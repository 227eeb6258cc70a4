"""Several processes train one run: what one process would have trained, and the same bits after any interruption."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tools import ranked
from tools.moments import Strike
from tools.processes import Zygote
from tools.share import some

from savepoint import checkpoint, runs
from savepoint.commands import diff

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
TRIALS, INTERRUPTIONS = 10, 2  # of each config with each number of processes
SHORT = ("tracker=none", "trainer.threads=1", "trainer.log_every_n_steps=4")
FEW = "data.dataset.limit=150"
# Without dropout, and with an accumulated last window, in which some ranks have a placeholder.
SAME = {
    "plain": (FEW,),
    "a last batch of one sample, accumulated": ("data.dataset.limit=141", "data.batch_size=28", "trainer.accumulate=2"),
    "clipped, one sample validates": (FEW, "trainer.clip_grad_norm=0.5", "data.dataset.val_fraction=0.001"),
    "sparse gradients": (FEW, "model=embedding", "optimizer=sparse_adam"),
    "a search": (FEW, "optimizer=lbfgs", "optimizer.max_iter=3", "data.batch_size=64"),
    "language": (
        *("model=transformer", "task=language_model", "model.width=16", "model.layers=1", "data.batch_size=10"),
        *("data.dataset.shift=false", "optimizer=sgd"),  # Adam makes much of a gradient that is only rounding
        "data.limit_batches=6",
    ),
}
CONFIGS = {
    "plain": (FEW,),
    "batch norm, averaged weights, workers, augmentation": (
        *(
            "model=cnn",
            "trainer.ema_decay=0.9",
            "data.num_workers=1",
            "data.dataset.augment=true",
            "data.batch_size=36",
        ),
    ),
    "fp16, accumulated, clipped, plateau": (
        *(
            FEW,
            "amp=fp16",
            "amp.init_scale=1e20",
            "amp.growth_interval=5",
            "trainer.accumulate=2",
            "data.batch_size=14",
        ),
        *("trainer.clip_grad_norm=1.0", "scheduler=plateau", "scheduler.patience=0"),
    ),
    "sparse gradients": (FEW, "model=embedding", "optimizer=sparse_adam"),
    "checkpoints by step": (
        "checkpoint.every_n_steps=2",
        "scheduler=warmup_cosine",
        "trainer.evaluate_every_n_steps=3",
    ),
}


def train(zygote: Zygote, directory: Path, count: int, *config: str, **more: object) -> list[str]:
    ended = ranked.run(zygote, directory.with_suffix(".out"), count, "train.py", *SHORT, *config,
                       f"hydra.run.dir={directory}", **more)  # type: ignore[arg-type]  # fmt: skip
    assert all(each.status == 0 for each in ended), ended[0].output
    return [each.output for each in ended]


def resume(zygote: Zygote, directory: Path, count: int, *overrides: str) -> str:
    ended = ranked.run(zygote, directory.with_suffix(".out"), count, "resume.py", f"run={directory}", *overrides)
    assert all(each.status == 0 for each in ended), ended[0].output
    return ended[0].output


def newest(directory: Path) -> checkpoint.Checkpoint:
    found, _ = checkpoint.latest(directory / "checkpoints")
    assert found is not None
    return found


def history(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time" and "system" not in key} for line in lines]


def assert_near(one: Path, other: Path) -> None:
    """Weights and everything that was logged agree up to rounding."""
    ours, theirs = newest(one), newest(other)
    assert ours.model.keys() == theirs.model.keys()
    for name, value in ours.model.items():
        torch.testing.assert_close(theirs.model[name], value, rtol=1e-4, atol=2e-6)
    assert len(history(one)) == len(history(other))
    for mine, its in zip(history(one), history(other), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


@pytest.mark.parametrize("name", SAME)
def test_several_processes_train_what_one_trains(name: str, zygote: Zygote, tmp_path: Path) -> None:
    same = () if "model=embedding" in SAME[name] else ("model.dropout=0",)
    config = (*same, "trainer.max_epochs=2", "data.batch_size=35", *SAME[name])
    train(zygote, tmp_path / "1", 1, *config)
    for count in (2, 3):
        output = train(zygote, tmp_path / str(count), count, *config)
        assert_near(tmp_path / "1", tmp_path / str(count))
        assert f"({count} ranks, 1 threads)" in output[0]
        assert not any(output[1:]), "only rank 0 talks to people"


def test_their_checkpoint_has_the_files_of_one_process(zygote: Zygote, tmp_path: Path) -> None:
    for count in (1, 2):
        train(zygote, tmp_path / str(count), count, FEW, "trainer.max_epochs=1")
    alone, both = (newest(tmp_path / str(count)) for count in (1, 2))
    assert sorted(os.listdir(alone.path)) == sorted(os.listdir(both.path))
    assert set(both.state) - set(alone.state) == {"ranks"}
    assert not [name for name in os.listdir(tmp_path / "2") if name not in os.listdir(tmp_path / "1")]
    drawn = [each["rng"]["torch"] for each in both.state["ranks"]]
    assert not torch.equal(*drawn), "each rank draws its own dropout"


@pytest.mark.parametrize(
    ("name", "count", "trial"),
    some(
        [(name, count, trial) for name in CONFIGS for count in (2, 3) for trial in range(TRIALS)],
        keep=lambda case: case[2] == 0 and (case[1] == 3 or case[0] == "plain"),
    ),
)
def test_any_interruption_changes_no_bit(name: str, count: int, trial: int, zygote: Zygote, tmp_path: Path) -> None:
    config = ("trainer.max_epochs=3", "data.batch_size=42", *CONFIGS[name])
    rng = random.Random(f"{SEED} {count} {name} {trial}")
    counted = tmp_path / "moments"
    train(zygote, tmp_path / "whole", count, *config, strikes={0: Strike(count=str(counted))})
    moments = int(counted.read_text())
    directory = tmp_path / "interrupted"
    arguments = ("train.py", *SHORT, *config, f"hydra.run.dir={directory}")
    for _ in range(INTERRUPTIONS):
        who, how = rng.randrange(count), rng.choice(["kill", "kill", "term"])
        strike = {who: Strike(rng.randrange(1, moments), how)}
        ended = ranked.run(zygote, tmp_path / "out", count, *arguments, strikes=strike)
        if all(each.status == 0 for each in ended):
            break
        if how == "kill" and who != 0 and ended[0].status != 0:
            assert f"Rank {who} of {count} does not train any more: its process has died" in ended[0].output
        if (directory / "run.json").exists():
            arguments = ("resume.py", f"run={directory}")
    if runs.read(directory).record["status"] != "finished":
        resume(zygote, directory, count)
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(directory)) == [], f"SAVEPOINT_TEST_SEED={SEED}"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (1, 3), (3, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, zygote: Zygote, tmp_path: Path
) -> None:
    """The checkpoint's bits are taken over, the data go on where they were, and one line says what may differ."""
    config = (FEW, "model.dropout=0", "data.batch_size=35", "trainer.max_epochs=3", "checkpoint.every_n_steps=2")
    train(zygote, tmp_path / "whole", 1, *config)
    directory = tmp_path / "moved"
    stopped = ranked.run(zygote, tmp_path / "out", before, "train.py", *SHORT, *config, f"hydra.run.dir={directory}",
                         strikes={before - 1: Strike(6, "term", of="step.update")})  # fmt: skip
    assert stopped[0].status == 128 + signal.SIGTERM, stopped[0].output
    assert 0 < newest(directory).state["batch"] < 5, "within an epoch"
    output = resume(zygote, directory, after, *(["trainer.processes=1"] if after == 1 else []))
    assert f"bits may differ: ranks {before} → {after}" in output
    assert runs.read_config(directory)["trainer"]["processes"] == after, "the next resume starts as many"
    assert_near(tmp_path / "whole", directory)


def test_a_fork_with_another_seed_draws_anew_in_each_rank(zygote: Zygote, tmp_path: Path) -> None:
    train(zygote, tmp_path / "parent", 2, FEW, "trainer.max_epochs=1", "checkpoint.keep_last=9")
    resume(zygote, tmp_path / "parent", 2, "seed=5", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'fork'}")
    begun = checkpoint.load(tmp_path / "fork" / "checkpoints" / newest(tmp_path / "parent").path.name)
    before, after = (
        [each["rng"]["torch"] for each in one.state["ranks"]] for one in (newest(tmp_path / "parent"), begun)
    )
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not torch.equal(*after)


def test_a_signal_to_any_rank_stops_all_of_them_with_one_checkpoint(zygote: Zygote, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    ranks = ranked.start(zygote, tmp_path / "out", 3, "train.py", *SHORT, FEW, "trainer.max_epochs=10000",
                         "checkpoint.every_n_epochs=null", f"hydra.run.dir={directory}")  # fmt: skip
    while not (directory / "metrics.jsonl").exists() or not (directory / "metrics.jsonl").stat().st_size:
        time.sleep(0.02)
    os.kill(ranks[2][0].pid, signal.SIGTERM)
    assert [each.wait() for each, _ in ranks] == [128 + signal.SIGTERM, 0, 0]
    output = ranks[0][1].read_text()
    assert "SIGTERM: all ranks finish this step, then save." in output and "Nothing is lost." in output
    assert len(checkpoint.names(directory / "checkpoints")) == 1
    assert runs.read(directory).record["status"] == "interrupted"
