"""Two runs are the same if every bit is, and what differs is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from savepoint import checkpoint
from savepoint.checkpoint import Checkpoint, layout
from savepoint.checkpoint.tensorfile import DTYPES
from savepoint.commands import diff
from savepoint.runs import Run

LINES = [{"step": 1, "epoch": 0, "train/loss": 0.5}, {"step": 2, "epoch": 1, "val/loss": 0.25, "val/accuracy": "nan"}]


def made(
    root: Path, *, lines: list[dict[str, Any]] | None = None, model: dict[str, Tensor] | None = None, **state: Any
) -> Run:
    values = {
        "epoch": 1,
        "step": 2,
        "batch": 0,
        "metrics": {"val/loss": 0.25},
        "best": None,
        "moments": torch.arange(3.0),
    }
    checkpoint.save(
        root / "checkpoints",
        model={"weight": torch.tensor([1.0, 2.0])} if model is None else model,
        state=values | state,
        documents={layout.CONFIG: f"name: {root.name}\n", layout.PROVENANCE: json.dumps({"host": root.name})},
        metadata={"savepoint.run_id": root.name},
    )
    text = "".join(json.dumps(line) + "\n" for line in (LINES if lines is None else lines))
    (root / "metrics.jsonl").write_text(text)
    return Run(root, {"id": root.name})


def compared(tmp_path: Path, **changes: Any) -> list[str]:
    return diff.diff_runs(made(tmp_path / "a"), made(tmp_path / "b", **changes))


def test_runs_of_equal_bits_are_equal_whatever_their_names_are(tmp_path: Path) -> None:
    assert compared(tmp_path) == []


def test_time_and_the_machine_are_not_compared(tmp_path: Path) -> None:
    lines = [line | {"time": 1.0 + step, "system/samples_per_second": 3.0 * step} for step, line in enumerate(LINES)]
    assert compared(tmp_path, lines=lines) == []


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model": {"weight": torch.tensor([1.0, 2.0000002])}}, "weight: 1 of 2 values differ"),
        ({"model": {"weight": torch.tensor([1.0, 2.0]).double()}}, "weight: torch.float32 [2], torch.float64 [2]"),
        ({"model": {"weight": torch.tensor([[1.0, 2.0]])}}, "weight: torch.float32 [2], torch.float32 [1, 2]"),
        ({"model": {"weight": torch.tensor([1.0, 2.0]), "bias": torch.zeros(1)}}, "bias: only in one of the two"),
        ({"moments": torch.tensor([0.0, 1.0, 3.0])}, "moments: 1 of 3 values differ"),
        ({"moments": torch.tensor([-0.0, 1.0, 2.0])}, "moments: 1 of 3 values differ"),
        ({"batch": 1}, "batch: 0, 1"),
        ({"batch": 0.0}, "batch: 0, 0.0"),
        ({"batch": False}, "batch: 0, False"),
        ({"metrics": {"val/loss": 0.25000000000000006}}, "metrics/val/loss: 0.25, 0.25000000000000006"),
        ({"metrics": {}}, "metrics/val/loss: only in one of the two"),
        ({"metrics": {"val/loss": 0.25, "more": None}}, "metrics/more: only in one of the two"),
        ({"extra": None}, "extra: only in one of the two"),
        ({"lines": LINES[:1]}, "metrics.jsonl: 2 lines, 1 lines"),
        ({"lines": [LINES[0], LINES[1] | {"val/loss": 0.5}]}, "metrics.jsonl line 2/val/loss: 0.25, 0.5"),
        ({"lines": [LINES[0] | {"lr": 0.1}, LINES[1]]}, "metrics.jsonl line 1/lr: only in one of the two"),
        ({"lines": [LINES[0], LINES[1] | {"val/accuracy": "inf"}]}, "metrics.jsonl line 2/val/accuracy: 'nan', 'inf'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_smallest_difference_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert compared(tmp_path, **changes) == [told]


def test_the_sign_of_a_zero_in_a_value_is_a_difference(tmp_path: Path) -> None:
    found = diff.diff_runs(made(tmp_path / "a", value=0.0), made(tmp_path / "b", value=-0.0))
    assert found == ["value: 0.0, -0.0"]


def test_nans_of_the_same_bits_are_equal_and_of_others_are_not(tmp_path: Path) -> None:
    one = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert diff.diff_runs(made(tmp_path / "a", nan=one), made(tmp_path / "b", nan=one.clone())) == []
    assert diff.diff_runs(made(tmp_path / "c", nan=one), made(tmp_path / "d", nan=one.flip(0))) == [
        "nan: 2 of 2 values differ"
    ]


@pytest.mark.parametrize("name, dtype", DTYPES.items(), ids=DTYPES.keys())
def test_tensors_of_every_dtype_are_compared_bit_by_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    one = torch.zeros(2, 3, dtype=torch.uint8).repeat_interleave(dtype.itemsize, dim=1).view(dtype)
    other = one.clone()
    other.view(torch.uint8)[1, -1] = 1
    found = diff.diff_runs(made(tmp_path / "a", model={name: one}), made(tmp_path / "b", model={name: other}))
    assert found == [f"{name}: 1 of 6 values differ"]


def test_empty_tensors_and_those_without_dimensions_are_compared(tmp_path: Path) -> None:
    model = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}
    other = model | {"scalar": torch.tensor(2.0)}
    found = diff.diff_runs(made(tmp_path / "a", model=model), made(tmp_path / "b", model=other))
    assert found == ["scalar: 1 of 1 values differ"]


def test_the_newest_sound_checkpoints_are_compared(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    made(tmp_path / "b", step=3)
    found = diff.diff_runs(a, b)
    assert found[0] == "checkpoint: epoch_0001_step_00000002, epoch_0001_step_00000003"
    assert "step: 2, 3" in found
    (b.checkpoints / "epoch_0001_step_00000003" / layout.STATE).unlink()
    assert diff.diff_runs(a, b) == []


def test_a_run_without_a_sound_checkpoint_equals_nothing(tmp_path: Path) -> None:
    a, empty = made(tmp_path / "a"), Run(tmp_path / "empty", {"id": "empty"})
    told = f"{empty.directory}: no sound checkpoint"
    assert diff.diff_runs(a, empty) == diff.diff_runs(empty, a) == [told]
    assert diff.diff_runs(empty, empty) == [told, told]


def test_all_differences_are_told_and_not_the_first_alone(tmp_path: Path) -> None:
    found = compared(
        tmp_path, model={"weight": torch.tensor([0.0, 0.0])}, batch=1, moments=torch.zeros(3), lines=LINES[:1]
    )
    assert len(found) == 4


def test_checkpoints_can_be_compared_without_their_runs(tmp_path: Path) -> None:
    def loaded(name: str, **state: Any) -> Checkpoint:
        newest, _ = checkpoint.latest(made(tmp_path / name, **state).checkpoints)
        assert newest is not None
        return newest

    assert diff.diff_checkpoints(loaded("a"), loaded("b", batch=7)) == ["batch: 0, 7"]
