"""Checkpoints of every format version that was ever on main, as they were written then: they load, and runs go on.

`frozen/format_1/run` is a run that was killed in its second epoch, written by commit 0916ff4, the first on main whose
checkpoints stay readable. `frozen/format_1/several_optimizers` is one with optimizers by name, which format 1 has had
since the commit that added this run. `frozen/format_2/run` is a run like the first, without augmentation, that keeps the
order of its samples. Each has one checkpoint, and the history of a run that nobody killed.
`every_kind` of each version holds each kind of value that the format has an encoding for.
Nobody rewrites them: when the format changes, `python tests/test_frozen.py DIRECTORY` makes the next one's.
"""

import dataclasses
import json
import math
import shutil
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools.processes import REPOSITORY
from tools.trees import same
from tools.workshop import Workshop
from torch import Tensor

from savepoint import checkpoint, runs
from savepoint.checkpoint import encoding, layout, tensorfile
from savepoint.checkpoint.layout import CONFIG, PROVENANCE, STATE
from savepoint.commands import diff
from savepoint.runs import history
from savepoint.system import rng
from savepoint.training import build
from savepoint.training.state import capture, restore
from savepoint.trust import strict_yaml, validation

SOURCE = REPOSITORY / "src"
FROZEN = Path(__file__).parent / "frozen"
# Each with the checkpoint after which it was killed.
RUNS = {
    "format_1/run": "epoch_0001_step_00000014",
    "format_1/several_optimizers": "epoch_0001_step_00000008",
    "format_2/run": "epoch_0001_step_00000014",
}


def bytes_of(dtype: torch.dtype) -> Tensor:
    """16 bytes that are the same on every machine; what they are as numbers, NaNs among them, does not matter."""
    counted = [value * 37 % 256 for value in range(16)]
    return torch.tensor([value & 1 for value in counted] if dtype is torch.bool else counted, dtype=torch.uint8).view(
        dtype
    )


def model() -> dict[str, Tensor]:
    return {name: bytes_of(dtype) for name, dtype in tensorfile.DTYPES.items()}


def state() -> dict[str, Any]:
    """Something of everything: see the table in docs/checkpoint-format.md."""
    grid = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    wide = torch.complex(torch.tensor([1.0, -0.0]).double(), torch.tensor([math.inf, 3.0]).double())
    dense = torch.tensor([[0.0, 1.5, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0], [0.0, 0.0, 5.0, 0.0]])
    again = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, 3.0]), (4,))
    layouts = [dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr(2)]
    return {
        "epoch": 3,
        "step": 70,
        "dtypes": {name: bytes_of(dtype) for name, dtype in encoding.DTYPES.items()},
        "shapes": [torch.tensor(-0.0), torch.zeros(0, 3), torch.zeros(2, 0, dtype=torch.int8)],
        "views": {"whole": grid, "row": grid[1], "turned": grid.t(), "apart": torch.ones(4, 6)[:, ::2]},
        "channels_last": torch.arange(6.0).reshape(2, 3, 1, 1).to(memory_format=torch.channels_last),
        "same": [wide, wide],
        "lazy": [wide.conj(), wide.conj().imag, torch._neg_view(dense)],
        "sparse": [*layouts, dense.to_sparse_bsc(2), again, torch.zeros(2, 2).to_sparse()],
        "leaves": [torch.nn.Parameter(dense), torch.nn.Parameter(dense[0], requires_grad=False), torch.ones(2, requires_grad=True)],
        "arrays": [np.arange(6, dtype=np.int16).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2)), np.array([1j])],
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.complex128(complex(1, -0.0))],
        "numbers": [2**53, -(2**70), 2**53 - 1, 0.1, -0.0, 5e-324, 1.0, 1, True, None, math.inf, -math.inf, math.nan],
        "complex": [complex(-0.0, math.inf), 1j],
        "others": ((), (1, (2.0,)), b"\x00\xff", "ü\n\ud800", [], {}),
        "mappings": {
            "dict": {0: "a", "0": "b", (1, 2): None, 0.5: 1, b"k": 2, None: 3, "a/b": 4, "..": 5, "": torch.ones(1)},
            "dollar": {"$tensor": "not one", "x": 1},
            "ordered": OrderedDict(b=1, a=torch.ones(2)),
            "counter": Counter({3: 2}),
        },
    }  # fmt: skip


def save(root: Path) -> Path:
    documents = {CONFIG: "seed: 0\n", PROVENANCE: '{"git": {"commit": null}}'}
    return checkpoint.save(
        root, model=model(), state=state(), documents=documents, metadata={"savepoint.run_id": "frozen"}
    )


@pytest.mark.parametrize("version", range(1, layout.FORMAT + 1))
def test_every_kind_of_value_of_every_version_is_read_as_it_was(version: int) -> None:
    (path,) = (FROZEN / f"format_{version}" / "every_kind").iterdir()
    found = checkpoint.load(path)
    assert same(dict(sorted(found.model.items())), dict(sorted(model().items())))
    assert same(found.state, {"format": version, **state()})
    assert (found.config, found.provenance) == ("seed: 0\n", {"git": {"commit": None}})


def test_what_is_written_today_is_what_is_frozen(tmp_path: Path) -> None:
    """A change of a single byte is a change of the format, which has a number, or of nothing that has to change."""
    (frozen,) = (FROZEN / f"format_{layout.FORMAT}" / "every_kind").iterdir()
    written = save(tmp_path)
    assert written.name == frozen.name
    assert {path.name: path.read_bytes() for path in written.iterdir()} == {
        path.name: path.read_bytes() for path in frozen.iterdir()
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_frozen_run_goes_on_to_its_planned_end(workshop: Workshop, tmp_path: Path, name: str) -> None:
    run, killed_at = FROZEN / name, RUNS[name]
    copies = [Path(shutil.copytree(run, tmp_path / copy)) for copy in ("one", "two")]
    for copy in copies:
        ended = workshop.run("resume.py", f"run={copy}")
        assert ended.status == 0 and "Traceback" not in ended.output, ended.output
        assert f"resumed from {killed_at}: epoch 1, step {int(killed_at[-8:])}" in ended.output
        assert runs.read(copy).record["status"] == "finished"
    one, other = (runs.read(copy) for copy in copies)
    assert diff.diff_runs(one, other) == []
    known = json.loads((run / runs.CHECKPOINTS / killed_at / STATE).read_text())["history_lines"]
    frozen = (run / runs.METRICS).read_bytes().splitlines()
    assert one.metrics.read_bytes().splitlines()[:known] == frozen[:known]
    # What follows was logged on another machine, and so to other bits: the same steps, and values beside them.
    then = [json.loads(line) for line in frozen]
    now = history.read_history(one.metrics)
    assert [line["step"] for line in now] == [line["step"] for line in then]
    assert now[-1]["val/loss"] == pytest.approx(then[-1]["val/loss"], rel=0.01)
    # Losses of training tell which samples were trained on: those of another order differ by some percent.
    losses = [
        [line[key] for line in each for key in ("train/recent_loss", "train/loss") if key in line]
        for each in (now, then)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.002)


def test_a_diff_does_not_list_what_an_older_format_lacks(tmp_path: Path) -> None:
    """The frozen checkpoint, and the one that its continuation would save at the same step."""
    found = checkpoint.load(FROZEN / "format_1" / "run" / runs.CHECKPOINTS / RUNS["format_1/run"])
    gained = {"order": "randperm", "stale": 0, "frozen": [], "grad_norms": {"": torch.ones(())}}
    same_step = dataclasses.replace(found, state=found.state | gained | {"format": 2})
    assert diff.diff_checkpoints(found, same_step) == []
    same_step.state["step"] += 1
    assert diff.diff_checkpoints(found, same_step) == ["step: 14, 15"]
    same_step.state["format"] = 1
    assert "order: only in one of the two" in diff.diff_checkpoints(found, same_step)


@pytest.mark.parametrize("name", RUNS)
def test_every_value_of_a_frozen_run_is_restored(name: str) -> None:
    found = checkpoint.load(FROZEN / name / runs.CHECKPOINTS / RUNS[name])
    chosen = strict_yaml.parse_config(found.config)
    settings = validation.check_config(chosen, source=SOURCE)
    with rng.isolated():
        restored, _ = build.assemble(chosen, settings, source=SOURCE, checkpoint=found)
        restore(restored, found)
        weights, values = capture(restored)
    assert same({key: weights[key] for key in found.model}, found.model)
    assert same(known({"format": found.state["format"], **values}, found.state), found.state)
    assert restored.order == ("permutation-1" if name.startswith("format_2") else "randperm")


def known(now: Any, then: Any) -> Any:
    """What a state has today, without the keys that it has gained."""
    if type(now) is dict and isinstance(then, dict):
        return {key: known(now[key], each) for key, each in then.items() if key in now}
    return now


if __name__ == "__main__":
    print(save(Path(sys.argv[1])))
