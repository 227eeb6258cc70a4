"""Checkpoints in parts: each rank writes its rows; whatever happens to one part is found, and the checkpoint before it stays."""

import errno
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import ranked, sealed, tensorfiles
from tools.moments import Strike
from tools.processes import REPOSITORY
from tools.workshop import Workshop
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import savepoint
from savepoint import checkpoint, parallel, runs
from savepoint.checkpoint import Checkpoint
from savepoint.checkpoint.layout import MODEL, STATE, TRAINING
from savepoint.commands import diff
from savepoint.errors import CheckpointError

RANKS = 3
FSDP = (
    *(
        "tracker=none",
        "trainer.threads=1",
        "trainer.timeout_seconds=60",
        "trainer.max_epochs=1",
        "data.limit_batches=3",
    ),
    *("trainer.parallel=fsdp", "checkpoint.every_n_steps=1", "checkpoint.keep_last=9", "trainer.ema_decay=0.9"),
    "model.hidden=[4]",  # the third rank has none of its rows
)
NAMES = ["epoch_0000_step_00000001", "epoch_0000_step_00000002", "epoch_0000_step_00000003", "epoch_0001_step_00000003"]


def part(name: str, rank: int, ranks: int = RANKS) -> str:
    return name.replace(".", f".rank_{rank:05d}_of_{ranks:05d}.")


@pytest.fixture(scope="module")
def saved(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    ended = ranked.run(the_workshop.zygote, folder, RANKS, "train.py", *FSDP, f"hydra.run.dir={folder / 'run'}")
    assert [each.status for each in ended] == [0] * RANKS, ended[0].output
    return folder / "run"


@pytest.fixture
def newest(saved: Path, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint, under its name."""
    return shutil.copytree(saved / "checkpoints" / NAMES[-1], tmp_path / NAMES[-1])


def test_each_rank_writes_its_rows_and_rank_0_the_rest(newest: Path) -> None:
    held = [
        tensorfiles.read(bytearray((newest / part(name, rank)).read_bytes()), name=name)[0]
        for name in (MODEL, TRAINING)
        for rank in range(RANKS)
    ]
    assert [list(each["hidden.0.linear.weight"].shape) for each in held[:3]] == [[2, 64], [2, 64], [0, 64]]
    shared = [{name for name in each if name.startswith(("rng", "sums"))} for each in held[3:]]
    assert shared[0] and not shared[1] and not shared[2]
    loaded = checkpoint.load(newest)
    assert torch.equal(loaded.model["head.weight"], torch.cat([each["head.weight"] for each in held[:3]]))
    assert loaded.state["optimizer"]["state"][0]["exp_avg"].shape == (4, 64)
    assert loaded.state["averaged"]["module.head.weight"].shape == (10, 4)
    assert "shards" not in loaded.state  # nothing that reads a checkpoint needs to know


def test_the_reader_of_the_page_puts_parts_together(newest: Path) -> None:
    page = (REPOSITORY / "docs" / "checkpoint-format.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    model, state, metadata = names["read"](newest)
    loaded = checkpoint.load(newest)
    assert model.keys() == loaded.model.keys() and metadata["savepoint.run_id"] == loaded.provenance["run_id"]
    assert all(np.array_equal(model[name], value.numpy()) for name, value in loaded.model.items())
    moments = loaded.state["optimizer"]["state"]
    assert all(
        np.array_equal(state["optimizer"]["state"][at][key], value.numpy())
        for at, each in moments.items()
        for key, value in each.items()
    )


@pytest.mark.parametrize("name", [MODEL, TRAINING])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_part_that_is_damaged_or_missing_is_named(newest: Path, name: str, rank: int) -> None:
    path = newest / part(name, rank)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert path.name in refused(newest)
    path.write_bytes(whole[:-1])
    assert path.name in refused(newest)
    path.unlink()
    assert f"missing {path.name}" in refused(newest)
    path.write_bytes(whole)
    assert checkpoint.verify(newest) is None
    other = newest / part(name, 1, 2)
    other.write_bytes(whole)
    assert f"{other.name} not in the manifest" in refused(newest)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert checkpoint.verify(path) == str(caught.value)
    return str(caught.value)


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what state.json says of the parts."""

    def act(directory: Path) -> None:
        values = json.loads((directory / STATE).read_bytes())
        change(values)
        sealed.seal(directory / STATE, lambda _: json.dumps(values).encode())

    return act


def head(values: dict[str, Any]) -> dict[str, Any]:
    return values["shards"][MODEL]["head.weight"]


def held(rank: int, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors that a rank's file holds."""

    def act(directory: Path) -> None:
        path = directory / part(MODEL, rank)
        tensors, metadata = tensorfiles.read(bytearray(path.read_bytes()), name=path.name)
        change(tensors)
        sealed.seal(path, lambda _: b"".join(checkpoint.Plan(tensors, metadata).chunks()))

    return act


def listed(name: str) -> Callable[[Path], None]:
    """Add a file, and name it in the manifest."""

    def act(directory: Path) -> None:
        (directory / name).write_bytes((directory / part(MODEL, 0)).read_bytes())
        manifest = json.loads((directory / "manifest.json").read_bytes())
        manifest["files"][name] = manifest["files"][part(MODEL, 0)]
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return act


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows that overlap": (
        described(lambda v: head(v).update(rows=[4, 4, 4])),
        "describes tensor 'head.weight' wrongly",
    ),
    "rows that are missing": (
        described(lambda v: head(v).update(rows=[4, 4, 0])),
        "describes tensor 'head.weight' wrongly",
    ),
    "rows of another rank": (
        described(lambda v: head(v).update(rows=[4, 2, 4])),
        "rank_00001_of_00003.safetensors: its part",
    ),
    "rows below zero": (
        described(lambda v: head(v).update(rows=[4, 12, -6])),
        "rank_00001_of_00003.safetensors: its part",
    ),
    "too few ranks": (described(lambda v: head(v).update(rows=[4, 6])), "describes tensor 'head.weight' wrongly"),
    "another shape": (described(lambda v: head(v).update(shape=[10, 5])), "rank_00000_of_00003.safetensors: its part"),
    "no dimension": (
        described(lambda v: head(v).update(shape=[], rows=[0, 0, 0])),
        "describes tensor 'head.weight' wrongly",
    ),
    "rows that are text": (described(lambda v: head(v).update(rows="442")), "describes tensor 'head.weight' wrongly"),
    "an entry that is none": (
        described(lambda v: v["shards"][MODEL].update({"head.bias": 3})),
        "describes tensor 'head.bias'",
    ),
    "a tensor that is nowhere": (
        described(lambda v: v["shards"][MODEL].update(more=head(v))),
        "its part of tensor 'more' is None",
    ),
    "a description that is none": (described(lambda v: v.update(shards=[])), "its 'shards' do not describe tensors"),
    "a file's description that is none": (
        described(lambda v: v["shards"].update({MODEL: 1})),
        "its 'shards' do not describe",
    ),
    "no description": (described(lambda v: v.pop("shards")), "does not say what its tensor"),
    "a tensor more": (
        held(1, lambda t: t.update(more=torch.zeros(1))),
        "does not say what its tensor 'more' is a part of",
    ),
    "a tensor less": (
        held(2, lambda t: t.pop("head.bias")),
        "rank_00002_of_00003.safetensors: its part of tensor 'head.bias'",
    ),
    "another dtype": (
        held(1, lambda t: t.update({"head.bias": t["head.bias"].double()})),
        "rank_00001_of_00003.safetensors: its",
    ),
    "another shape in a file": (
        held(1, lambda t: t.update({"head.bias": torch.zeros(5)})),
        "rank_00001_of_00003.safetensors: its",
    ),
    "a whole file beside": (listed(MODEL), f"{MODEL} beside the parts of another number of ranks"),
    "a part of fewer ranks beside": (
        listed(part(MODEL, 0, 2)),
        "model.rank_00000_of_00002.safetensors beside the parts",
    ),
    "a part of more ranks beside": (listed(part(MODEL, 0, 4)), "beside the parts of another number of ranks"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_parts_that_somebody_has_changed_are_refused_in_one_line(newest: Path, fault: str) -> None:
    """Every digest is right, as somebody would make it who means harm."""
    change, words = HOSTILE[fault]
    change(newest)
    message = refused(newest)
    assert words in message and str(newest) in message and "\n" not in message
    found = [own_part(newest, rank) for rank in range(RANKS)]
    assert any(isinstance(each, str) for each in found)  # a rank that loads its part alone, which then tells rank 0


def own_part(path: Path, rank: int) -> Checkpoint | str:
    """Load what a rank loads to go on. Returns: why it refuses, if it does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANK", str(rank))
        patched.setenv("WORLD_SIZE", str(RANKS))
        try:
            return checkpoint.load(path, part=True)
        except CheckpointError as error:
            return str(error)


def test_a_rank_loads_its_rows_and_what_all_have(newest: Path) -> None:
    whole = checkpoint.load(newest)
    files = {path: path.read_bytes() for path in newest.iterdir()}
    for rank in range(RANKS):
        for path, data in files.items():
            path.write_bytes(data)
        for name, other in itertools.product((MODEL, TRAINING), {*range(RANKS)} - {0, rank}):
            (newest / part(name, other)).write_bytes(bytes((newest / part(name, other)).stat().st_size))
        mine = own_part(newest, rank)
        assert isinstance(mine, Checkpoint) and mine.shared and whole.shared is None
        rows = {"hidden.0.linear.weight": 2, "head.weight": 4}
        for name, each in rows.items():
            got: Any = mine.model[name]
            assert got.shape == whole.model[name].shape and got.dtype == torch.float32
            assert torch.equal(got.rows, whole.model[name][each * rank : each * (rank + 1)])
        assert torch.equal(mine.state["rng"]["torch"], whole.state["rng"]["torch"])
        assert mine.config == whole.config and mine.provenance == whole.provenance


def test_ranks_that_read_other_bytes_of_what_all_have_notice_it(newest: Path) -> None:
    """Only rank 0 verifies its file, of which the others read a part."""
    one, other = own_part(newest, 0), own_part(newest, 1)
    assert isinstance(one, Checkpoint) and isinstance(other, Checkpoint) and one.shared == other.shared
    path = newest / part(TRAINING, 0)
    tensors, metadata = tensorfiles.read(bytearray(path.read_bytes()), name=path.name)
    tensors["rng/torch"][0] ^= 1
    path.write_bytes(b"".join(checkpoint.Plan(tensors, metadata).chunks()))
    changed = own_part(newest, 1)
    assert isinstance(changed, Checkpoint) and changed.shared != one.shared
    assert path.name in str(own_part(newest, 0))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resume_sets_aside_a_checkpoint_of_which_one_part_is_damaged(
    rank: int, the_workshop: Workshop, saved: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(saved, tmp_path / "run")
    path = directory / "checkpoints" / NAMES[-1] / part(TRAINING, rank)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ended = ranked.run(the_workshop.zygote, tmp_path, RANKS, "resume.py", f"run={directory}")
    assert [each.status for each in ended] == [0] * RANKS, ended[0].output
    assert f"damaged, now .damaged-{NAMES[-1]}: " in ended[0].output and path.name in ended[0].output
    assert f"resumed from {NAMES[-2]}" in ended[0].output
    assert diff.diff_runs(runs.read(saved), runs.read(directory)) == []


def test_a_cut_tensor_is_computed_with_on_the_device_of_its_ranks() -> None:
    """With fsdp.cpu_offload, rows wait in another memory: here in that of the meta device."""
    with ranked.alone():
        mesh = init_device_mesh("cpu", (1,))
        rows = DTensor.from_local(torch.zeros(4, 2, device="meta"), mesh, [Shard(0)], run_check=False)
        assert (rows.device.type, parallel.computing_device(rows).type) == ("meta", "cpu")
    assert parallel.computing_device(torch.zeros(1, device="meta")).type == "meta"


def test_an_export_gathers_the_weights(saved: Path, newest: Path, tmp_path: Path, said: Callable[..., str]) -> None:
    loaded = checkpoint.load(newest)
    said("show", str(newest))
    said("export", str(newest), "--to", str(tmp_path / "export"))
    whole, metadata = tensorfiles.read(bytearray((tmp_path / "export" / MODEL).read_bytes()), name=MODEL)
    assert metadata["savepoint.run_id"] == loaded.provenance["run_id"]
    assert all(torch.equal(whole[name], value) for name, value in loaded.model.items())
    model = savepoint.load_model(saved)
    assert all(torch.equal(value, loaded.model[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "rank, moment, call",
    [(0, "storage._write_files", 4), (1, "storage.write_part", 2), (2, "parts.write", 2)],
    ids=["before the manifest", "before its part", "in the call"],
)
def test_a_rank_that_dies_in_a_save_leaves_the_checkpoint_before(
    rank: int, moment: str, call: int, the_workshop: Workshop, saved: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    arguments = (*FSDP, "checkpoint.async_save=false", f"hydra.run.dir={directory}")
    zygote = the_workshop.zygote
    ended = ranked.run(zygote, tmp_path, RANKS, "train.py", *arguments, strikes={rank: Strike(call, of=moment)})
    assert ended[rank].status == -9
    if rank:
        assert ended[0].status == 2 and f"Rank {rank} of 3 does not train any more" in ended[0].output
    there = {path.name.partition("-")[0] for path in (directory / "checkpoints").iterdir()}
    assert there == {NAMES[0], ".tmp"}
    assert checkpoint.verify(directory / "checkpoints" / NAMES[0]) is None
    again = ranked.run(zygote, tmp_path, RANKS, "resume.py", f"run={directory}")
    assert [each.status for each in again] == [0] * RANKS, again[0].output
    assert diff.diff_runs(runs.read(saved), runs.read(directory)) == []
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == NAMES


def test_a_disk_that_refuses_one_part_costs_one_checkpoint(the_workshop: Workshop, saved: Path, tmp_path: Path) -> None:
    """All ranks go on, and the next save has all parts again."""
    directory = tmp_path / "run"
    full: dict[str, Any] = {"disk": directory / "checkpoints", "at": 4, "error": errno.ENOSPC}
    ended = ranked.run(
        the_workshop.zygote, tmp_path, RANKS, "train.py", *FSDP, f"hydra.run.dir={directory}", disk_of=1, **full
    )
    assert [each.status for each in ended] == [0] * RANKS, ended[0].output
    assert "No checkpoint at step 1: No space left on device. Training goes on; there is none." in ended[0].output
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == NAMES[1:]
    assert diff.diff_runs(runs.read(saved), runs.read(directory)) == []
