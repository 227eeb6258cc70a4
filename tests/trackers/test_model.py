"""The model of a finished run is a model of MLflow's: it loads elsewhere, without unpickling, to the same outputs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load
from tools.warm import Nursery
from tools.workshop import Workshop
from torch import Tensor, nn

from savepoint import runs, weights
from savepoint.errors import UserError
from savepoint.trackers.mlflow import model
from savepoint.training import example

SMALL = ("trainer.threads=1", "model.hidden=[8]", "data.limit_batches=2", "data.batch_size=16")

# In a process of its own, which knows neither this repository nor how to unpickle.
ELSEWHERE = """
import json, os, pickle, sys
import cloudpickle, mlflow, torch

def refuse(*_, **__): raise AssertionError("something was unpickled")

pickle.load = pickle.loads = pickle.Unpickler = cloudpickle.load = cloudpickle.loads = torch.load = refuse
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/" + sys.argv[2])
client = mlflow.MlflowClient()
versions = client.search_model_versions("name = 'digits'")
signature = model.metadata.signature
print(json.dumps({
    "inputs": [[str(each.type), each.name, list(each.shape)] for each in signature.inputs],
    "outputs": [[str(each.type), each.name, list(each.shape)] for each in signature.outputs],
    "example": model.input_example.tolist(),
    "output": model.predict(model.input_example).tolist(),
    "rows": len(model.predict(model.input_example.repeat(3, axis=0))),
    "package": sys.modules["savepoint"].__file__,
    "requirements": open(mlflow.pyfunc.get_model_dependencies("models:/" + sys.argv[2])).read().split(),
    "versions": sorted([each.version, each.run_id, each.status] for each in versions),
    "names": sorted({each.name for each in client.search_logged_models(["1"])}),
    "models": sorted(each.tags["savepoint.checkpoint"] for each in client.search_logged_models(["1"])),
    "shown": [each.tags.get("mlflow.modelVersions") for each in client.search_logged_models(["1"])],
    "outputs of the run": len(client.get_run(versions[0].run_id).outputs.model_outputs),
}))
"""


@pytest.fixture
def tracked(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, the_nursery: Nursery) -> Iterator[Workshop]:
    """The workshop with a store of MLflow's own, which is gone with the test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with workshop.zygote.tracking(the_nursery):
        yield workshop
    for path in workshop.root.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(workshop.root / "mlartifacts", ignore_errors=True)


def test_a_registered_model_loads_elsewhere_to_the_same_outputs(tracked: Workshop, tmp_path: Path) -> None:
    root = tracked.root
    register = "tracker.register_as=digits"
    ended = tracked.run("train.py", *SMALL, "trainer.max_epochs=1", "name='a.b c:d'", register)
    assert ended.status == 0, ended.output
    for _ in range(2):  # the second time there is nothing to do but to finish
        ended = tracked.run("resume.py", "run=latest", "trainer.max_epochs=2", register)
        assert ended.status == 0, ended.output
    ended = tracked.run("savepoint", "sync", "latest", register)
    assert ended.status == 0 and "everything is stored" in ended.output, ended.output

    (run,) = runs.all_runs(root)
    command = [sys.executable, "-P", "-c", ELSEWHERE, f"sqlite:///{root / 'mlflow.db'}", "digits/2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not Path(found["package"]).is_relative_to(root)
    assert found["versions"] == [[each, run.tracker_id, "READY"] for each in (1, 2)]
    assert found["models"] == ["epoch_0001_step_00000002", "epoch_0002_step_00000004"]
    assert sorted(map(json.loads, found["shown"]), key=str) == [
        [{"name": "digits", "version": each}] for each in (1, 2)
    ]
    assert found["outputs of the run"] == 2 and found["names"] == ["a_b c_d"]
    assert found["inputs"] == [["float32", None, [-1, 8, 8]]] and found["outputs"] == [["float32", None, [-1, 10]]]
    assert found["rows"] == 3 and f"torch=={torch.__version__.partition('+')[0]}" in found["requirements"]
    model = weights.load_model(run.directory)
    inputs = torch.tensor(found["example"], dtype=torch.float32)
    with torch.no_grad():
        assert numpy.array_equal(model(inputs).numpy(), numpy.array(found["output"], dtype="float32"))


class Pairs(nn.Module):
    def forward(self, words: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return words.sum(1), words.to(torch.bfloat16)


def packed(model: nn.Module, *calls: dict[str, object]) -> bytes | None:
    with example.noting(model) as noted:
        for call in calls:
            model(**call)
    return example.pack(noted)


def test_weights_in_parts_are_not_stored_and_a_wish_to_register_them_is_refused(tmp_path: Path) -> None:
    """Neither asks MLflow for anything."""
    (tmp_path / "model.rank_00000_of_00002.safetensors").touch()
    asked: dict[str, Any] = {"checkpoint": tmp_path, "example": tmp_path / "example", "repository": tmp_path}
    nobody: Any = None
    model.log_model("", nobody, nobody, **asked, register_as=None)
    with pytest.raises(UserError, match=r"in parts, which MLflow cannot register.*savepoint export"):
        model.log_model("", nobody, nobody, **asked, register_as="digits")


def test_an_example_has_one_sample_and_the_sizes_that_differ(tmp_path: Path) -> None:
    calls = [{"words": torch.ones(2, length, 3), "mask": torch.ones(2, length) > 0} for length in (5, 7)]
    file = packed(Pairs(), *calls)
    assert file is not None
    tensors = load(file)
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {
        "inputs/words": (1, 7, 3), "inputs/mask": (1, 7), "outputs/output_0": (1, 3), "outputs/output_1": (1, 7, 3),
    }  # fmt: skip
    assert tensors["outputs/output_1"].dtype is torch.float32  # NumPy has no bfloat16
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    assert json.loads(header["__metadata__"]["shapes"]) == {
        "inputs/words": [-1, -1, 3], "inputs/mask": [-1, -1], "outputs/output_0": [-1, 3], "outputs/output_1": [-1, -1, 3],
    }  # fmt: skip


class Given(nn.Module):
    def forward(self, value: object) -> object:
        return value


@pytest.mark.parametrize(
    "value",
    [
        "text",
        {"nested": {"a": torch.ones(2)}},
        torch.tensor(1.0),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, example.MOST_BYTES // 4 + 1),
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
    ],
    ids=["text", "nested", "scalar", "sparse", "complex", "large", "nested tensor"],
)
def test_a_call_that_mlflow_has_no_signature_for_is_no_example(value: object) -> None:
    assert packed(Given(), {"value": value}) is None
    assert packed(Given()) is None
