"""One checkpoint on the disk, whole or not at all, and a root of many."""

import errno
import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from savepoint import checkpoint
from savepoint.checkpoint import layout
from savepoint.checkpoint.layout import CONFIG, MANIFEST, MODEL, PATCH, PROVENANCE, STATE, TRAINING
from savepoint.checkpoint.tree import TreeError
from savepoint.errors import CheckpointError
from savepoint.trust import strict_json

ALL = (MODEL, TRAINING, STATE, CONFIG, PROVENANCE, PATCH, MANIFEST)


def save(root: Path, *, epoch: int = 1, step: int = 10, **state: Any) -> Path:
    values: dict[str, Any] = {"batch": 0, "metrics": {"val/loss": 0.5}, "moments": torch.arange(3.0)}
    return checkpoint.save(
        root,
        model={"weight": torch.full((2, 3), float(step)), "mask": torch.tensor([True, False])},
        state={"epoch": epoch, "step": step} | values | state,
        documents={CONFIG: "seed: 0\n", PROVENANCE: '{"git": null}', PATCH: "diff\n"},
        metadata={"savepoint.run_id": "ab12cd34"},
    )


def score(root: Path, value: float, *, epoch: int, step: int, batch: int = 0) -> Path:
    return save(root, epoch=epoch, step=step, batch=batch, metrics={"val/loss": value})


def visible(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))


def test_load_gives_back_what_save_was_given(tmp_path: Path) -> None:
    path = save(tmp_path, betas=(0.9, 0.999), state_of={0: {"step": 2**70}}, worst=math.inf)
    loaded = checkpoint.load(path)
    assert loaded.path == path
    assert torch.equal(loaded.model["weight"], torch.full((2, 3), 10.0))
    assert torch.equal(loaded.model["mask"], torch.tensor([True, False]))
    assert loaded.state["betas"] == (0.9, 0.999) and loaded.state["state_of"] == {0: {"step": 2**70}}
    assert loaded.state["worst"] == math.inf and torch.equal(loaded.state["moments"], torch.arange(3.0))
    assert (loaded.config, loaded.provenance) == ("seed: 0\n", {"git": None})


def test_a_checkpoint_is_these_files_under_this_name(tmp_path: Path) -> None:
    path = save(tmp_path / "deep" / "checkpoints", epoch=10, step=230)
    assert path.name == "epoch_0010_step_00000230"
    assert {entry.name for entry in path.iterdir()} == set(ALL)


def test_the_manifest_lists_every_other_file_with_its_size_and_digest(tmp_path: Path) -> None:
    path = save(tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["format"] == 2
    assert manifest["files"] == {
        name: {"size": (path / name).stat().st_size, "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest()}
        for name in ALL
        if name != MANIFEST
    }


def test_any_safetensors_reader_loads_the_model_and_traces_it(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert torch.equal(load_file(path / MODEL)["weight"], torch.full((2, 3), 10.0))
    with safe_open(path / MODEL, "pt") as file:
        assert file.metadata() == {"format": "pt", "savepoint.format": "2", "savepoint.run_id": "ab12cd34"}


def test_state_json_is_strict_and_readable(tmp_path: Path) -> None:
    path = save(tmp_path, worst=math.inf)
    values = json.loads((path / STATE).read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert (values["format"], values["epoch"], values["step"]) == (2, 1, 10)


def test_names_sort_in_training_order() -> None:
    order = [
        checkpoint.name_of(epoch=e, step=s)
        for e, s in [(0, 5), (1, 9), (1, 10), (2, 100), (10, 100), (9999, 99_999_999)]
    ]
    assert order == sorted(order)


def test_names_past_the_padding_still_sort_in_training_order(tmp_path: Path) -> None:
    for epoch, step in [(10_000, 100_000_000), (9999, 99_999_999), (2, 3)]:
        (tmp_path / checkpoint.name_of(epoch=epoch, step=step)).mkdir()
    assert [name[:10] for name in checkpoint.names(tmp_path)] == ["epoch_0002", "epoch_9999", "epoch_1000"]


def test_only_checkpoints_count_as_checkpoints(tmp_path: Path) -> None:
    path = save(tmp_path)
    for name in (f".tmp-{path.name}-1", f".damaged-{path.name}", "epoch_1_step_2", "epoch=0001_step=00000002", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint.names(tmp_path) == [path.name]
    assert checkpoint.names(tmp_path / "nowhere") == []


def test_a_patch_of_any_bytes_can_be_saved(tmp_path: Path) -> None:
    """git diff gives a file's bytes, and a changed file may be Latin-1."""
    raw = b"+caf\xe9\n"
    path = checkpoint.save(
        tmp_path,
        model={},
        state={"epoch": 0, "step": 0},
        documents={CONFIG: "", PROVENANCE: "{}", PATCH: raw.decode(errors="surrogateescape")},
        metadata={},
    )
    assert (path / PATCH).read_bytes() == raw
    checkpoint.load(path)


def test_a_checkpoint_always_says_where_it_comes_from() -> None:
    with pytest.raises(AssertionError):
        checkpoint.draft(model={}, state={"epoch": 0, "step": 0}, documents={CONFIG: ""}, metadata={})


def test_a_draft_keeps_the_documents_that_it_was_given(tmp_path: Path) -> None:
    documents = {CONFIG: "seed: 0\n", PROVENANCE: "{}"}
    draft = checkpoint.draft(model={}, state={"epoch": 0, "step": 0}, documents=documents, metadata={})
    documents[CONFIG] = "seed: 1\n"
    assert checkpoint.load(checkpoint.publish(tmp_path, draft)).config == "seed: 0\n"


# Damage


@pytest.mark.parametrize("name", ALL)
def test_one_flipped_bit_anywhere_is_damage_and_names_the_file(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    whole = (path / name).read_bytes()
    draw = random.Random(0)
    places = range(len(whole)) if len(whole) < 2000 else draw.sample(range(len(whole)), 200)
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        (path / name).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
        if name != MANIFEST:  # a digit of another file's digest there names that file
            assert name in str(caught.value)
        assert checkpoint.verify(path) == str(caught.value)
    (path / name).write_bytes(whole)
    checkpoint.load(path)
    assert checkpoint.verify(path) is None


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"missing {name}|{name}: missing"):
        checkpoint.load(path)
    assert checkpoint.verify(path) is not None


@pytest.mark.parametrize("name", ALL)
def test_a_file_cut_short_or_grown_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    data = (path / name).read_bytes()
    for changed in (b"", data[:-1], data + b"\0"):
        (path / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(path)


@pytest.mark.parametrize("extra", ["extra.txt", ".hidden", "archive/data.pkl"])
def test_an_extra_file_is_named(tmp_path: Path, extra: str) -> None:
    path = save(tmp_path)
    (path / extra).parent.mkdir(exist_ok=True)
    (path / extra).write_bytes(b"")
    with pytest.raises(CheckpointError, match=extra.split("/")[0]):
        checkpoint.load(path)


def test_two_swapped_files_are_damage(tmp_path: Path) -> None:
    path = save(tmp_path)
    (path / MODEL).rename(path / "x")
    (path / TRAINING).rename(path / MODEL)
    (path / "x").rename(path / TRAINING)
    with pytest.raises(CheckpointError, match=MODEL):
        checkpoint.load(path)


def test_a_checkpoint_under_another_ones_name_is_damage(tmp_path: Path) -> None:
    path = save(tmp_path)
    other = path.rename(path.with_name(checkpoint.name_of(epoch=1, step=11)))
    with pytest.raises(CheckpointError, match=f"its state is that of {path.name}, so it was renamed"):
        checkpoint.load(other)


def test_a_file_of_another_checkpoint_is_damage(tmp_path: Path) -> None:
    one, two = save(tmp_path, step=1), save(tmp_path, step=2)
    shutil.copy(one / MODEL, two / MODEL)
    with pytest.raises(CheckpointError, match=f"{MODEL}: its SHA-256"):
        checkpoint.load(two)


@pytest.mark.parametrize("name", ALL)
def test_a_symbolic_link_is_no_file_of_a_checkpoint_even_to_the_right_bytes(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: missing, or not a plain file"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", [MODEL, MANIFEST])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_a_pipe_or_a_directory_is_no_file_of_a_checkpoint(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    """Nobody writes into that pipe: whoever opened it would wait for ever."""
    path = save(tmp_path)
    (path / name).unlink()
    make(path / name)
    with pytest.raises(CheckpointError, match=f"{name}: missing, or not a plain file"):
        checkpoint.load(path)


def reseal(path: Path, **contents: Any) -> None:
    """Change files and make the manifest agree: what a stranger can do, and a flipped bit cannot."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name, data in contents.items():
        file = {"state": STATE, "model": MODEL, "training": TRAINING, "provenance": PROVENANCE, "config": CONFIG}[name]
        (path / file).write_bytes(data)
        manifest["files"][file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def tensor_file(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


VERSION = {"savepoint.format": "2"}


@pytest.mark.parametrize(
    "contents",
    [
        {"state": b"[]"},
        {"state": b"{"},
        {"state": b'{"format": 2, "format": 2}'},
        {"state": b'{"format": 2, "x": NaN}'},
        {"state": b'{"format": 2, "x": Infinity}'},
        {"state": b'{"format": true}'},
        {"state": b'{"format": 2.0}'},
        {"state": b'{"format": 2, "x": {"$tensor": "nowhere"}}'},
        {"state": b'{"format": 2, "x": {"$evil": 1}}'},
        {"state": b'{"format": 2, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"},
        {"state": b'{"format": 2, "x": ' + b'{"$tuple":[' * 90 + b"]}" * 90 + b"}"},
        {"state": b'{"x": 1}'},
        {"state": b'{"format": 0}'},
        {"model": tensor_file({"__metadata__": ["1"]})},
        {"model": tensor_file({"__metadata__": {"savepoint.format": 2}})},
        {"model": tensor_file({"__metadata__": {"savepoint.format": "9" * 5000}})},
        {"model": tensor_file({"__metadata__": {"savepoint.format": "\u0661"}})},
        {"model": tensor_file({})},
        {"model": tensor_file({"__metadata__": VERSION, "a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})},
        {"training": tensor_file({"__metadata__": None})},
        {"provenance": b"[]"},
        {"provenance": b"\xff"},
        {"config": b"\xff"},
    ],
    ids=lambda contents: str(contents)[:60],
)
def test_whatever_a_sealed_file_holds_it_is_read_or_refused_by_the_checkpoints_name(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    path = save(tmp_path)
    reseal(path, **contents)
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "more, told",
    [
        ('"format": 2', "a key stands twice"),
        ('"x": {"a": 1, "a": 1}', "a key stands twice"),
        ('"x": NaN', "NaN is not JSON"),
        ('"x": -Infinity', "-Infinity is not JSON"),
        ('"x": {"$tensor": "nowhere"}', r"x: \$tensor cannot be read"),
        ('"x": {"$evil": 1}', r"x: unknown tag '\$evil'"),
        ('"x": ' + "[" * 100_000, "not strict JSON"),
    ],
    ids=lambda text: text[:30],
)
def test_a_state_is_refused_for_what_alone_is_wrong_with_it(tmp_path: Path, more: str, told: str) -> None:
    path = save(tmp_path)
    right = '{"format": 2, "epoch": 1, "step": 10'
    reseal(path, state=f"{right}}}".encode())
    checkpoint.load(path)
    reseal(path, state=f"{right}, {more}}}".encode())
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load(path)


@pytest.mark.parametrize("place", ['"epoch": 1', '"step": 10', '"epoch": true, "step": 10', '"epoch": 1, "step": true', '"epoch": -1, "step": 10', '"epoch": 1, "step": -1', '"epoch": 1.0, "step": 10'])  # fmt: skip
def test_a_state_that_does_not_say_where_it_stands_is_refused(tmp_path: Path, place: str) -> None:
    path = save(tmp_path)
    reseal(path, state=f'{{"format": 2, {place}}}'.encode())
    with pytest.raises(CheckpointError, match="does not say its epoch and step"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {}}',
        b'{"files": {"model.safetensors": 1}}',
        b'{"files": {"model.safetensors": {"size": "1"}}}',
        b'{"files": {}, "files": {}}',
        b"[" * 100_000,
        b" " * (2**20 + 1),
    ],
    ids=range(10),
)
def test_a_manifest_that_is_none_is_named(tmp_path: Path, manifest: bytes) -> None:
    path = save(tmp_path)
    (path / MANIFEST).write_bytes(manifest)
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)


@pytest.mark.parametrize("name", [MODEL, TRAINING, STATE, CONFIG, PROVENANCE])
def test_a_file_that_the_manifest_does_not_list_either_is_missed_all_the_same(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"][name]
    (path / MANIFEST).write_text(json.dumps(manifest))
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        checkpoint.load(path)


def test_a_manifest_beyond_its_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path)
    with open(path / MANIFEST, "ab") as file:
        file.write(b" " * 2**20)
    with pytest.raises(CheckpointError, match="more than such a file ever has"):
        checkpoint.load(path)


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = save(tmp_path)
    monkeypatch.setattr(os, "scandir", ill)
    with pytest.raises(CheckpointError, match=f"{path.name}: Input/output error"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", [CONFIG, MODEL])
def test_a_size_that_is_not_the_manifests_is_told(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    size = (path / name).stat().st_size
    os.truncate(path / name, size + 1)
    with pytest.raises(CheckpointError, match=f"{name}: {size + 1} bytes, and the manifest says {size}"):
        checkpoint.load(path)


def test_a_manifest_of_the_greatest_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path)
    monkeypatch.setattr(layout, "_MAX_MANIFEST", (path / MANIFEST).stat().st_size)
    checkpoint.load(path)


def test_a_state_beyond_its_size_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, long="x" * 10_000)
    monkeypatch.setattr("savepoint.trust.strict_json.MAX_JSON", 10_000)
    with pytest.raises(CheckpointError, match=f"{STATE}: .* more than such a file ever has"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", [MODEL, MANIFEST])
def test_a_file_that_the_disk_does_not_give_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = save(tmp_path)
    original = os.open

    def ill(file: Path, *flags: int) -> int:
        if Path(file).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(file, *flags)

    monkeypatch.setattr(os, "open", ill)
    with pytest.raises(CheckpointError, match=f"{name}: Input/output error"):
        checkpoint.load(path)


def test_a_manifest_cannot_reach_outside(tmp_path: Path) -> None:
    path = save(tmp_path)
    (tmp_path / "secret").write_bytes(b"x")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"missing \.\./secret"):
        checkpoint.load(path)


def test_no_checkpoint_at_all_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="epoch_0001"):
        checkpoint.load(tmp_path / "epoch_0001_step_00000001")


# Formats


def with_format(path: Path, number: int, *, only: str | None = None) -> None:
    """Make a sound checkpoint say that it is of another format, everywhere or in one file."""
    contents: dict[str, bytes] = {}
    if only in (None, "state"):
        contents["state"] = json.dumps(json.loads((path / STATE).read_text()) | {"format": number}).encode()
    for key, file in (("model", MODEL), ("training", TRAINING)):
        if only in (None, key):
            data = (path / file).read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            header["__metadata__"]["savepoint.format"] = str(number)
            contents[key] = tensor_file(header, data[8 + length :])
    reseal(path, **contents)
    if only in (None, "manifest"):
        manifest = json.loads((path / MANIFEST).read_text()) | {"format": number}
        (path / MANIFEST).write_text(json.dumps(manifest))


def test_a_newer_format_is_refused_by_name_if_every_file_agrees(tmp_path: Path) -> None:
    path = save(tmp_path)
    with_format(path, 3)
    with pytest.raises(layout.NewerFormatError, match=r"has checkpoint format 3, and this version .* reads up to 2"):
        checkpoint.load(path)
    with pytest.raises(layout.NewerFormatError):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("only", ["manifest", "state", "model", "training"])
@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_a_format_that_one_file_alone_names_is_damage(tmp_path: Path, only: str, number: int) -> None:
    path = save(tmp_path)
    with_format(path, number, only=only)
    with pytest.raises(CheckpointError, match="its files name different formats"):
        checkpoint.load(path)
    assert checkpoint.verify(path) is not None


@pytest.mark.parametrize("only", ["manifest", "state"])
@pytest.mark.parametrize("number", [True, 2.0])
def test_a_format_is_an_integer(tmp_path: Path, only: str, number: Any) -> None:
    path = save(tmp_path)
    with_format(path, number, only=only)
    with pytest.raises(CheckpointError, match="its files name different formats"):
        checkpoint.load(path)


def test_there_is_no_format_before_the_first(tmp_path: Path) -> None:
    path = save(tmp_path)
    with_format(path, 0)
    with pytest.raises(CheckpointError, match="name different formats"):
        checkpoint.load(path)


def test_a_sound_checkpoint_of_a_newer_format_is_never_set_aside(tmp_path: Path) -> None:
    path = save(tmp_path)
    with_format(path, 3)
    before = (path / MANIFEST).read_bytes()
    assert checkpoint.verify(path) is None
    assert save(tmp_path) == path
    assert (path / MANIFEST).read_bytes() == before


# Falling back


def test_newest_is_the_newest(tmp_path: Path) -> None:
    for step in (1, 3, 2):
        save(tmp_path, epoch=step, step=step)
    found, damaged = checkpoint.latest(tmp_path)
    assert found is not None and found.state["step"] == 3 and damaged == []


def test_newest_falls_back_over_damaged_ones_and_names_them(tmp_path: Path) -> None:
    paths = [save(tmp_path, epoch=step, step=step) for step in (1, 2, 3)]
    (paths[2] / MODEL).unlink()
    with open(paths[1] / STATE, "ab") as file:
        file.write(b" ")
    found, damaged = checkpoint.latest(tmp_path)
    assert found is not None and found.path == paths[0]
    assert [path for path, _ in damaged] == [paths[2], paths[1]]
    assert MODEL in damaged[0][1] and STATE in damaged[1][1]


def test_newest_of_nothing_sound_is_none(tmp_path: Path) -> None:
    (save(tmp_path) / MANIFEST).unlink()
    found, damaged = checkpoint.latest(tmp_path)
    assert found is None and len(damaged) == 1
    assert checkpoint.latest(tmp_path / "nowhere") == (None, [])


def selected(root: Path, choice: str, monitor: str | None = "val/loss", mode: str = "min") -> str:
    return checkpoint.select(root, choice, monitor=monitor, mode=mode).path.name


def test_a_checkpoint_is_selected_by_what_is_said_of_it(tmp_path: Path) -> None:
    names = [
        score(tmp_path, value, epoch=epoch, step=10 * epoch).name for epoch, value in enumerate([0.9, 0.1, 0.4], 1)
    ]
    assert [selected(tmp_path, choice) for choice in ("last", "best", "10", "0000010", names[1])] == [
        names[2], names[1], names[0], names[0], names[1],
    ]  # fmt: skip
    assert selected(tmp_path, "best", mode="max") == names[0]
    later = score(tmp_path, 0.5, epoch=2, step=10).name
    assert selected(tmp_path, "10") == later, "of one step, the later epoch"


@pytest.mark.parametrize("choice", ["7", "epoch_0009_step_00000009", "first", "best"])
def test_selecting_what_is_not_there_says_what_is(tmp_path: Path, choice: str) -> None:
    for root, told in (
        (tmp_path / "nowhere", "none"),
        (tmp_path, "epoch_0002_step_00000020, epoch_0001_step_00000010"),
    ):
        with pytest.raises(CheckpointError) as error:
            selected(root, choice, monitor=None)
        assert str(error.value) == f"No checkpoint @{choice}. There are: {told}."
        save(tmp_path)
        save(tmp_path, epoch=2, step=20)


def test_selecting_the_last_of_nothing_sound_says_what_is_wrong_with_the_newest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        selected(tmp_path, "last")
    for step in (1, 2):
        (save(tmp_path, epoch=step, step=step) / MODEL).unlink()
    with pytest.raises(CheckpointError, match=rf"epoch_0002_step_00000002: missing {MODEL}"):
        selected(tmp_path, "last")


# Atomicity


class Power:
    """Fails at the k-th system call that changes the disk. Before that, notes each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        for name in ("open", "write", "writev", "fsync", "rename", "replace", "mkdir"):
            monkeypatch.setattr(os, name, self._noting(name, getattr(os, name)))

    def _noting(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            first = arguments[0]
            if isinstance(first, int):
                first = Path(f"/proc/self/fd/{first}").readlink()
            self.calls.append(f"{name} {Path(str(first)).name}")
            if len(self.calls) - 1 == self._fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **keywords)

        return call


def order_of_calls(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    with monkeypatch.context() as patch:
        power = Power(patch)
        save(root, epoch=2, step=20)
    return power.calls


def test_a_checkpoint_gets_its_name_after_all_else_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "checkpoints"
    calls = order_of_calls(monkeypatch, root)
    hidden = f".tmp-epoch_0002_step_00000020-{os.getpid()}"
    named = calls.index(f"rename {hidden}")
    synced = [call.removeprefix("fsync ") for call in calls[:named] if call.startswith("fsync")]
    # Each file, the manifest last, then the directory that names them; before all, the root's own name.
    assert synced == [tmp_path.name, MODEL, TRAINING, STATE, CONFIG, PROVENANCE, PATCH, MANIFEST, hidden]
    # Nothing of the manifest is written before all that it counts on is on the disk.
    manifest = calls.index(f"open {MANIFEST}")
    assert [call for call in calls[:manifest] if call.startswith("fsync")][1:] == [
        f"fsync {name}" for name in synced[1:7]
    ]
    assert calls[named + 1 :] == ["open checkpoints", "fsync checkpoints"]


def test_a_save_that_fails_at_any_call_leaves_the_older_checkpoint_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = order_of_calls(monkeypatch, tmp_path / "counted")
    assert len(calls) > 15
    for k in range(len(calls)):
        root = tmp_path / f"{k}"
        older = save(root, epoch=1, step=10)
        with monkeypatch.context() as patch:
            power = Power(patch, fail_at=k)
            try:
                save(root, epoch=2, step=20)
                failed = False
            except OSError as error:
                failed = True
                assert error.errno == errno.ENOSPC
        assert failed == (k < len(power.calls))
        checkpoint.load(older)
        for name in visible(root):
            checkpoint.load(root / name)  # a visible one is a whole one
        assert not list(root.glob(".tmp-*")), "what was half written takes up a full disk"
        found, damaged = checkpoint.latest(root)
        assert found is not None and damaged == []


def test_a_save_that_is_interrupted_cleans_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_says_why_where_nothing_can_be_removed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def ill(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", full)
    monkeypatch.setattr(os, "rmdir", ill)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = save(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    checkpoint.load(path)
    (path / CONFIG).write_text("odd")
    assert checkpoint.verify(path) is not None
    assert len(os.listdir("/proc/self/fd")) == before


def test_state_that_cannot_be_saved_exactly_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"^odd: "):
        save(tmp_path / "root", odd={1, 2})
    assert not (tmp_path / "root").exists()


def test_a_sound_checkpoint_is_never_rewritten(tmp_path: Path) -> None:
    path = save(tmp_path)
    before = {name: ((path / name).stat().st_ino, (path / name).stat().st_mtime_ns) for name in ALL}
    assert save(tmp_path, moments=torch.zeros(99)) == path
    assert {name: ((path / name).stat().st_ino, (path / name).stat().st_mtime_ns) for name in ALL} == before


@pytest.mark.parametrize("name", [MODEL, STATE, MANIFEST])
def test_a_damaged_checkpoint_is_set_aside_by_the_save_of_its_name(tmp_path: Path, name: str) -> None:
    for count in (1, 2, 3):
        path = save(tmp_path)
        data = (path / name).read_bytes().replace(b"1", b"3", 1)
        (path / name).write_bytes(data)
        assert save(tmp_path) == path
        checkpoint.load(path)
        assert len(list(tmp_path.glob(f".damaged-{path.name}*"))) == count
    assert checkpoint.names(tmp_path) == [path.name]


def test_set_aside_keeps_what_it_renames(tmp_path: Path) -> None:
    path = save(tmp_path)
    aside = checkpoint.set_aside(path)
    assert aside.name == f".damaged-{path.name}" and not path.exists()
    checkpoint.load(aside)
    assert checkpoint.set_aside(save(tmp_path)).name == f"{aside.name}-2"


# Retention


def pruned(root: Path, **changes: Any) -> list[str]:
    rule = {"keep_last": 1, "keep_best": 1, "monitor": "val/loss", "mode": "min", "protect": None} | changes
    dropped = checkpoint.prune(root, **rule)
    assert not set(dropped) & set(visible(root))
    return [str(int(name[-8:])) for name in checkpoint.names(root)]


def five(root: Path, values: list[float]) -> None:
    for step, value in enumerate(values, start=1):
        score(root, value, epoch=step, step=step)


@pytest.mark.parametrize(
    "changes, kept",
    [
        ({}, "2 5"),
        ({"keep_last": 2}, "2 4 5"),
        ({"keep_last": 9}, "1 2 3 4 5"),
        ({"keep_best": 0}, "5"),
        ({"keep_best": 2}, "2 4 5"),
        ({"keep_best": 3}, "2 3 4 5"),
        ({"mode": "max"}, "1 5"),
        ({"monitor": None}, "5"),
        ({"monitor": "val/nothing"}, "5"),
        ({"protect": "epoch_0003_step_00000003"}, "2 3 5"),
    ],
    ids=str,
)
def test_prune_keeps_the_last_the_best_and_the_protected(tmp_path: Path, changes: dict[str, Any], kept: str) -> None:
    five(tmp_path, [0.9, 0.1, 0.4, 0.2, 0.5])
    assert pruned(tmp_path, **changes) == kept.split()


def test_prune_deletes_what_it_drops_and_leaves_no_trace(tmp_path: Path) -> None:
    five(tmp_path, [0.9, 0.1, 0.4])
    pruned(tmp_path, keep_best=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch_0003_step_00000003"]


def test_prune_hides_a_checkpoint_before_it_deletes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle must not leave what looks like a damaged checkpoint."""
    five(tmp_path, [0.9, 0.1])
    seen: list[list[str]] = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: seen.append(visible(tmp_path)))
    pruned(tmp_path, keep_best=0)
    assert seen == [["epoch_0002_step_00000002"]]
    hidden = {entry.name for entry in tmp_path.iterdir()} - set(visible(tmp_path))
    assert hidden == {f".tmp-pruned-epoch_0001_step_00000001-{os.getpid()}"}


def test_nan_is_never_best(tmp_path: Path) -> None:
    five(tmp_path, [math.nan, 0.9, math.nan, 0.5, math.nan])
    for mode, best in (("min", "4 2"), ("max", "2 4")):
        assert [name[-1] for name in checkpoint.best(tmp_path, monitor="val/loss", mode=mode)] == best.split()


def test_infinity_can_be_best(tmp_path: Path) -> None:
    five(tmp_path, [math.inf, 1.0, -math.inf])
    assert [name[-1] for name in checkpoint.best(tmp_path, monitor="val/loss", mode="min")] == ["3", "2", "1"]
    assert [name[-1] for name in checkpoint.best(tmp_path, monitor="val/loss", mode="max")] == ["1", "2", "3"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_values_the_earliest_is_best(tmp_path: Path, mode: str) -> None:
    five(tmp_path, [0.5, 0.5, 0.5])
    assert [name[-1] for name in checkpoint.best(tmp_path, monitor="val/loss", mode=mode)] == ["1", "2", "3"]


def test_a_checkpoint_from_the_middle_of_an_epoch_is_never_best(tmp_path: Path) -> None:
    """It carries the value of the epoch before."""
    score(tmp_path, 0.5, epoch=1, step=10)
    score(tmp_path, 0.1, epoch=1, step=15, batch=5)
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") == ["epoch_0001_step_00000010"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": []}', '{"metrics": null, "batch": 0}', '{"metrics": {"val/loss": "0"}, "batch": 0}', '{"metrics": {"val/loss": 0.1}}', '{"metrics": {"val/loss": {"$evil": 0}}, "batch": 0}'])  # fmt: skip
def test_a_damaged_checkpoint_is_never_best(tmp_path: Path, text: str) -> None:
    good, bad = score(tmp_path, 0.5, epoch=1, step=1), score(tmp_path, 0.1, epoch=2, step=2)
    (bad / STATE).write_text(text)
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") == [good.name]


def test_a_whole_number_can_be_best(tmp_path: Path) -> None:
    for step, value in enumerate([3, 2.5, 1], start=1):
        save(tmp_path, epoch=step, step=step, metrics={"val/loss": value})
    assert [name[-1] for name in checkpoint.best(tmp_path, monitor="val/loss", mode="min")] == ["3", "2", "1"]


def test_of_equal_values_the_earliest_is_best_past_the_padding_too(tmp_path: Path) -> None:
    for epoch in (9999, 10_000):
        score(tmp_path, 0.5, epoch=epoch, step=epoch)
    assert [name[6:11] for name in checkpoint.best(tmp_path, monitor="val/loss", mode="min")] == ["9999_", "10000"]


@pytest.mark.parametrize("changed", ["identity", "time", "size"])
def test_what_was_read_of_a_file_is_not_believed_of_another(tmp_path: Path, changed: str) -> None:
    path = score(tmp_path, 0.5, epoch=1, step=1) / STATE
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") != []
    before, text = path.stat(), path.read_text().replace("0.5", '"none"' if changed == "size" else "NaN")
    if changed == "identity":
        path.rename(tmp_path / "older")  # or the new file might get its number
    path.write_text(text)
    os.utime(path, ns=(0, before.st_mtime_ns + (changed == "time")))
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") == []


def test_what_was_read_of_a_file_is_not_believed_of_a_link_to_it(tmp_path: Path) -> None:
    path = score(tmp_path, 0.5, epoch=1, step=1) / STATE
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") != []
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") == []


def test_a_state_beyond_its_size_is_never_best_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = score(tmp_path, 0.5, epoch=1, step=1)
    os.truncate(path / STATE, strict_json.MAX_JSON + 1)
    taken: list[int] = []
    monkeypatch.setattr(strict_json, "_memory", lambda size: taken.append(size) or bytearray(size))
    assert checkpoint.best(tmp_path, monitor="val/loss", mode="min") == [] and taken == []


def test_clean_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path)
    aside = checkpoint.set_aside(save(tmp_path, step=11))
    for name in (f".tmp-{path.name}-123", f".tmp-pruned-{path.name}-123"):
        shutil.copytree(path, tmp_path / name)
    checkpoint.clean(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, aside.name}
    checkpoint.clean(tmp_path / "nowhere")


def test_a_disk_that_is_ill_is_cleaned_by_a_later_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "glob", ill)
    checkpoint.clean(tmp_path)
