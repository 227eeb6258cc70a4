"""Negative controls: each thing that is restored is left out once, and the comparison has to see it (tests/tools/without.py)."""

import shutil
from pathlib import Path

import pytest
from tools.processes import Zygote
from tools.share import some
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.commands import diff

SMALL = ("tracker=none", "trainer.threads=1", "data.batch_size=32", "data.limit_batches=6", "trainer.max_epochs=3")
EVERY = ("checkpoint.every_n_steps=1", "checkpoint.keep_last=99", "trainer.log_every_n_steps=4")
# What trains, and what is missed in it. Each goes on from its `AT`-th checkpoint, in the middle of the second epoch.
AT = {2: "epoch_0001_step_00000005", 1: "epoch_0001_step_00000009"}  # by batches in a window
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all": (
        (
            *("model=drawing", "data.dataset.augment=true", "data.num_workers=1", "optimizer=adam", "amp=fp16"),
            *("amp.init_scale=200000", "amp.growth_interval=2", "scheduler=exponential", "trainer.accumulate=2"),
            *("trainer.ema_decay=0.8", "trainer.clip_grad_norm=1.0"),
        ),
        (
            *("python's generator", "numpy's generator", "torch's generator", "weights", "buffers", "optimizer"),
            *("scheduler", "scaler", "averaged weights", "position in the data", "seeds of loading"),
            *("epoch", "step", "batch", "sums", "samples", "cut of the history"),
        ),
    ),
    "float64": (("model=double", "optimizer=nadam"), ("optimizer dtypes", "optimizer", "logged")),
    "registered": (("model=remembering",), ("registered",)),
    "unfrozen by itself": (("model=unfreezing",), ("frozen",)),
    "unfrozen at an epoch": (("model=thawing", "model.epoch=2"), ("begin_epoch",)),
    "patience": (("optimizer.lr=0.0", "trainer.patience=1", "model=drawing"), ("best",)),
}
CONTROLS = [(case, thing) for case, (_, things) in CASES.items() for thing in things]


@pytest.fixture(scope="module")
def zygote(the_workshop: Workshop) -> Zygote:
    return the_workshop.zygote


@pytest.fixture(scope="module")
def trained(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Run]:
    """Each case, uninterrupted, with a checkpoint of each update."""
    found = {}
    for case, (config, _) in CASES.items():
        directory = tmp_path_factory.mktemp("trained") / "run"
        ended = zygote.run("train.py", *SMALL, *config, *EVERY, f"hydra.run.dir={directory}")
        assert ended.status == 0, ended.output
        found[case] = runs.read(directory)
    return found


def differences(zygote: Zygote, whole: runs.Run, directory: Path, thing: str) -> list[str]:
    """What differs from the whole run in one that goes on from the middle, and lacks the thing."""
    shutil.copytree(whole.directory, directory)
    root = directory / runs.CHECKPOINTS
    names = checkpoint.names(root)
    kept = next(name for name in reversed(names) if name in AT.values() or name == names[0])
    for name in names[names.index(kept) + 1 :]:
        shutil.rmtree(root / name)
    ended = zygote.run("tools.without", thing, f"run={directory}")
    assert ended.status == 0, ended.output
    return diff.diff_runs(whole, runs.read(directory))


@pytest.mark.parametrize("case", CASES)
def test_nothing_differs_where_nothing_is_left_out(
    zygote: Zygote, trained: dict[str, runs.Run], tmp_path: Path, case: str
) -> None:
    assert differences(zygote, trained[case], tmp_path / "run", "nothing") == []


@pytest.mark.parametrize(("case", "thing"), some(CONTROLS, lambda control: CONTROLS.index(control) % 2 == 0))
def test_what_is_left_out_is_seen(
    zygote: Zygote, trained: dict[str, runs.Run], tmp_path: Path, case: str, thing: str
) -> None:
    assert differences(zygote, trained[case], tmp_path / "run", thing) != []
