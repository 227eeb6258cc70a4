"""The worked examples as a user runs them: texts, tables, wrong combinations, tied weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tools.processes import Zygote

from savepoint import checkpoint, runs
from savepoint.commands import diff

QUICK = ("tracker=none", "trainer.threads=1", "debug=one_batch")


@pytest.mark.parametrize(
    ("overrides", "mended"),
    [
        ("model=transformer", "task=language_model"),
        ("data=text", "task=language_model"),
        ("data=text task=language_model model=mlp", "model=transformer"),
        ("task=language_model data=digits", "data=text"),
        ("task=regression model.in_features=10", "model.out_features=1"),
        ("data=diabetes model.in_features=10 model.out_features=1", "task=regression"),
    ],
)
def test_a_wrong_combination_ends_in_one_line_and_what_it_says_mends_it(
    zygote: Zygote, tmp_path: Path, overrides: str, mended: str
) -> None:
    for run, more, status in (("wrong", [], 2), ("right", [mended], 0)):
        ended = zygote.run("train.py", *QUICK, *overrides.split(), *more, f"hydra.run.dir={tmp_path / run}")
        assert ended.status == status, ended.output
        errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        assert len(errors) == (1 if status else 0)
        assert all(mended in line for line in errors)
        assert "Traceback" not in ended.output


@pytest.mark.parametrize("overrides", ["model=transformer task=language_model", "task=language_model"])
def test_a_language_model_trains_on_text_without_being_told_to(zygote: Zygote, tmp_path: Path, overrides: str) -> None:
    ended = zygote.run("train.py", *QUICK, *overrides.split(), f"hydra.run.dir={tmp_path}")
    assert ended.status == 0, ended.output
    assert "val/bits_per_token" in ended.output


def test_a_table_of_ones_own_is_trained_on(zygote: Zygote, tmp_path: Path) -> None:
    rows = np.random.RandomState(0).normal(size=(60, 3))
    rows[:, 2] = 100 + 5 * (2 * rows[:, 0] - rows[:, 1])
    table = "a,b,y\n" + "\n".join(",".join(str(cell) for cell in row) for row in rows)
    (tmp_path / "own.csv").write_text(table, encoding="utf-8")
    own = ("task=regression", "data=csv", f"data.dataset.csv={tmp_path / 'own.csv'}", "data.dataset.target=y")
    linear = ("model.in_features=2", "model.hidden=[]", "model.out_features=1", "optimizer.lr=0.05")
    ended = zygote.run(
        "train.py", *own, *linear, "tracker=none", "trainer.threads=1", f"hydra.run.dir={tmp_path / 'run'}",
        "trainer.max_epochs=100",
    )  # fmt: skip
    assert ended.status == 0, ended.output
    last = next(line for line in ended.output.splitlines() if line.startswith("last "))
    assert float(last.split("val/r2 ")[1].split()[0]) > 0.99


SMALL = (
    *("model=transformer", "task=language_model", "model.width=8", "model.layers=1", "data.batch_size=8"),
    *("tracker=none", "trainer.threads=1", "data.limit_batches=9"),
)


def test_tied_weights_dropout_and_label_smoothing_go_on_after_a_resume(zygote: Zygote, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    start = ("train.py", *SMALL, "task.label_smoothing=0.1", "model.dropout=0.2")
    for ended in (
        zygote.run(*start, f"hydra.run.dir={whole}", "trainer.max_steps=8"),
        zygote.run(*start, f"hydra.run.dir={parted}", "trainer.max_steps=3"),
        zygote.run("resume.py", f"run={parted}", "trainer.max_steps=8"),
    ):
        assert ended.status == 0, ended.output
    pair = [runs.read(directory) for directory in (whole, parted)]
    ends = [checkpoint.load(each.checkpoints / checkpoint.names(each.checkpoints)[-1]) for each in pair]
    assert diff.diff_checkpoints(*ends) == []
    assert torch.equal(ends[1].model["head.weight"], ends[1].model["token_embedding.weight"])
    middle = checkpoint.load(pair[1].checkpoints / checkpoint.names(pair[1].checkpoints)[0])
    assert not torch.equal(middle.model["head.weight"], ends[1].model["head.weight"])
