"""`python -m savepoint show`: what is known of a run, what is inside a checkpoint, wherever they lie."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tools.listed import CONFIG, GIT, listed, save

from savepoint import __main__, checkpoint, runs
from savepoint.runs import Evaluation

NAME = "epoch_0002_step_00000046"


@pytest.fixture
def run(repository: Path) -> runs.Run:
    """A run with a parent, a child, two checkpoints and an evaluation."""
    listed(repository, "bbbb0001", number=1, parents=["aaaa0001"])
    one = listed(
        repository,
        *("aaaa0001", "model=cnn", "optimizer.lr=0.01"),
        name="base",
        parents=["cccc0001"],
        tracker={"kind": "mlflow", "run_id": "12ab"},
        sweep="ab12cd34",
    )
    save(one, 1, 0.5)
    save(one, 2, 0.25)
    runs.record_evaluation(one.directory, Evaluation(NAME, 2, 46, "test", [], {"loss": 0.125}))
    return one


def test_a_run_is_shown_in_plain_lines(run: runs.Run, said: Any) -> None:
    lines = said("show", "aaaa").splitlines()
    size = sum(path.stat().st_size for path in (run.checkpoints / NAME).iterdir()) / 1000
    assert lines[:15] == [
        "id                aaaa0001",
        "name              base",
        "status            finished",
        "started           2026-01-01 12:00",
        f"directory         {run.directory}",
        "command           train.py model=cnn",
        "overrides         model=cnn optimizer.lr=0.01",
        "parents           cccc0001",
        "children          bbbb0001",
        "tracker           kind mlflow, run_id 12ab",
        "sweep             ab12cd34",
        "last              step 46, epoch 2, train/loss 0.5, val/loss 0.25, lr 0.005",
        "best              metric val/loss, value 0.25, epoch 2, step 46",
        f"evaluation        checkpoint {NAME}, epoch 2, step 46, split test, overrides none, values (loss 0.125)",
        "",
    ]
    assert lines[15] == "checkpoint                epoch  step    size"
    assert lines[17] == f"{NAME}      2    46  {size:.1f} kB"
    assert f"  git             commit {GIT['commit']}, branch main, dirty yes" in lines
    assert "  lr: 0.005" in lines
    assert lines[-1] == "Whether the checkpoints are sound was not checked. To do that: python -m savepoint verify aaaa"


def test_json_of_a_run_has_the_documented_keys(run: runs.Run, said: Any) -> None:
    facts = json.loads(said("show", "aaaa", "--json"))
    assert facts["config"] == CONFIG and facts["provenance"]["git"] == GIT and facts["faults"] == []
    assert (facts["children"], facts["parents"], facts["sweep"]) == (["bbbb0001"], ["cccc0001"], "ab12cd34")
    assert facts["last"]["val/loss"] == facts["best"]["value"] == 0.25
    assert [each["name"] for each in facts["checkpoints"]] == ["epoch_0001_step_00000023", NAME]
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    assert not [key for key in facts if f"`{key}`" not in page]


def test_a_checkpoint_is_shown_by_its_files(run: runs.Run, said: Any) -> None:
    facts = json.loads(said("show", f"{run.directory}@best", "--json"))
    path = run.checkpoints / NAME
    assert (facts["name"], facts["run"], facts["epoch"], facts["step"], facts["batch"]) == (NAME, run.id, 2, 46, 0)
    assert facts["metrics"] == {"val/loss": 0.25, "lr": 0.005} and facts["learning_rates"] == [0.005]
    assert facts["generators"] == ["python"] and facts["provenance"]["git"] == GIT
    files = {each["name"]: each for each in facts["files"]}
    assert files["model.safetensors"] == {
        "name": "model.safetensors",
        "size": (path / "model.safetensors").stat().st_size,
        "sha256": hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest(),
        "tensors": 2,
        "values": 10,
        "dtypes": ["BOOL", "F32"],
    }
    assert (files["training.safetensors"]["values"], files["training.safetensors"]["dtypes"]) == (3, ["F64"])
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    assert not [key for key in facts if f"`{key}`" not in page]
    shown = said("show", f"aaaa@{NAME}")
    assert re.search(r"\nmodel\.safetensors +\d+ B +2 +10  BOOL F32  [0-9a-f]{64}\n", shown)
    assert re.search(rf"\nstate\.json +\d+ B +{files['state.json']['sha256']}\n", shown)
    assert shown.endswith(f"To do that: python -m savepoint verify aaaa@{NAME}\n")


def test_named_optimizers_have_their_rates(repository: Path, said: Any) -> None:
    one = listed(repository, "aaaa0001")
    save(
        one,
        1,
        0.5,
        learning_rates=None,
        optimizers={"a": {"learning_rates": [0.1]}, "b": {"learning_rates": [0.2, 0.3]}},
    )
    assert json.loads(said("show", "aaaa@last", "--json"))["learning_rates"] == [0.1, 0.2, 0.3]


def test_a_copy_and_a_run_that_was_moved_are_shown(run: runs.Run, tmp_path: Path, said: Any) -> None:
    copy = Path(shutil.copytree(run.checkpoints / NAME, tmp_path / "from a stranger"))
    facts = json.loads(said("show", str(copy), "--json"))
    assert (facts["name"], facts["run"], facts["step"]) == ("from a stranger", run.id, 46)
    moved = Path(shutil.move(run.directory, tmp_path / "moved"))
    facts = json.loads(said("show", str(moved), "--json"))
    assert (facts["id"], facts["directory"], len(facts["checkpoints"])) == (run.id, str(moved), 2)


def test_showing_writes_nothing(run: runs.Run, said: Any) -> None:
    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in run.directory.rglob("*"))

    (run.directory / ".lock").unlink()
    before = state()
    said("show", run.id)
    said("show", f"{run.id}@best")
    assert state() == before


def test_a_run_before_its_first_checkpoint_is_shown(repository: Path, said: Any) -> None:
    listed(repository, "aaaa0001", status="running")
    shown = said("show", "aaaa")
    assert "status            killed\n" in shown and "checkpoint  " not in shown and "\nconfig\nseed: 0\n" in shown


def test_what_cannot_be_read_of_a_run_is_named_and_the_rest_is_shown(run: runs.Run, said: Any) -> None:
    (run.directory / "config.yaml").write_text("a: &b 1")
    (run.directory / "metrics.jsonl").write_text("{\n")
    (run.checkpoints / NAME / "provenance.json").write_text("[]")
    facts = json.loads(said("show", run.id, "--json"))
    assert [fault.partition(": ")[2].split(".")[0] for fault in facts["faults"]] == [
        "not an object",
        "line 1 is not JSON (Expecting property name enclosed in double quotes: line 2 column 1 (char 2))",
        "a: the anchor &b",
    ]
    assert "status            finished\n" in said("show", run.id)


def seal(path: Path, name: str, data: bytes) -> None:
    """Change a file and its manifest, as somebody who means harm would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_strangers_text_cannot_move_the_cursor(run: runs.Run, said: Any) -> None:
    path = run.checkpoints / NAME
    seal(path, "provenance.json", json.dumps({"command": "\x1b[2J", "\x1b]0;": {"\r": ["\x1b"]}}).encode())
    seal(path, "state.json", json.dumps({"epoch": "\x1b[31m", "metrics": {"\x1b": 1}, "rng": {"\x1b": 1}}).encode())
    run.update(name="\x1b[31mred", overrides=["\x1b"], tracker={"kind": "\x1b"})
    for query in (run.id, f"{run.id}@last"):
        assert "\\x1b" in said("show", query) and "\x1b" not in said("show", query) and "\r" not in said("show", query)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1]},
        {"dtype": "F32", "shape": 3},
        {"dtype": "F32", "shape": ["3"]},
        {"shape": [1]},
        [],
    ],
)
def test_a_header_that_lies_is_one_line(run: runs.Run, capsys: pytest.CaptureFixture[str], entry: Any) -> None:
    header = json.dumps({"weight": entry}).encode()
    seal(run.checkpoints / NAME, "model.safetensors", len(header).to_bytes(8, "little") + header)
    assert __main__.main(["show", f"{run.id}@last"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run.checkpoints / NAME / 'model.safetensors'}: a tensor is described wrongly (")
    assert error.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (checkpoint.MODEL, checkpoint.STATE):
        path = run.checkpoints / NAME / name
        path.unlink()
        os.mkfifo(path)
        assert __main__.main(["show", f"{run.id}@last"]) == 2
        assert capsys.readouterr().err == f"error: {path}: missing, or not a plain file.\n"
    assert __main__.main(["ls"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "Which run? usage: python -m savepoint show <run>[@best] [--json]"),
        ("a b", "Which run? usage: python -m savepoint show <run>[@best] [--json]"),
        ("aaaa --yaml", "show has no option --yaml. usage: python -m savepoint show <run>[@best] [--json]"),
        ("aaaa@7", f"No checkpoint @7 in run aaaa0001. There are: {NAME}, epoch_0001_step_00000023."),
        ("aaaa@" + NAME, "{root}/" + NAME + ": missing model.safetensors."),
    ],
)
def test_wrong_input_is_one_line(
    run: runs.Run, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    (run.checkpoints / NAME / "model.safetensors").unlink()
    assert __main__.main(["show", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('{root}', str(run.checkpoints))}\n"
