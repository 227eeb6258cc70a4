"""`train.py init_from=…` with files, with a choice of names, with frozen parameters; and how that is recorded."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.moments import Strike
from tools.workshop import NAMES, Workshop

from savepoint import checkpoint, runs
from savepoint.commands import diff

SMALL = (
    "tracker=none",
    "trainer.threads=1",
    "model.hidden=[8]",
    "data.limit_batches=2",
    "data.batch_size=16",
    "seed=5",
)
STILL = (
    *SMALL,
    "trainer.max_epochs=1",
    "optimizer.lr=0",
    "optimizer.weight_decay=0",
)  # what is saved is what was loaded


@pytest.fixture
def foreign(directory: Path, tmp_path: Path) -> Path:
    """A file of the weights of `directory`, in half precision, under names as DataParallel gives them."""
    saved = checkpoint.load(directory / "checkpoints" / NAMES[-1]).model
    path = tmp_path / "foreign.safetensors"
    save_file({f"module.{name}": value.half() for name, value in saved.items()}, path)
    return path


def newest(run: Path) -> checkpoint.Checkpoint:
    found, damaged = checkpoint.latest(run / "checkpoints")
    assert found is not None and damaged == []
    return found


def test_a_file_under_other_names_begins_a_run_and_its_digest_is_recorded(
    workshop: Workshop, foreign: Path, tmp_path: Path
) -> None:
    run = tmp_path / "begun"
    ended = workshop.run("train.py", *STILL, f"init_from={foreign}", "init.rename={module.*:*}", f"hydra.run.dir={run}")
    assert ended.status == 0, ended.output
    assert f"weights from {foreign}; float16 converted to float32\n" in ended.output
    found = newest(run)
    assert all(
        found.model[name.removeprefix("module.")].equal(value.float()) for name, value in load_file(foreign).items()
    )
    origin = {
        "query": str(foreign),
        "run": None,
        "checkpoint": None,
        "sha256": {foreign.name: hashlib.sha256(foreign.read_bytes()).hexdigest()},
    }
    assert runs.read(run).record["weights"] == found.provenance["weights"] == [origin]
    assert runs.read(run).record["parents"] == []


def test_frozen_parameters_stay_and_the_others_learn_after_a_kill_too(
    workshop: Workshop, directory: Path, tmp_path: Path
) -> None:
    order = (*SMALL, "trainer.max_epochs=3", f"init_from={directory}", "init.exclude=head.*", "init.freeze=hidden.*")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert workshop.run("train.py", *order, f"hydra.run.dir={whole}").status == 0
    ended = workshop.run("train.py", *order, f"hydra.run.dir={killed}", strike=Strike(150))
    assert ended.status == -9
    assert workshop.run("resume.py", f"run={killed}").status == 0
    assert diff.diff_runs(runs.read(whole), runs.read(killed)) == []
    first, last = checkpoint.load(directory / "checkpoints" / NAMES[-1]).model, newest(whole)
    assert all(last.model[name].equal(first[name]) == name.startswith("hidden") for name in first)
    assert set(last.state["frozen"]) == {name for name in first if name.startswith("hidden")}
    assert last.provenance["weights"][0]["run"] == runs.read(directory).id


def test_a_run_that_starts_over_refuses_a_file_that_changed(workshop: Workshop, foreign: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    order = (*STILL, f"init_from={foreign}", "init.rename={module.*:*}", f"hydra.run.dir={run}")
    assert workshop.run("train.py", *order, strike=Strike(1, of="loop.fit")).status == -9
    assert checkpoint.names(run / "checkpoints") == []
    kept = foreign.read_bytes()
    save_file({"module.head.bias": torch.zeros(10)}, foreign)
    ended = workshop.run("resume.py", f"run={run}", "init.strict=true")
    assert ended.status == 2 and ended.output.strip().splitlines()[-1].startswith("error: "), ended.output
    foreign.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    ended = workshop.run("resume.py", f"run={run}")
    assert ended.status == 2 and "these are not the weights that the run began with" in ended.output, ended.output
    foreign.write_bytes(kept)
    assert workshop.run("resume.py", f"run={run}").status == 0


WRONG = {
    "a choice without weights": (("init.exclude=head.*",), "init.exclude has no effect without init_from"),
    "a pattern without a match": (("init_from={run}", "init.exclude=haed.*"), "init.exclude=haed.*: matches no name. Did you mean head.*?"),
    "all frozen": (("init.freeze=*",), "init.freeze: it leaves no parameter to train"),
    "nothing to freeze": (("init.freeze=x",), "init.freeze=x: matches no parameter"),
    "a key that is none": (("init.inclde=x",), "Did you mean include?"),
    "a wrong value": (("init.strict=x",), "init.strict='x': must be true or false"),
    "a pickle": (("init_from={run}/model.bin",), "is a pickle"),
    "a file that is missing": (("init_from={run}/x.safetensors",), "there is no such file"),
    "another shape": (("init_from={run}", "model.hidden=[9]"), "hidden.0.linear.bias is [8] in the checkpoint and [9] in the model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_choice_is_refused_in_one_line_and_leaves_no_run(
    workshop: Workshop, directory: Path, kind: str
) -> None:
    arguments, words = WRONG[kind]
    (directory / "model.bin").write_bytes(b"x")
    ended = workshop.run("train.py", *SMALL, *(each.format(run=directory) for each in arguments))
    assert ended.status == 2 and ended.output.count("\n") == 1 and words in ended.output, ended.output
    assert workshop.left() == []


def test_every_job_of_a_sweep_begins_from_the_latest_run_before_it(workshop: Workshop) -> None:
    assert workshop.run("train.py", *SMALL, "trainer.max_epochs=1").status == 0
    (before,) = runs.all_runs(workshop.root)
    ended = workshop.run("train.py", "-m", *SMALL, "trainer.max_epochs=1", "optimizer.lr=0.1,0.2", "init_from=latest")
    assert ended.status == 0, ended.output
    assert [run.record["parents"] for run in runs.all_runs(workshop.root)[1:]] == [[before.id], [before.id]]


def test_a_fork_cannot_choose_other_weights(workshop: Workshop, directory: Path) -> None:
    for choice in ("init.exclude=hidden.*", f"init_from={directory}"):
        ended = workshop.run("resume.py", f"run={directory}", choice, "trainer.max_epochs=4")
        assert ended.status == 2 and "a fork begins with all weights of its parent" in ended.output, ended.output
