"""Which checkpoints are kept. The rules, in words, are `kept` below; `prune` has to agree for any history of saves."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from savepoint import checkpoint, system, trust
from savepoint.checkpoint import selection, tree
from savepoint.checkpoint.layout import MANIFEST, REQUIRED, STATE
from savepoint.errors import CheckpointError

RULES = {"keep_last": 1, "keep_best": 1, "monitor": "val/loss", "mode": "min", "protect": None}


class Save(NamedTuple):
    """batch: 0 at the end of an epoch. resumed: a new process goes on from this one, and remembers nothing."""

    loss: float
    batch: int
    damaged: bool
    resumed: bool


def make(root: Path, *, epoch: int, step: int, loss: float = 0.5, batch: int = 0, padding: int = 0) -> Path:
    """A checkpoint as far as retention looks at it: names, sizes and state.json."""
    path = root / checkpoint.name_of(epoch=epoch, step=step)
    path.mkdir(parents=True)
    _, metrics = tree.split({"val/loss": loss})
    state = json.dumps({"epoch": epoch, "step": step, "batch": batch, "metrics": metrics, "padding": "x" * padding})
    contents = {name: state if name == STATE else "" for name in REQUIRED}
    for name, text in contents.items():
        (path / name).write_text(text)
    entries = {name: {"size": len(text), "sha256": "0" * 64} for name, text in contents.items()}
    (path / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))
    return path


def kept(there: dict[str, tuple[int, Save]], *, last: int, best: int, every: int | None, mode: str) -> set[str]:
    """there: name → (epoch, save), oldest first."""
    sound = [name for name, (_, save) in there.items() if not save.damaged]
    oldest = list(there).index(sound[-last]) if len(sound) >= last else 0
    result = set(list(there)[oldest:])
    measured = [name for name in sound if there[name][1].batch == 0 and not math.isnan(there[name][1].loss)]
    sign = 1 if mode == "min" else -1
    result |= set(sorted(measured, key=lambda name: sign * there[name][1].loss)[:best])  # stable: ties to the earlier
    for epoch in {epoch for epoch, _ in there.values()}:
        if every and epoch and epoch % every == 0:
            result.add(next(name for name, (own, _) in there.items() if own == epoch))
    return result


saves = st.builds(
    Save,
    loss=st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.5, math.nan, math.inf, -math.inf]),
    batch=st.sampled_from([0, 0, 3]),
    damaged=st.sampled_from([False, False, False, True]),
    resumed=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(
    history=st.lists(saves, max_size=12),
    last=st.integers(1, 4),
    best=st.integers(0, 3),
    every=st.sampled_from([None, 1, 2, 3]),
    mode=st.sampled_from(["min", "max"]),
)
def test_prune_keeps_what_the_rules_say_whatever_was_saved(
    history: list[Save], last: int, best: int, every: int | None, mode: str
) -> None:
    root = Path(tempfile.mkdtemp())
    there: dict[str, tuple[int, Save]] = {}
    epoch = 0
    for step, save in enumerate(history, start=1):
        epoch += save.batch == 0
        path = make(root, epoch=epoch, step=step, loss=save.loss, batch=save.batch)
        there[path.name] = epoch, save
        if save.resumed:
            selection._metrics.cache_clear()
        gone = checkpoint.prune(
            root, keep_last=last, keep_best=best, keep_every_n_epochs=every, monitor="val/loss", mode=mode,
            protect=path.name,
        )  # fmt: skip
        expected = kept({name: (own, each._replace(damaged=False) if name == path.name else each)
                         for name, (own, each) in there.items()}, last=last, best=best, every=every, mode=mode)  # fmt: skip
        assert set(checkpoint.names(root)) == expected and set(gone) == set(there) - expected
        assert {entry.name for entry in os.scandir(root)} == expected
        there = {name: each for name, each in there.items() if name in expected}
        if save.damaged:
            (path / "model.safetensors").write_text("torn later")
    shutil.rmtree(root)


def test_every_nth_epoch_keeps_its_first_checkpoint_by_name_alone(tmp_path: Path) -> None:
    for step, epoch in enumerate([0, 1, 2, 2, 3, 4, 5], start=1):
        make(tmp_path, epoch=epoch, step=step)
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0}, keep_every_n_epochs=2)
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["3", "6", "7"]


def test_damaged_one_is_never_kept_in_place_of_a_sound_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step, loss=3.0 - step)
    (tmp_path / "epoch_0003_step_00000003" / STATE).write_text("{")
    (tmp_path / "epoch_0002_step_00000002" / "config.yaml").unlink()
    assert checkpoint.prune(tmp_path, **RULES) == []
    make(tmp_path, epoch=4, step=4, loss=9.0)
    checkpoint.prune(tmp_path, **RULES)
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["1", "4"], "the newest and the best that are sound"


def linked(path: Path) -> None:
    """A link of the size that the manifest says."""
    path.with_suffix("").symlink_to("x" * path.stat().st_size)
    path.with_suffix("").replace(path)


def moved(path: Path) -> None:
    """A link to the right bytes."""
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (STATE, lambda path: path.write_text(path.read_text() + " ")),
        (STATE, lambda path: path.write_text(path.read_text()[:-1])),
        (STATE, lambda path: path.write_text("x" * path.stat().st_size)),
        (STATE, linked),
        ("config.yaml", moved),
        (STATE, Path.unlink),
        (MANIFEST, Path.unlink),
        (MANIFEST, lambda path: path.write_text("{")),
        (MANIFEST, moved),
        ("extra", Path.touch),
    ],
    ids=["grown", "cut", "no JSON", "a link", "moved", "missing", "no manifest", "manifest", "moved manifest", "extra"],
)
def test_what_can_be_seen_without_digests_is_damage(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    paths = [make(tmp_path, epoch=step, step=step) for step in (1, 2, 3)]
    harm(paths[1] / name)
    assert checkpoint.prune(tmp_path, **RULES | {"keep_best": 0, "keep_last": 2}) == [], "it does not count"
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0})
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["3"], "nor is it kept for better days"


def test_what_the_disk_does_not_let_be_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the best one, and well again tomorrow."""
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step, loss=float(step))
    read = trust.read_file

    def ill(path: Path, **limits: int) -> bytearray:
        if "step_00000001" in str(path):
            raise CheckpointError("ill") from OSError(errno.EIO, "Input/output error")
        return read(path, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(trust, "read_file", ill)
        checkpoint.prune(tmp_path, **RULES)
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["1", "2", "3"]  # of those it could read, 2 is best
    checkpoint.prune(tmp_path, **RULES)
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["1", "3"]


def test_what_cannot_be_read_is_not_counted_among_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step)
    read = trust.read_file

    def ill(path: Path, **limits: int) -> bytearray:
        if "step_00000003" in str(path):
            raise CheckpointError("ill") from OSError(errno.EIO, "Input/output error")
        return read(path, **limits)

    monkeypatch.setattr(trust, "read_file", ill)
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0})
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["2", "3"]


@pytest.mark.parametrize("failing", range(1, len(REQUIRED) + 2))
def test_whichever_look_at_a_file_fails_its_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step)
    looks, lstat = [0], Path.lstat

    def ill(path: Path) -> os.stat_result:
        if "step_00000001/" in path.as_posix():
            looks[0] += 1
            if looks[0] == failing:
                raise OSError(errno.EIO, "Input/output error")
        return lstat(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", ill)
        checkpoint.prune(tmp_path, **RULES | {"keep_best": 0})
    assert looks[0] >= failing
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["1", "3"]


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir", "fsync"])
def test_delete_that_fails_loses_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, epoch=step, step=step, loss=float(step))

    def ill(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, ill)
        gone = checkpoint.prune(tmp_path, **RULES)
    assert not set(gone) & set(checkpoint.names(tmp_path))
    assert {"epoch_0001_step_00000001", "epoch_0004_step_00000004"} <= set(checkpoint.names(tmp_path))
    make(tmp_path, epoch=5, step=5, loss=5.0)
    checkpoint.prune(tmp_path, **RULES)
    assert sorted(entry.name[-1] for entry in tmp_path.iterdir()) == ["1", "5"]


def test_files_are_deleted_when_their_name_cannot_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        make(tmp_path, epoch=step, step=step)
    calls: list[str] = []
    for module, call in ((os, "rename"), (system.files, "sync_directory"), (system.files, "remove")):
        whole = getattr(module, call)
        monkeypatch.setattr(module, call, lambda *paths, call=call, whole=whole: (calls.append(call), whole(*paths)))
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0})
    assert calls == ["rename", "sync_directory", "remove"]
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0})
    assert calls[3:] == [], "what deletes nothing waits for no disk"


def test_nothing_is_deleted_through_a_link_or_that_is_no_checkpoint(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    linked = make(other, epoch=1, step=1)
    make(root, epoch=3, step=3)
    (root / linked.name).symlink_to(linked)
    for name in ("notes", "epoch_1_step_1", "epoch_0001_step_00000001.bak", ".damaged-epoch_0001_step_00000001",
                 ".tmp-epoch_0004_step_00000004-1"):  # fmt: skip
        (root / name).mkdir()
    (root / "epoch_0002_step_00000002").write_text("a file")
    before = {entry.name for entry in root.iterdir()}
    assert checkpoint.prune(root, **RULES | {"keep_best": 0}) == []
    assert {entry.name for entry in root.iterdir()} == before and (linked / MANIFEST).exists()
    (root / ".tmp-link").symlink_to(linked)
    checkpoint.clean(root)
    assert not (root / ".tmp-link").is_symlink() and (linked / MANIFEST).exists()


def test_protected_one_is_kept_whatever_it_is(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step)
    protect = "epoch_0002_step_00000002"
    (tmp_path / protect / STATE).write_text("damaged")
    checkpoint.prune(tmp_path, **RULES | {"keep_best": 0, "protect": protect})
    assert [name[-1] for name in checkpoint.names(tmp_path)] == ["2", "3"]


def test_no_state_json_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a long run that keeps hundreds would read all of them at each save."""
    for step in (1, 2, 3):
        make(tmp_path, epoch=step, step=step)
    read: list[str] = []
    strictly = trust.read_file
    monkeypatch.setattr(
        trust, "read_file", lambda path, **limits: (read.append(f"{path.parent.name[-1]} {path.name}"), strictly(path, **limits))[1]
    )  # fmt: skip
    for step in (4, 5):
        checkpoint.prune(tmp_path, **RULES | {"keep_last": 9})
        make(tmp_path, epoch=step, step=step)
    checkpoint.prune(tmp_path, **RULES | {"keep_last": 9})
    assert sorted(name for name in read if name.endswith(STATE)) == [f"{step} {STATE}" for step in (1, 2, 3, 4, 5)]
