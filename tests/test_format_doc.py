"""docs/checkpoint-format.md is enough: the reader at its end, with NumPy alone, reads every value that torch holds."""

import ast
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from savepoint import checkpoint, runs
from savepoint.checkpoint import encoding, tensorfile, tree
from savepoint.config import composition
from savepoint.runs import provenance
from savepoint.system import rng, signals
from savepoint.trackers.none import NoTracker
from savepoint.training import build, loop, progress, saves
from savepoint.training.state import TrainState
from savepoint.trust import strict_yaml, validation

REPOSITORY = Path(__file__).resolve().parents[1]
DOC = (REPOSITORY / "docs" / "checkpoint-format.md").read_text(encoding="utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
# The engine's own list of what JSON has no word for.
TAGS = set(re.findall(r'"(\$[a-z]+)"', Path(tree.__file__).read_text(encoding="utf-8"))) | encoding.TAGS
CONFIGS = {
    "adamw, in the middle of an epoch": (
        *("data.dataset.augment=true", "model.batch_norm=true", "scheduler=warmup_cosine"),
        *("trainer.max_epochs=null", "trainer.max_steps=11", "trainer.log_every_n_steps=5"),
    ),
    "fp16, sgd, milestones": (
        *("amp=fp16", "optimizer=sgd", "scheduler=multistep", "scheduler.milestones=[1,3]", "trainer.accumulate=3"),
        "trainer.max_epochs=2",
    ),
    "cnn, rmsprop, plateau": ("model=cnn", "optimizer=rmsprop", "scheduler=plateau", "trainer.max_epochs=1"),
}


@pytest.fixture(scope="module")
def reader() -> SimpleNamespace:
    names: dict[str, Any] = {}
    exec(compile(READER, "docs/checkpoint-format.md", "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run that was just trained in this process: `state` is what torch holds, `path` the checkpoint of it."""
    chosen = composition.compose(
        ["tracker=none", "trainer.device=cpu", "data.dataset.limit=500", *CONFIGS[request.param]], REPOSITORY / "conf"
    )
    settings = validation.check_config(chosen, source=REPOSITORY / "src")
    directory, text = tmp_path_factory.mktemp("trained") / "run", strict_yaml.dump_config(chosen)
    one = runs.create(directory, id=runs.new_id(), name=None, config=text, overrides=[])
    source = provenance.gather_provenance(REPOSITORY) | {"config_sha256": hashlib.sha256(text.encode()).hexdigest()}
    source |= {"device": "cpu", "compile": False}
    with rng.isolated():
        state, parts = build.assemble(chosen, settings, source=REPOSITORY / "src")
        where = saves.Saves(one, settings, config=text, patch=None, provenance=source, resumed_from=None)
        with progress.show(epochs=None, steps=1, done=0) as shown:
            loop.fit(state, parts, where, NoTracker(), shown, signals.Stop())
        where.close()
        generators = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
        generators |= {"torch": torch.get_rng_state(), "devices": rng.capture()["devices"]}
    assert where.newest is not None
    return SimpleNamespace(state=state, path=where.newest, generators=generators, run=one)


def test_reader_is_short_and_needs_only_numpy() -> None:
    assert len(READER.splitlines()) < 70
    tree_ = ast.parse(READER)
    imported = {name.name for node in ast.walk(tree_) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree_) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"hashlib", "json", "collections", "pathlib", "numpy"}


def test_reader_reads_every_value_that_torch_holds(reader: SimpleNamespace, trained: SimpleNamespace) -> None:
    model, state, metadata = reader.read(trained.path)
    assert differences(model, dict(trained.state.model.state_dict()), "model") == []
    assert differences(state, held(trained.state, trained.generators), "state") == []
    assert metadata == {
        "format": "pt",
        "savepoint.format": "2",
        "savepoint.run_id": trained.run.id,
        "savepoint.git_commit": json.loads((trained.path / "provenance.json").read_bytes())["git"]["commit"] or "",
        "savepoint.config_sha256": hashlib.sha256((trained.path / "config.yaml").read_bytes()).hexdigest(),
    }


def held(state: TrainState, generators: dict[str, Any]) -> dict[str, Any]:
    """What torch and the loop hold, asked of them directly."""
    versions = {name: entry.get("version") for name, entry in state.model.state_dict()._metadata.items()}  # type: ignore[attr-defined]
    counts = {name: getattr(state, name) for name in ("epoch", "step", "batch", "samples", "history_lines")}
    one = state.optimizers[""]
    values = {name: getattr(state, name) for name in ("evaluated", "metrics", "best", "stale", "order")}
    values |= {name: getattr(one, name) for name in ("learning_rates", "schedule_length")}
    torchs = {name: getattr(one, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
    epoch = {"sums": state.sums, "logged": state.logged}
    epoch |= {"logged_sums": state.logged_sums, "grad_norms": state.grad_norms}
    model = {
        "model_extra": {},
        "model_versions": versions,
        "frozen": [],
        "registered": {},
        "averaged": None,
        "stream": None,
    }
    return {"format": 2, "rng": generators} | counts | values | torchs | epoch | model


def test_trainings_above_have_something_of_everything(reader: SimpleNamespace, trained: SimpleNamespace) -> None:
    """So that the comparison is not one of empty values."""
    state = reader.read(trained.path)[1]
    assert all(state[key] for key in ("learning_rates", "history_lines", "model_versions"))
    assert state["optimizer"]["state"]
    if state["batch"]:
        assert state["sums"]["loss"] > 0 and state["logged"][1] > 0 and state["schedule_length"] == 11
    elif state["scaler"]:
        assert state["scheduler"]["milestones"] == Counter([1, 3])
    else:
        assert state["scheduler"]["mode_worse"] == np.inf and state["best"]["epoch"] == 1


def test_reader_reads_every_dtype_and_every_tag(reader: SimpleNamespace, tmp_path: Path) -> None:
    random_bits = torch.randint(0, 256, (48,), dtype=torch.uint8)
    every = {name: random_bits.clone().view(dtype) for name, dtype in tensorfile.DTYPES.items() if name != "BOOL"}
    every |= {"BOOL": torch.tensor([True, False]), "empty": torch.zeros(0, 3), "scalar": torch.tensor(-0.0)}
    others = {name: random_bits.clone().view(dtype) for name, dtype in encoding.DTYPES.items() if name not in every}
    matrix = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    wide = torch.complex(torch.tensor([1.0, -0.0]).double(), torch.tensor([torch.inf, 3.0]).double())
    dense = torch.tensor([[0, 1.5, 0, 2], [0, 0, 0, 0], [3, 0, 0, 4], [0, 0, 5, 0]])
    state = {
        "epoch": 0,
        "step": 0,
        "tensors": every | others,
        "lazy": [wide.conj(), wide.conj().imag, wide.to(torch.complex64).conj()],
        "sparse": {
            str(each.layout): each
            for each in (
                dense.to_sparse(),
                dense.to_sparse_csr(),
                dense.to_sparse_csc(),
                dense.to_sparse_bsr(2),
                dense.to_sparse_bsc(2),
                torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, 3.0]), (4,)),
            )
        },
        "leaves": [
            torch.nn.Parameter(dense),
            torch.nn.Parameter(dense[0], requires_grad=False),
            torch.ones(2, requires_grad=True),
        ],
        "views": {"whole": matrix, "row": matrix[1], "turned": matrix.t(), "apart": torch.ones(4, 6)[:, ::2]},
        "same": [every["F32"], every["F32"]],
        "arrays": [
            np.arange(6, dtype=np.int16),
            np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::-1].T,
            np.zeros((0, 2)),
            np.array([1j]),
        ],
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.complex128(complex(1, -0.0))],
        "complex": [complex(-0.0, float("inf")), 1j],
        "numbers": [2**53, -(2**70), 2**53 - 1, 0.1, -0.0, 5e-324, 1.0, 1, True, None, float("inf"), float("-inf")],
        "others": ((), (1, (2.0,)), b"\x00\xff", "ü\n", [], {}),
        "mappings": {
            "dict": {0: "a", "0": "b", (1, 2): None, 0.5: 1, b"k": 2, None: 3, True: 4},
            "dollar": {"$tensor": "not one", "x": 1},
            "ordered": OrderedDict(b=1, a=torch.ones(2)),
            "counter": Counter({3: 2}),
        },
    }
    texts = {"config.yaml": "", "provenance.json": "{}"}
    path = checkpoint.save(tmp_path, model=every, state=state, documents=texts, metadata={})
    model, read, _ = reader.read(path)
    assert differences(model, every, "model") == []
    assert differences(read, {"format": 2, **state}, "state") == []
    assert read["same"][0] is read["same"][1]
    assert set(re.findall(r'"(\$[a-z]+)":', (path / "state.json").read_text())) == TAGS


# Of somebody who has the checkpoint, the model's own source, and nothing of ours.
STRANGER = """
import json, runpy, sys
sys.modules["savepoint"] = sys.modules["project"] = None
import torch
from safetensors.torch import load_file
_, source, name, arguments, weights = sys.argv
model = runpy.run_path(source)[name](**json.loads(arguments))
model.load_state_dict(load_file(weights))
with torch.no_grad():
    print(model.eval()(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)).tolist())
"""


def test_weights_load_with_nothing_of_ours_installed(trained: SimpleNamespace) -> None:
    node = yaml.safe_load((trained.path / "config.yaml").read_text())["model"]
    module, _, name = node.pop("_target_").rpartition(".")
    source = REPOSITORY / "src" / f"{module.replace('.', '/')}.py"
    order = [sys.executable, "-I", "-c", STRANGER, source, name, json.dumps(node), trained.path / "model.safetensors"]
    done = subprocess.run(order, capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = trained.state.model.eval()(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8))
    assert json.loads(done.stdout) == expected.tolist()


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json", "config.yaml"])
def test_reader_notices_damage(reader: SimpleNamespace, trained: SimpleNamespace, tmp_path: Path, name: str) -> None:
    for path in trained.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        reader.read(tmp_path)


def test_doc_names_every_file_key_tag_and_dtype(trained: SimpleNamespace) -> None:
    parsed = {name: json.loads((trained.path / name).read_bytes()) for name in ("state.json", "provenance.json")}
    lines = [json.loads(line) for line in trained.run.metrics.read_text().splitlines()]
    words = {path.name for path in trained.path.iterdir()} | set(tensorfile.DTYPES) | set(parsed["state.json"])
    words |= set(parsed["provenance.json"]) | set(parsed["provenance.json"]["git"]) | set(parsed["state.json"]["rng"])
    words |= set(parsed["provenance.json"]["hardware"]) | set(trained.run.record)
    words |= {key for line in lines for key in line if not key.startswith("system/")} | {"train.log", runs.CHECKPOINTS}
    words |= TAGS | {f"savepoint.{word}" for word in ("format", "run_id", "git_commit", "config_sha256")}
    spoken = set(re.findall(r"[\w.$/]*\w", DOC.replace(READER, "")))
    assert sorted(words - spoken) == []


def sparse(live: Tensor) -> dict[str, Any]:
    """What the page says of a sparse tensor, as torch itself tells it."""
    layout = str(live.layout).removeprefix("torch.sparse_")
    described = {
        "layout": layout,
        "shape": list(live.shape),
        "coalesced": live.is_coalesced() if live.is_sparse else None,
    }
    if live.is_sparse:
        return described | {"indices": [live._indices()], "values": live._values()}
    rows = layout in ("csr", "bsr")
    indices = [live.crow_indices(), live.col_indices()] if rows else [live.ccol_indices(), live.row_indices()]
    return described | {"indices": indices, "values": live.values()}


def differences(read: Any, live: Any, path: str) -> list[str]:
    """Every place where they are not the same, by type, order of keys, dtype, shape and bits."""
    if isinstance(live, Tensor | np.ndarray):
        if isinstance(live, Tensor) and live.layout is not torch.strided:
            return differences(read, sparse(live), path)
        live = live.detach().contiguous() if isinstance(live, Tensor) else torch.from_numpy(live.copy())
        bits = live.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes()
        name = str(live.dtype).removeprefix("torch.")
        # NumPy has no such dtype: the bits come as integers.
        unnamed = ("bfloat", "float8", "float4", "complex32")
        named = name == str(read.dtype) or (read.dtype.kind == "u" and name.startswith(unnamed))
        same = named and read.dtype.itemsize == live.element_size() and read.shape == tuple(live.shape)
        return [] if same and np.ascontiguousarray(read).tobytes() == bits else [f"{path}: {read!r}, {live!r}"]
    if type(read) is not type(live):
        return [f"{path}: {type(read)}, {type(live)}"]
    if isinstance(live, dict):
        # What torch gave as a whole keeps its order; a file of tensors, and the state around it, have one of their own.
        if set(read) != set(live) or (path not in ("model", "state") and list(read) != list(live)):
            return [f"{path}: keys {list(read)}, {list(live)}"]
        return [found for key in live for found in differences(read[key], live[key], f"{path}/{key}")]
    if isinstance(live, list | tuple):
        if len(read) != len(live):
            return [f"{path}: {len(read)}, {len(live)}"]
        return [found for i in range(len(live)) for found in differences(read[i], live[i], f"{path}/{i}")]
    return [] if repr(read) == repr(live) else [f"{path}: {read!r}, {live!r}"]
