"""The weights of a run, read by a program in another language that knows nothing of us.

It needs node and npm, so it is no part of `make test`: `make test-node` installs the reader and runs this.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    arguments = [
        "tracker=none",
        "model=cnn",
        "data.limit_batches=3",
        "trainer.max_epochs=1",
        f"hydra.run.dir={directory}",
    ]
    subprocess.run([sys.executable, REPOSITORY / "train.py", *arguments], check=True)
    (checkpoint,) = (directory / "checkpoints").iterdir()
    return checkpoint


@pytest.fixture(scope="module")
def read(trained: Path) -> dict[str, Any]:
    command = ["node", HERE / "read.mjs", trained / "model.safetensors"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert isinstance(answer, dict)
    return answer


def test_javascript_reads_every_parameter_and_buffer(read: dict[str, Any], trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    assert set(read["tensors"]) == set(weights) and len(weights) > 10
    names = {torch.float32: "F32", torch.int64: "I64"}
    for name, weight in weights.items():
        one = read["tensors"][name]
        assert (one["dtype"], one["shape"]) == (names[weight.dtype], list(weight.shape))
        values = torch.tensor([float(value) for value in one["values"]], dtype=torch.float64)
        assert torch.equal(values.to(weight.dtype).reshape(weight.shape), weight), "as doubles, which are exact here"
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32", "torch.int64"}


def test_javascript_reads_where_the_weights_come_from(read: dict[str, Any], trained: Path) -> None:
    provenance = json.loads((trained / "provenance.json").read_text())
    assert read["metadata"]["savepoint.run_id"] == provenance["run_id"]
    assert read["metadata"]["savepoint.config_sha256"] == provenance["config_sha256"]
    assert read["metadata"]["savepoint.git_commit"] == (provenance["git"]["commit"] or "")
