"""Two runs are the same if every bit is, and what differs is named."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.processes import REPOSITORY
from tools.sealed import seal
from tools.workshop import NAMES
from torch import Tensor

from savepoint import checkpoint, runs
from savepoint.checkpoint import Checkpoint, layout
from savepoint.checkpoint.tensorfile import DTYPES
from savepoint.commands import compare, diff
from savepoint.errors import UserError
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


@pytest.mark.parametrize("name, dtype", DTYPES.items(), ids=DTYPES.keys())
def test_the_largest_difference_is_told_for_every_dtype(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    pair = [torch.tensor(values).to(dtype) for values in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    a, b = (checkpoint.latest(made(tmp_path / at, model={name: each}).checkpoints)[0] for at, each in zip("ab", pair))
    assert a is not None and b is not None
    assert diff.diff_contents(a, b, magnitudes=True)[0] == [f"{name}: 2 of 3 values differ, by at most 1"]


def test_a_difference_to_nan_has_no_size(tmp_path: Path) -> None:
    pair = [torch.tensor(values) for values in ([0.0, float("nan"), 4.0], [0.5, 1.0, 4.0])]
    a, b = (checkpoint.latest(made(tmp_path / at, model={"w": each}).checkpoints)[0] for at, each in zip("ab", pair))
    assert a is not None and b is not None
    assert diff.diff_contents(a, b, magnitudes=True)[0] == ["w: 2 of 3 values differ, by at most 0.5"]


# The command


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    return compare(REPOSITORY, [str(each) for each in arguments]), capsys.readouterr().out


def test_config_code_and_versions_are_told_and_decide_nothing(
    trained: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, trained, directory) == (0, "identical\n")
    path = directory / "checkpoints" / NAMES[-1]
    seal(path / "config.yaml", lambda data: data.replace(b"batch_size: 16", b"batch_size: 17"))
    seal(path / "changes.patch", lambda _: b"a patch\n")
    commit = json.loads((path / "provenance.json").read_bytes())["git"]["commit"]
    now = {"git": {"commit": "0" * 40}, "versions": {"torch": "1.0\x1b[2J"}, "threads": 1}
    seal(path / "provenance.json", lambda data: json.dumps(json.loads(data) | now).encode())
    code, out = said(capsys, trained, directory)
    lines = out.splitlines()
    assert code == 0 and lines[-1] == "identical" and "\x1b" not in out
    assert lines[:4] == [
        "config",
        "  data.batch_size  16 → 17",
        "code",
        f"  git commit {str(commit)[:10].replace('None', 'none')} → 0000000000",
    ]
    assert lines[4] == f"  uncommitted changes none → {hashlib.sha256(b'a patch' + bytes([10])).hexdigest()[:12]}"
    assert lines[5] == "versions and hardware" and lines[6].endswith(" → 1.0\\x1b[2J")


def test_two_checkpoints_of_a_run_are_compared_section_by_section(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for a, b in (("@2", "@last"), (f"@{NAMES[0]}", "@6"), (f"/checkpoints/{NAMES[0]}", f"/checkpoints/{NAMES[2]}")):
        code, out = said(capsys, f"{trained}{a}", f"{trained}{b}")
        assert code == 1 and out.endswith("\ndifferent\n")
        headings = [line for line in out.splitlines() if not line.startswith(" ")]
        assert headings == ["metrics", "tensors", "state", "different"]
        assert "  step: 2, 6\n" in out and ", by at most " in out and "\n  best val/loss " in out
    assert said(capsys, f"{trained}@last", f"{trained}@6") == (0, "identical\n")


def test_a_whole_run_has_a_history_and_a_checkpoint_has_none(
    trained: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    (directory / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    told = f"metrics.jsonl: {len(lines)} lines, {len(lines) - 1} lines"
    assert said(capsys, trained, directory) == (1, f"history\n  {told}\ndifferent\n")
    assert said(capsys, trained, f"{directory}@last") == (0, "identical\n")
    only = shutil.copytree(directory, directory.with_name("only"))
    for name in NAMES[:2]:
        shutil.rmtree(only / "checkpoints" / name)
    for query in (f"{only}@last", only / "checkpoints" / NAMES[2]):
        assert said(capsys, trained, query) == (0, "identical\n"), "although its run has no other checkpoint"
    shutil.rmtree(directory / "checkpoints" / NAMES[-1])
    assert f"state\n  checkpoint: {NAMES[2]}, {NAMES[1]}\n" in said(capsys, trained, directory)[1]


def test_checkpoints_without_a_run_are_compared(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copytree(trained / "checkpoints" / NAMES[2], tmp_path / NAMES[2])
    assert said(capsys, alone, f"{trained}@last") == (0, "identical\n")
    assert said(capsys, tmp_path, trained)[0] == 0


def test_the_answer_for_programs(trained: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = said(capsys, f"{trained}@2", directory, "--json")
    found = json.loads(out)
    assert code == 1 and found["identical"] is False and found["config"] == {}
    assert found["a"] == {"checkpoint": str(trained / "checkpoints" / NAMES[0]), "run": runs.read(trained).id}
    assert len(found["metrics"]["val/loss"]) == 2 and found["tensors"] and "history" not in found
    code, out = said(capsys, "--json", trained, directory)
    assert code == 0 and json.loads(out)["identical"] is True and json.loads(out)["history"] == []


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "Which two? usage: "),
        (["{run}"], "Which two? usage: "),
        (["{run}", "{run}", "{run}"], "Which two? usage: "),
        (["{run}", "--fast"], "Which two? usage: "),
        (["{run}", "nowhere"], "No run nowhere."),
        (["{run}", "{run}@7"], "No checkpoint @7 in run "),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(trained: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        compare(REPOSITORY, [each.replace("{run}", str(trained)) for each in arguments])
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_passed_over_and_said_where_it_was_named(directory: Path, trained: Path) -> None:
    (directory / "checkpoints" / NAMES[2] / "state.json").unlink()
    with pytest.raises(UserError, match=r"missing state\.json"):
        compare(REPOSITORY, [f"{directory}@6", str(trained)])
    assert compare(REPOSITORY, [str(directory), f"{trained}@4"]) == 0
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        compare(REPOSITORY, [str(directory), str(trained)])
