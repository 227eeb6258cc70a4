"""How a split of the data is built: it prepares itself first, is collated as the config says, or is not there at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tools.sources import Halves, Images, Sized
from tools.workshop import Workshop

from savepoint import data
from savepoint.config import DataSettings
from savepoint.runs import read_history
from savepoint.training.datasets import _named

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "trainer.max_epochs=1")


def test_a_data_set_prepares_itself_before_it_is_read_and_alone(workshop: Workshop, tmp_path: Path) -> None:
    ended = workshop.run("train.py", *SMALL, "data=prepared", f"data.dataset.folder={tmp_path}")
    assert ended.status == 0, ended.output
    assert (tmp_path / "ready").read_text().splitlines() == [
        "Prepared alone=True"
    ] * 2  # for each split, which is quick


def test_a_data_set_that_cannot_be_prepared_is_one_line(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *SMALL, "data=unready")
    assert ended.status == 2 and workshop.left() == []
    (line,) = ended.output.splitlines()
    assert "data.dataset" in line and "the server is down" in line


def test_prepare_gets_the_arguments_that_it_names() -> None:
    def prepare(root: str, size: int = 3) -> None: ...

    assert _named(prepare, {"root": "a", "other": 1}) == {"root": "a"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_makes_the_batches(workers: int) -> None:
    settings = DataSettings(batch_size=8, num_workers=workers)
    batches = data.Batches(Images("train"), split="train", settings=settings, seed=0, collate=Halves())
    plain = data.Batches(Images("train"), split="train", settings=DataSettings(batch_size=8), seed=0)
    for one, other in zip(batches.epoch(0), plain.epoch(0), strict=True):
        assert torch.equal(one[0], other[0][::2]) and torch.equal(one[1], other[1][::2])
    assert len(batches.glance()[1]) == 1 and len(next(batches.first(1).epoch(0))[1]) == 4


def test_a_collate_makes_the_batches_of_a_stream() -> None:
    settings = DataSettings(batch_size=8)
    collate: Any = len
    stream = data.Stream(Sized("train", buffer=3), split="train", settings=settings, seed=0, collate=collate)
    assert next(stream.epoch(0)) == 8 and next(stream.first(1).epoch(0)) == 8


def test_a_collate_of_the_config_is_used(workshop: Workshop, tmp_path: Path) -> None:
    order = (*SMALL, "data=images", "data.batch_size=64", "trainer.log_every_n_steps=null")
    for name, collate in (("whole", ()), ("half", ("data.collate={_target_: project.data.sources.Halves}",))):
        ended = workshop.run("train.py", *order, *collate, f"hydra.run.dir={tmp_path / name}")
        assert ended.status == 0, ended.output
    losses = [read_history(tmp_path / name / "metrics.jsonl")[-1]["val/loss"] for name in ("whole", "half")]
    assert losses[0] != losses[1]
    ended = workshop.run("train.py", *order, "data.collate={_target_: project.data.sources.NoCollate}")
    assert ended.status == 2 and "data.collate: project.data.sources.NoCollate cannot be called." in ended.output


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("data=none",), "data.dataset=null: Classification has no update of its own"),
        (("data.dataset=null",), "data.dataset: needs a _target_, the class to build"),
    ],
    ids=str,
)
def test_no_data_needs_an_update_and_a_length(workshop: Workshop, overrides: tuple[str, ...], message: str) -> None:
    ended = workshop.run("train.py", "tracker=none", *overrides)
    assert ended.status == 2 and workshop.left() == []
    assert message in ended.output, ended.output


def test_no_data_is_as_many_batches_as_its_epoch_has() -> None:
    nothing = data.NoData(5)
    assert list(nothing.epoch(0, start=3)) == [None, None] and len(nothing.first(2)) == 2 == len(nothing.first(9)) - 3
    assert nothing.facts()["samples"] is None and nothing.glance() is None
