"""docs/data.md, and the promise for every kind of data: interrupted and resumed, a run ends in the same bits."""

import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from tools.processes import REPOSITORY
from tools.share import some
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.config import composition
from savepoint.system import rng
from savepoint.training import build
from savepoint.training.state import Parts
from savepoint.trust import validation

DOC = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", DOC, re.DOTALL))
QUICK = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.batch_size=8", "trainer.max_epochs=3")
EVERY = ("checkpoint.every_n_steps=1", "checkpoint.keep_last=999")
SAMPLER = "data.sampler={_target_: project.data.sources."
CONFIGS: dict[str, tuple[str, ...]] = {
    "as in docs: balanced": ("data.sampler={_target_: project.data.balanced.Balanced}", "data.limit_batches=5"),
    "as in docs: several data sets": ("data=mixed", "data.dataset.limit=60", "data.sampler.counts=[6,2]"),
    "as in docs: stream": ("data=digit_stream", "data.limit_batches=7"),
    "set_epoch": ("data=drawing", SAMPLER + "Reversing}"),
    "torch's random sampler, drop_last": ("data=drawing", SAMPLER + "Shuffling}", "data.drop_last=true"),
    "batches": ("data=drawing", SAMPLER + "Pairs}", "data.limit_batches=9"),
    "stream, accumulation": ("data=sized", "data.dataset.buffer=5", "trainer.accumulate=2"),
    "stream, drop_last": ("data=sized", "data.dataset.buffer=5", "data.drop_last=true"),
    "endless stream": ("data=stream", "data.dataset.samples=null", "data.dataset.buffer=9", "data.limit_batches=5"),
    "stream that begins again": ("data=stream", "data.limit_batches=9", "data.dataset.buffer=5"),
}
ALWAYS = ("as in docs: several data sets", "as in docs: stream", "batches", "stream, accumulation")
UPDATES = 3  # of each config, from which it goes on


@pytest.fixture(scope="module")
def documented(the_workshop: Workshop) -> Workshop:
    for name, text in FILES.items():
        assert not (the_workshop.root / name).exists(), "a new file"
        (the_workshop.root / name).write_text(text, encoding="utf-8")
    return the_workshop


def trained(workshop: Workshop, directory: Path, *config: str) -> runs.Run:
    ended = workshop.run("train.py", *QUICK, *config, f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    return runs.read(directory)


def resumed(workshop: Workshop, saved: runs.Run, index: int, directory: Path, *changes: str) -> runs.Run:
    """What comes of a run that was killed right after the save with this number."""
    shutil.copytree(saved.directory, directory)
    for later in checkpoint.names(saved.checkpoints)[index + 1 :]:
        shutil.rmtree(directory / runs.CHECKPOINTS / later)
    ended = workshop.run("resume.py", f"run={directory}", *changes)
    assert ended.status == 0, ended.output
    return runs.read(directory)


@pytest.mark.parametrize("name", some(CONFIGS, lambda name: name in ALWAYS))
def test_a_run_goes_on_from_any_update_to_the_same_bits(documented: Workshop, tmp_path: Path, name: str) -> None:
    whole = trained(documented, tmp_path / "whole", *CONFIGS[name])
    saved = trained(documented, tmp_path / "every", *CONFIGS[name], *EVERY)
    assert diff.diff_runs(whole, saved) == [], "saving at each update changes nothing"
    count = len(checkpoint.names(saved.checkpoints))
    for index in random.Random(name).sample(range(count - 1), UPDATES):
        found = resumed(documented, saved, index, tmp_path / str(index))
        assert diff.diff_runs(whole, found) == [], f"from save {index}"


def test_a_stream_goes_on_with_a_worker_and_without_one(documented: Workshop, tmp_path: Path) -> None:
    config = ("data=stream", "data.limit_batches=9", "data.dataset.buffer=5")
    whole = trained(documented, tmp_path / "whole", *config)
    with_worker = trained(documented, tmp_path / "worker", *config, *EVERY, "data.num_workers=1")
    assert diff.diff_runs(whole, with_worker) == []
    found = resumed(documented, with_worker, 4, tmp_path / "left", "data.num_workers=0", *EVERY)
    assert diff.diff_runs(whole, found) == []
    assert diff.diff_runs(whole, resumed(documented, found, 13, tmp_path / "back", "data.num_workers=1")) == []


@pytest.mark.parametrize("persistent", some(["true", "false"], lambda persistent: persistent == "true"))
def test_workers_may_be_as_many_as_you_like_and_others_on_resume(
    documented: Workshop, tmp_path: Path, persistent: str
) -> None:
    """With an augmentation that draws from torch, NumPy, a NumPy generator seeded by NumPy, and `random`."""
    whole = trained(documented, tmp_path / "whole", "data=drawing")
    kept = f"data.persistent_workers={persistent}"
    saved = trained(documented, tmp_path / "4", "data=drawing", *EVERY, kept, "data.num_workers=4")
    assert diff.diff_runs(whole, saved) == []
    for index, workers in enumerate((2, 0, 1, 4)):
        changes = (kept, f"data.num_workers={workers}", *EVERY)
        saved = resumed(documented, saved, 4 * index + 2, tmp_path / f"{index}", *changes)
        assert diff.diff_runs(whole, saved) == [], f"{workers} workers"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (("data=plain",), "data.dataset: project.data.sources.Plain is a stream, and has no state_dict"),
        (("data=stream",), "project.data.sources.Stream is a stream without a length"),
        (("data=sized", "data.num_workers=2"), "data.num_workers=2: project.data.sources.Sized is a stream"),
        (("data=sized", SAMPLER + "Pairs}"), "data.sampler: project.data.sources.Sized is a stream, which has an order of its own. Set it to null."),
        (("data=sized", "data.batch_size=64"), "data.batch_size=64 exceeds the training set (50 samples)."),
        (("data=drawing", SAMPLER + "Shuffling, own: true}"), "data.sampler: project.data.sources.Shuffling gives another order each time"),
        (("data=drawing", SAMPLER + "Plain}"), "data.sampler.dataset: Plain has no argument 'dataset'. It takes: split."),
        (("data=drawing", SAMPLER + "Nobody}"), "data.sampler._target_: 'project.data.sources.Nobody' is not allowed: src/project/data/sources.py does not define Nobody"),
        (("data=drawing", "data.sampler={_target_: torch.utils.data.RandomSampler}"), "data.sampler._target_: 'torch.utils.data.RandomSampler' is not allowed."),
        (("data=drawing", "data.sampler=3"), "data.sampler: needs a _target_, the class to build, for example project.data.balanced.Balanced."),
        (("data=drawing", "data.sampler={own: true}"), "data.sampler: needs a _target_"),
    ],
)  # fmt: skip
def test_what_could_not_be_resumed_is_not_started(workshop: Workshop, config: tuple[str, ...], told: str) -> None:
    ended = workshop.run("train.py", *QUICK, *config)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert f"error: {told}" in ended.output or f"error: data.dataset: {told}" in ended.output, ended.output
    assert workshop.left() == [] or not list(workshop.root.glob("runs/*/*/run.json"))


def test_a_stream_that_gives_too_little_ends_the_run_in_one_line(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *QUICK, "data=sized", "data.dataset.length=60", "data.num_workers=1")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert "gave 50 samples in an epoch, and its length is 60." in ended.output


@pytest.mark.parametrize(
    ("trained_on", "found", "told"),
    [("sized", "drawing", "was trained on a stream, and data.dataset is not one."), ("drawing", "sized", "was not trained on a stream, and data.dataset is one.")],
)  # fmt: skip
def test_a_class_that_has_become_a_stream_or_is_none_any_more_is_refused_on_resume(
    workshop: Workshop, tmp_path: Path, trained_on: str, found: str, told: str
) -> None:
    trained(workshop, tmp_path / "run", f"data={trained_on}")
    sources = workshop.root / "src" / "project" / "data" / "sources.py"
    before, names = sources.read_text(), (trained_on.capitalize(), found.capitalize())
    classes = (
        f"\n\nclass {names[0]}({names[1]}):\n    def __init__(self, split, **_):\n        super().__init__(split)\n"
    )
    try:
        sources.write_text(before + classes)
        ended = workshop.run("resume.py", f"run={tmp_path / 'run'}", "trainer.max_epochs=4")
    finally:
        sources.write_text(before)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert told in ended.output


def test_a_sampler_that_gives_another_order_in_another_process_is_refused_on_resume(
    workshop: Workshop, tmp_path: Path
) -> None:
    trained(workshop, tmp_path / "run", "data=drawing", SAMPLER + "Reversing}")
    sources = workshop.root / "src" / "project" / "data" / "sources.py"
    before = sources.read_text()
    try:
        sources.write_text(before.replace("if self.epoch % 2 else", "if not self.epoch % 2 else"))
        ended = workshop.run("resume.py", f"run={tmp_path / 'run'}", "trainer.max_epochs=4")
    finally:
        sources.write_text(before)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert "data.sampler: it gives another order of epoch 0 than the one epoch_0003" in ended.output


def test_a_sampler_chooses_for_training_and_not_for_validation() -> None:
    with_sampler, without = (parts_of(sampler) for sampler in ("{_target_: project.data.balanced.Balanced}", "null"))
    for one, other, same in ((with_sampler.train, without.train, False), (with_sampler.val, without.val, True)):
        targets = [torch.cat([batch[1] for batch in split.epoch(0)]) for split in (one, other)]
        assert torch.equal(*targets) == same


def parts_of(sampler: str) -> Parts:
    chosen = composition.compose(["tracker=none", "trainer.device=cpu", f"data.sampler={sampler}"], REPOSITORY / "conf")
    settings = validation.check_config(chosen, source=REPOSITORY / "src")
    with rng.isolated():
        return build.assemble(chosen, settings, source=REPOSITORY / "src")[1]
