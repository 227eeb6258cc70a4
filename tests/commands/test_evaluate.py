"""`trainer.test` and `python -m savepoint evaluate`: a checkpoint is measured apart from training, and that is recorded."""

import hashlib
import json
import math
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tools.processes import REPOSITORY
from tools.warm import Nursery
from tools.workshop import Workshop

from savepoint import runs
from savepoint.__main__ import main
from savepoint.commands.evaluate import evaluate_run
from savepoint.errors import ConfigError, UserError
from savepoint.runs import Evaluation, read_evaluations, read_history, record_evaluation
from savepoint.trackers.points import evaluation_points

SMALL = ("trainer.threads=1", "model.hidden=[8]", "data.limit_batches=3", "trainer.max_epochs=3")
TEST = ("trainer.test=true", "data.dataset.test_fraction=0.2")


@pytest.fixture(scope="module")
def tested(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was tested at its end."""
    directory = tmp_path_factory.mktemp("tested") / "run"
    ended = the_workshop.run("train.py", "tracker=none", *SMALL, *TEST, f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    assert "test epoch_0003_step_00000009: loss " in ended.output
    return directory


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate_run(REPOSITORY, [*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_is_tested_once_it_is_finished(tested: Path) -> None:
    (found,) = read_evaluations(tested)
    assert (found.checkpoint, found.split, found.overrides) == ("epoch_0003_step_00000009", "test", [])
    assert set(found.values) == {"loss", "accuracy"}
    assert not any(key.startswith("test/") for line in read_history(tested / "metrics.jsonl") for key in line)


def test_evaluate_measures_what_training_measured(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_evaluations(tested)
    again = answer(capsys, str(tested), "--split", "test")
    assert again["values"] == before[0].values
    assert read_evaluations(tested) == before, "the same result is recorded once"
    found = answer(capsys, f"{tested}@best")
    last = read_history(tested / "metrics.jsonl")[-1]
    assert {f"val/{name}": value for name, value in found["values"].items()} == {
        key: value for key, value in last.items() if key.startswith("val/")
    }
    assert read_evaluations(tested)[1].split == "val"


def test_evaluate_on_other_data_says_so(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tested), "data.dataset.limit=10", "--split=test"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"run {runs.read(tested).id}  epoch_0003_step_00000009  test\n  loss      ")
    newest = read_evaluations(tested)[-1]
    assert newest.overrides == ["data.dataset.limit=10"]
    keys = {point.key for point in evaluation_points(tested / "evaluations.jsonl")}
    assert {"test/loss", "test data.dataset.limit=10/loss"} <= keys


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Which run? usage: "),
        (["a", "b"], "Which run? usage: "),
        (["nowhere"], "No run nowhere."),
        (["{run}", "--split", "train"], "--split train: there are val and test."),
        (["{run}", "--fast"], "evaluate has no option --fast. usage: "),
        (["{run}", "optimizer.lr=1"], "optimizer.lr=1: only the data and the device can differ"),
        (["{run}", "data.dataset.limt=1"], "data.dataset.limt=1: "),
        (["{run}", "--split", "test", "data.dataset.test_fraction=0"], "data.dataset.test_fraction=0: no image"),
        (["{run}@7", "--split", "test"], "No checkpoint @7."),
        (["{run}", "data=text"], "model, data and task|do not work together|"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(
    tested: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = (tested / "evaluations.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        evaluate_run(REPOSITORY, [each.replace("{run}", str(tested)) for each in arguments])
    assert any(each in str(caught.value) for each in message.split("|"))
    assert (tested / "evaluations.jsonl").read_bytes() == before


def test_training_does_not_touch_the_test_split(workshop: Workshop) -> None:
    ended = workshop.run("train.py", "tracker=none", "data=guarded", "trainer.max_epochs=1", "trainer.test=true")
    assert ended.status == 0 and "\ntest epoch_0001_step_00000001: loss " in ended.output, ended.output
    ended = workshop.run("train.py", "tracker=none", "data=untestable", "trainer.max_epochs=1")
    assert ended.status == 0, ended.output


def test_a_data_set_without_a_test_split_is_refused_before_training(workshop: Workshop) -> None:
    ended = workshop.run("train.py", "tracker=none", "data=untestable", "trainer.test=true")
    assert ended.status == 2 and workshop.left() == []
    (line,) = ended.output.splitlines()
    assert line.startswith("error: trainer.test=true: there is nothing to test on. ")
    assert "there is no such split" in line


def test_the_best_checkpoint_is_tested_and_a_finished_run_can_be_tested_later(
    workshop: Workshop, nursery: Nursery, tmp_path: Path
) -> None:
    directory, store = tmp_path / "run", f"tracker.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    best = ("checkpoint.monitor=val/loss", "checkpoint.mode=max", "data.dataset.test_fraction=0.2")
    best += ("trainer.figures_every_n_epochs=2",)
    with workshop.zygote.tracking(nursery):
        ended = workshop.run("train.py", store, *SMALL, *best, f"hydra.run.dir={directory}")
    assert ended.status == 0 and not (directory / "evaluations.jsonl").exists()
    lines = (directory / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with workshop.zygote.tracking(nursery):
            ended = workshop.run("resume.py", f"run={directory}", "trainer.test=true", store)
        assert ended.status == 0 and "\ntest epoch_0001_step_00000003: loss " in ended.output, ended.output
    assert (directory / "metrics.jsonl").read_bytes() == lines
    (found,) = read_evaluations(directory)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        stored = database.execute("select key, value, step from metrics where key like 'test%'").fetchall()
    assert [path.name for path in tmp_path.glob("mlartifacts/*/artifacts/figures/confusion_matrix/*")] == [
        "epoch_0002_step_00000006.png"
    ]
    accuracy, loss = found.values["accuracy"], found.values["loss"]
    assert sorted(stored) == [("test/accuracy", pytest.approx(accuracy), 3), ("test/loss", loss, 3)]


# The record


def test_a_torn_line_is_left_out_and_the_next_one_whole(tmp_path: Path) -> None:
    one = Evaluation("epoch_0001_step_00000002", 1, 2, "test", [], {"loss": math.nan})
    record_evaluation(tmp_path, one)
    record_evaluation(tmp_path, one)
    with open(tmp_path / "evaluations.jsonl", "ab") as file:
        file.write(b'{"time": 12')
    assert len(read_evaluations(tmp_path)) == 1
    record_evaluation(tmp_path, Evaluation("epoch_0001_step_00000002", 1, 2, "val", [], {"loss": 1.0}))
    assert [each.split for each in read_evaluations(tmp_path)] == ["test", "val"]
    assert [point.key for point in evaluation_points(tmp_path / "evaluations.jsonl")] == ["test/loss", "val/loss"]


def test_a_checkpoint_that_may_not_be_trained_may_not_be_evaluated(tested: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tested, tmp_path / "copy"))
    for path in copy.glob("checkpoints/*/config.yaml"):
        path.write_text(path.read_text().replace("project.models.mlp.Mlp", "os.system"))
        manifest = json.loads((path.parent / "manifest.json").read_text())
        data = path.read_bytes()
        manifest["files"]["config.yaml"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"os\.system"):
        evaluate_run(REPOSITORY, [str(copy)])
