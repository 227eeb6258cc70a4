"""`savepoint.load_model`, `load_weights` and `open_run`: what was trained, in a notebook or a service."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tools.processes import REPOSITORY
from tools.workshop import NAMES, Workshop

import savepoint
from savepoint import checkpoint, runs, weights
from savepoint.errors import CheckpointError, ConfigError, UserError
from savepoint.system import rng

SMALL = ("tracker=none", "trainer.threads=1", "data.limit_batches=2", "data.batch_size=16", "trainer.max_epochs=2")


def test_the_model_of_each_checkpoint_has_its_weights_and_evaluates(directory: Path) -> None:
    for query, name in (
        (str(directory), NAMES[-1]),
        (f"{directory}@{NAMES[0]}", NAMES[0]),
        (directory / "checkpoints" / NAMES[1], NAMES[1]),
    ):
        model = savepoint.load_model(query)
        saved = load_file(directory / "checkpoints" / name / "model.safetensors")
        assert not model.training
        assert model.state_dict().keys() == saved.keys()
        assert all(value.equal(saved[key]) for key, value in model.state_dict().items())
    (best,) = checkpoint.best(directory / "checkpoints", monitor="val/loss", mode="min")[:1]
    saved = load_file(directory / "checkpoints" / best / "model.safetensors")
    assert all(value.equal(saved[key]) for key, value in savepoint.load_model(f"{directory}@best").state_dict().items())


def test_a_checkpoint_that_was_copied_out_of_its_run_is_enough(directory: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(directory / "checkpoints" / NAMES[-1], tmp_path / "deployed")
    model = savepoint.load_model(tmp_path / "deployed")
    saved = load_file(alone / "model.safetensors")
    assert all(value.equal(saved[key]) for key, value in model.state_dict().items())
    (alone / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        savepoint.load_model(alone)


def test_no_generator_is_changed(directory: Path) -> None:
    rng.seed(1)
    drawn = torch.rand(1)
    rng.seed(1)
    savepoint.load_model(directory)
    assert torch.rand(1).equal(drawn)


def test_neither_training_nor_tracker_nor_hydra_is_imported(directory: Path) -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import savepoint\n"
        f"savepoint.load_model({str(directory)!r}), savepoint.open_run({str(directory)!r}).checkpoints\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "savepoint.weights.inference" in imported and "project.models.mlp" in imported
    forbidden = ("torch.optim", "hydra", "omegaconf", "mlflow", "matplotlib", "savepoint.training", "savepoint.data")
    assert [each for each in imported if each.startswith(forbidden)] == []


def test_averaged_weights_are_loaded_where_there_are_some(workshop: Workshop, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was trained without trainer\.ema_decay"):
        savepoint.load_model(directory, ema=True)
    averaging = tmp_path / "averaging"
    ended = workshop.run("train.py", *SMALL, "trainer.ema_decay=0.5", f"hydra.run.dir={averaging}")
    assert ended.status == 0, ended.output
    saved = checkpoint.latest(averaging / "checkpoints")[0]
    assert saved is not None
    with weights.tracing() as loaded:
        plain, average = savepoint.load_model(averaging), savepoint.load_model(averaging, ema=True)
    assert [[*origin["sha256"]] for origin in loaded] == [
        ["model.safetensors"],
        ["model.safetensors", "training.safetensors"],
    ]
    assert all(value.equal(saved.state["averaged"][f"module.{key}"]) for key, value in average.state_dict().items())
    assert any(not value.equal(plain.state_dict()[key]) for key, value in average.state_dict().items())


def test_a_config_that_asks_for_another_class_is_refused(directory: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(directory / "checkpoints" / NAMES[-1])
    documents = {"config.yaml": saved.config.replace("project.models.mlp.Mlp", "os.system"), "provenance.json": "{}"}
    bad = checkpoint.save(
        tmp_path,
        model=saved.model,
        state={k: v for k, v in saved.state.items() if k != "format"},
        documents=documents,
        metadata={},
    )
    with pytest.raises(ConfigError, match=r"os\.system"):
        savepoint.load_model(bad)


def test_files_alone_say_what_to_do(tmp_path: Path, directory: Path) -> None:
    shutil.copy(directory / "checkpoints" / NAMES[-1] / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"call savepoint\.load_weights"):
        savepoint.load_model(tmp_path / "model.safetensors")
    model = savepoint.load_model(directory / "checkpoints" / NAMES[0])
    assert savepoint.load_weights(model, tmp_path / "model.safetensors") == []
    saved = load_file(tmp_path / "model.safetensors")
    assert all(value.equal(saved[key]) for key, value in model.state_dict().items())
    assert savepoint.load_weights(model, directory, exclude="head.*") == [
        "left as it was built: head.weight, head.bias"
    ]
    with pytest.raises(ConfigError, match=r"^exclude=x: matches no name"):
        savepoint.load_weights(model, directory, exclude="x")


def test_what_was_loaded_first_is_loaded_again_though_the_name_means_another_now(directory: Path) -> None:
    query = f"{directory}@best"
    with weights.tracing() as loaded:
        first = savepoint.load_model(query)
    (origin,) = loaded
    assert origin["run"] == runs.read(directory).id and origin["sha256"].keys() == {"model.safetensors"}
    other = next(name for name in NAMES if name != origin["checkpoint"])
    recorded = [origin | {"checkpoint": other, "sha256": checkpoint.digests(directory / "checkpoints" / other)}]
    recorded[0]["sha256"] = {"model.safetensors": recorded[0]["sha256"]["model.safetensors"]}
    with weights.tracing(json.loads(json.dumps(recorded))) as again:
        second = savepoint.load_model(query)
    assert again == recorded
    saved = load_file(directory / "checkpoints" / other / "model.safetensors")
    assert all(value.equal(saved[key]) for key, value in second.state_dict().items())
    assert not second.head.weight.equal(first.head.weight)


def test_a_file_that_changed_since_is_refused(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(directory / "checkpoints" / NAMES[0] / "model.safetensors", path)
    model = savepoint.load_model(directory)
    with weights.tracing() as loaded:
        savepoint.load_weights(model, path)
    shutil.copy(directory / "checkpoints" / NAMES[1] / "model.safetensors", path)
    with weights.tracing(loaded), pytest.raises(CheckpointError, match="these are not the weights that the run began"):
        savepoint.load_weights(model, path)


@pytest.mark.parametrize(
    "record",
    [
        [1],
        [{"query": 1}],
        [{"query": "a", "run": [], "checkpoint": None, "sha256": {}}],
        [{"query": "a", "run": None, "checkpoint": None, "sha256": []}],
    ],
)
def test_a_record_that_is_none_is_refused(record: object) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"), weights.tracing(record):
        pass


def test_a_run_opens_to_be_looked_at(directory: Path) -> None:
    run = savepoint.open_run(directory)
    assert run.id == runs.read(directory).id and run.status == "finished" and run.parents == []
    assert run.config["model"]["hidden"] == [8]
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert run.metrics == [json.loads(line) for line in lines]
    assert [each.name for each in run.checkpoints] == NAMES
    last = run.checkpoints[-1]
    assert (last.epoch, last.step, last.path) == (3, 6, directory / "checkpoints" / NAMES[-1])
    assert last.metrics["val/loss"] == run.metrics[-1]["val/loss"]
    frame = run.frame()
    assert list(frame["step"]) == [line["step"] for line in run.metrics]
    assert run.evaluations == []
    (last.path / "state.json").unlink()
    assert savepoint.open_run(directory).checkpoints[-1].metrics == {}
    for query in ("nope", f"{directory}@best"):
        with pytest.raises(UserError, match=r"nope|open_run takes a run"):
            savepoint.open_run(query)
