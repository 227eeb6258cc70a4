"""The promise with torch.compile: the same bits for the same setting, and a checkpoint of the one loads in the other."""

from pathlib import Path

import pytest
from tools.moments import Strike
from tools.processes import Zygote

from savepoint import checkpoint, runs
from savepoint.commands import diff

CONFIG = (
    # Without dropout, of which compiled code draws other numbers.
    *(
        "tracker=none",
        "trainer.threads=1",
        "model.hidden=[8]",
        "model.dropout=0",
        "data.dataset.limit=64",
        "data.batch_size=16",
    ),
    *("trainer.max_epochs=3", "checkpoint.every_n_steps=1", "checkpoint.keep_last=99", "trainer.ema_decay=0.9"),
)


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, runs.Run]:
    """Uninterrupted, compiled and not."""
    found = {}
    for compiled in (True, False):
        directory = tmp_path_factory.mktemp("whole") / "run"
        ended = zygote.run("train.py", *CONFIG, f"trainer.compile={compiled}".lower(), f"hydra.run.dir={directory}")
        assert ended.status == 0, ended.output
        found[compiled] = runs.read(directory)
    return found


def test_a_compiled_run_that_was_killed_goes_on_to_the_same_bits(zygote: Zygote, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = (*CONFIG, "trainer.compile=true", "model.dropout=0.3")
    ended = zygote.run("train.py", *arguments, f"hydra.run.dir={tmp_path / 'whole'}")
    assert ended.status == 0, ended.output
    arguments = (*arguments, f"hydra.run.dir={directory}")
    assert zygote.run("train.py", *arguments, strike=Strike(7, of="step.update")).status == -9
    ended = zygote.run("resume.py", f"run={directory}")
    assert ended.status == 0, ended.output
    assert "bits may differ" not in ended.output
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(directory)) == []


@pytest.mark.long
@pytest.mark.parametrize("compiled", [True, False])
def test_a_checkpoint_loads_with_the_other_setting_and_says_that_bits_may_differ(
    zygote: Zygote, whole: dict[bool, runs.Run], tmp_path: Path, compiled: bool
) -> None:
    directory = tmp_path / "run"
    arguments = (*CONFIG, f"trainer.compile={compiled}".lower(), f"hydra.run.dir={directory}")
    assert zygote.run("train.py", *arguments, strike=Strike(7, of="step.update")).status == -9
    ended = zygote.run("resume.py", f"run={directory}", f"trainer.compile={not compiled}".lower())
    assert ended.status == 0, ended.output
    assert f"so bits may differ: compile {compiled} → {not compiled}" in ended.output
    newest, _ = checkpoint.latest(directory / runs.CHECKPOINTS)
    there, _ = checkpoint.latest(whole[compiled].checkpoints)
    assert newest is not None and there is not None
    assert newest.path.name == there.path.name
    assert newest.model.keys() == there.model.keys(), "a compiled model's own names, without a prefix"
    assert all(newest.model[name].allclose(there.model[name], atol=1e-3) for name in newest.model)
