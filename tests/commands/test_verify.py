"""`python -m savepoint verify RUN`: what it tells of each checkpoint, and that resume.py then does what it foretold."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.processes import REPOSITORY
from tools.workshop import NAMES, Workshop

from savepoint import __main__, checkpoint, runs
from savepoint.checkpoint import SUPERSEDED
from savepoint.checkpoint.layout import CONFIG, FORMAT, MANIFEST, MODEL, PROVENANCE, STATE, TRAINING
from savepoint.commands import verify
from savepoint.errors import UserError
from savepoint.runs import history

SOURCE = REPOSITORY / "src"
FIRST, SECOND, NEWEST = NAMES
NEWER = FORMAT + 1
ALIEN = "zzzz9999"  # the id of another run


@pytest.fixture
def root(directory: Path) -> Path:
    return directory / "checkpoints"


@dataclass
class Told:
    """What verify said. rows: by checkpoint, what stands behind its size. more: the lines between them and the sum."""

    sound: bool
    lines: list[str]

    @property
    def rows(self) -> dict[str, str]:
        split = [re.fullmatch(r"(\S+) +(\d+ +\d+|) +(\?|[\d.]+ \wB|\d+ B)  (.+)", line) for line in self.lines[:-1]]
        return {row[1]: row[4] for row in split if row}

    @property
    def more(self) -> list[str]:
        return self.lines[1 + len(self.rows) if self.rows else 0 : -1]

    @property
    def sum(self) -> str:
        return self.lines[-1]

    @property
    def outlook(self) -> str:
        return self.sum.partition("; ")[2]


def told(text: object, *, repository: Path = REPOSITORY, say: Callable[[str], Any] = str) -> Told:
    """say: sees each line as soon as it is said."""
    lines: list[str] = []

    def both(line: str) -> None:
        lines.append(line)
        say(line)

    return Told(verify.report(verify.find(str(text), repository), source=SOURCE, say=both), lines)


def seal(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file of a checkpoint, and its manifest with it, as somebody who means harm would."""
    data = change((path / name).read_bytes())
    assert data != (path / name).read_bytes()
    (path / name).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def values(**changed: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changed).encode()


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


# Harms. Each takes the run's directory.


def flip(directory: Path, name: str = NEWEST, file: str = MODEL) -> None:
    path = directory / "checkpoints" / name / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_all(directory: Path) -> None:
    for name in NAMES:
        flip(directory, name)


def remove(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "checkpoints" / NEWEST / file).unlink()


def add(directory: Path) -> None:
    (directory / "checkpoints" / NEWEST / "extra").write_bytes(b"")


def truncate(directory: Path) -> None:
    os.truncate(directory / "checkpoints" / NEWEST / TRAINING, 1000)


def swap(directory: Path) -> None:
    path = directory / "checkpoints" / NEWEST
    for old, new in ((MODEL, "x"), (TRAINING, MODEL), ("x", TRAINING)):
        (path / old).rename(path / new)


def take_from_another(directory: Path) -> None:
    shutil.copy(directory / "checkpoints" / FIRST / MODEL, directory / "checkpoints" / NEWEST)


def rename(directory: Path) -> None:
    (directory / "checkpoints" / FIRST).rename(directory / "checkpoints" / "epoch_0009_step_00000018")


def put_a_file(directory: Path) -> None:
    shutil.rmtree(directory / "checkpoints" / NEWEST)
    (directory / "checkpoints" / NEWEST).write_bytes(b"")


def make_newer(directory: Path, name: str = NEWEST) -> None:
    """A sound checkpoint of the next format: every file that names a format says so."""
    path = directory / "checkpoints" / name
    for file in (MODEL, TRAINING):
        seal(path, file, replaced(b'"savepoint.format":"%d"' % FORMAT, b'"savepoint.format":"%d"' % NEWER))
    seal(path, STATE, values(format=NEWER))
    (path / MANIFEST).write_bytes(values(format=NEWER)((path / MANIFEST).read_bytes()))


def make_hostile(directory: Path, name: str = NEWEST) -> None:
    seal(directory / "checkpoints" / name, CONFIG, replaced(b"project.models.mlp.Mlp", b"os.system"))


def make_tagged(directory: Path) -> None:
    seal(directory / "checkpoints" / NEWEST, CONFIG, replaced(b"seed: 0", b"seed: !!python/name:os.system 0"))


def misconfigure(directory: Path) -> None:
    seal(directory / "checkpoints" / NEWEST, CONFIG, replaced(b"deterministic: true", b"deterministic: 7"))


def make_run_hostile(directory: Path) -> None:
    path = directory / runs.CONFIG
    path.write_bytes(path.read_bytes().replace(b"project.models.mlp.Mlp", b"os.system"))


def make_run_tagged(directory: Path) -> None:
    path = directory / runs.CONFIG
    path.write_bytes(path.read_bytes().replace(b"seed: 0", b"seed: !!python/name:os.system 0"))


def make_another_run(directory: Path) -> None:
    runs.read(directory).update(id=ALIEN)


def history_of(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def harm(directory: Path) -> None:
        path = directory / runs.METRICS
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return harm


def make_history_a_directory(directory: Path) -> None:
    (directory / runs.METRICS).unlink()
    (directory / runs.METRICS).mkdir()


def set_all_aside(directory: Path) -> None:
    for name in NAMES:
        checkpoint.set_aside(directory / "checkpoints" / name)


def both(*harms: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm(directory: Path) -> None:
        for each in harms:
            each(directory)

    return harm


BEGIN, REFUSE = "resume would begin from", "resume would refuse"
OVER, NONE, OWN = "resume would start over from config.yaml", f"{REFUSE}: none can be loaded", f"{REFUSE} the run's config.yaml"  # fmt: skip
HOSTILE = "refused: config.yaml: model._target_: 'os.system' is not allowed"
NEWER_FORMAT = (
    f"newer: has checkpoint format {NEWER}, and this version of Savepoint reads up to {FORMAT}. Take a newer Savepoint"
)
# What is done; what verify says of it, the row of one checkpoint or a line; and the outlook.
HARMS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda directory: None, f"{NEWEST} sound", f"{BEGIN} {NEWEST}"),
    "a flipped bit": (flip, f"{NEWEST} damaged: model.safetensors: its SHA-256 is not the manifest's", f"{BEGIN} {SECOND}"),
    "a missing file": (remove(STATE), f"{NEWEST} damaged: missing state.json", f"{BEGIN} {SECOND}"),
    "a missing manifest": (remove(MANIFEST), f"{NEWEST} damaged: manifest.json: missing, or not a plain file", f"{BEGIN} {SECOND}"),
    "an extra file": (add, f"{NEWEST} damaged: extra not in the manifest", f"{BEGIN} {SECOND}"),
    "a truncated file": (truncate, f"{NEWEST} damaged: training.safetensors: 1000 bytes, and the manifest says ", f"{BEGIN} {SECOND}"),
    "swapped files": (swap, f"{NEWEST} damaged: model.safetensors: ", f"{BEGIN} {SECOND}"),
    "another one's file": (take_from_another, f"{NEWEST} damaged: model.safetensors: its SHA-256 is not", f"{BEGIN} {SECOND}"),
    "renamed": (rename, f"epoch_0009_step_00000018 damaged: its state is that of {FIRST}, so it was renamed", f"{BEGIN} {NEWEST}"),
    "a file in its place": (put_a_file, f"{NEWEST} damaged: manifest.json: Not a directory", f"{BEGIN} {SECOND}"),
    "two damaged": (both(flip, lambda directory: flip(directory, SECOND, STATE)), f"{SECOND} damaged: state.json: ", f"{BEGIN} {FIRST}"),
    "an older one damaged": (lambda directory: flip(directory, SECOND), f"{SECOND} damaged: model.safetensors: ", f"{BEGIN} {NEWEST}"),
    "all damaged": (flip_all, f"{FIRST} damaged: model.safetensors: ", NONE),
    "a newer format": (make_newer, f"{NEWEST} {NEWER_FORMAT}", f"{REFUSE} {NEWEST}"),
    "a newer format behind damage": (both(flip, lambda directory: make_newer(directory, SECOND)), f"{SECOND} {NEWER_FORMAT}", f"{REFUSE} {SECOND}"),
    "a newer format of an older one": (lambda directory: make_newer(directory, SECOND), f"{SECOND} {NEWER_FORMAT}", f"{BEGIN} {NEWEST}"),
    "a hostile config": (make_hostile, f"{NEWEST} {HOSTILE}", f"{REFUSE} {NEWEST}"),
    "a hostile config behind damage": (both(flip, lambda directory: make_hostile(directory, SECOND)), f"{SECOND} {HOSTILE}", f"{REFUSE} {SECOND}"),
    "a hostile config of an older one": (lambda directory: make_hostile(directory, SECOND), f"{SECOND} {HOSTILE}", f"{BEGIN} {NEWEST}"),
    "a config with a tag": (make_tagged, f"{NEWEST} refused: config.yaml: config.yaml: seed: the tag", f"{REFUSE} {NEWEST}"),
    "a config with a fault": (misconfigure, f"{NEWEST} refused: config.yaml: trainer.deterministic=7", f"{REFUSE} {NEWEST}"),
    "a hostile config of the run": (make_run_hostile, "refused: config.yaml of the run: model._target_: 'os.system' is not allowed", OWN),
    "a tag in the config of the run": (make_run_tagged, "refused: config.yaml of the run: config.yaml: seed: the tag", OWN),
    "no config of the run": (lambda directory: (directory / runs.CONFIG).unlink(), "refused: config.yaml of the run: No such file or directory", OWN),
    "another run's": (make_another_run, f"{NEWEST} damaged: provenance.json: of run ", f"{BEGIN} {NEWEST}"),
    "a short history": (history_of(lambda lines: lines[:1]), f"{NEWEST} damaged: metrics.jsonl: 1 lines, and state.json counts on 3", f"{BEGIN} {NEWEST}"),
    "a torn end of the history": (history_of(lambda lines: [*lines[:2], lines[2][:20]]), f"{NEWEST} damaged: metrics.jsonl: 2 lines, and state.json counts on 3", f"{BEGIN} {NEWEST}"),
    "no history": (lambda directory: (directory / runs.METRICS).unlink(), f"{NEWEST} damaged: metrics.jsonl: No such file or directory, and state.json counts on 3", f"{BEGIN} {NEWEST}"),
    "a torn line of the history": (history_of(lambda lines: [lines[0], lines[1][:20] + b"\n", lines[2]]), f"{NEWEST} damaged: metrics.jsonl: line 2 is no line of a history", f"{REFUSE} {NEWEST}"),
    "a directory for a history": (make_history_a_directory, f"{NEWEST} damaged: metrics.jsonl: Is a directory", f"{REFUSE} {NEWEST}"),
    "no checkpoints": (lambda directory: shutil.rmtree(directory / "checkpoints"), "", OVER),
    "all set aside": (set_all_aside, f"set aside as damaged before: .damaged-{FIRST}, .damaged-{SECOND}, .damaged-{NEWEST}", OVER),
}  # fmt: skip
NO_FAULT = {"nothing", "a newer format", "a newer format of an older one", "no checkpoints", "all set aside"}


def contents(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that lies in it, itself included: modes, times of change and bytes."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_mtime_ns, data)
    return found


@pytest.mark.parametrize("what", HARMS)
def test_each_harm_is_named_and_nothing_is_changed(directory: Path, what: str) -> None:
    harm, line, outlook = HARMS[what]
    harm(directory)
    before = contents(directory)
    said = told(directory)
    there = [f"{name} {row}" for name, row in said.rows.items()] + said.more
    assert line == "" or any(each.startswith(line) for each in there), said.lines
    assert said.outlook == outlook
    assert said.sound == (what in NO_FAULT)
    assert contents(directory) == before


# For resume.py, one kind of damage is like another; test_damage.py has more of them.
ALIKE = {
    *("a missing file", "a missing manifest", "an extra file", "a truncated file", "swapped files"),
    *("another one's file", "a file in its place"),
}


@pytest.mark.parametrize("what", [what for what in HARMS if what not in ALIKE])
def test_resume_does_what_verify_foretold(workshop: Workshop, directory: Path, what: str) -> None:
    HARMS[what][0](directory)
    said = told(directory)
    ended = workshop.run("resume.py", f"run={directory}")
    begun = re.search(r"^resumed from (\S+): ", ended.output, re.MULTILINE)
    if said.outlook.startswith(BEGIN):
        assert ended.status == 0 and begun and said.outlook == f"{BEGIN} {begun[1]}", ended.output
    elif said.outlook == OVER:
        assert ended.status == 0 and not begun and "it starts over from its config.yaml" in ended.output, ended.output
    else:
        assert ended.status == 2 and not begun and "Traceback" not in ended.output, ended.output
        assert why(said) in ended.output, (why(said), ended.output)


def why(said: Told) -> str:
    """What verify says of that which would be refused. resume.py gives it as the reason."""
    if said.outlook == OWN:
        (fault,) = [line.removeprefix("refused: config.yaml of the run: ") for line in said.more]
    elif said.outlook == NONE:
        fault = said.rows[NEWEST].removeprefix("damaged: ")
    else:
        row = said.rows[said.outlook.removeprefix(f"{REFUSE} ")]
        fault = re.sub(r"^(newer|refused: config.yaml|damaged: metrics.jsonl): ", "", row)
        if "metrics.jsonl: " in row:  # resume.py has other words for it
            return "Is a directory" if "Is a directory" in row else "line 2"
    return fault


# What is sound


def test_a_sound_run_is_a_table_and_what_resume_would_begin_from(directory: Path, root: Path) -> None:
    said = told(directory)
    sizes = [sum(path.stat().st_size for path in (root / name).iterdir()) / 1000 for name in NAMES]
    assert said.lines == [
        "checkpoint                 epoch       step       size",
        *(
            f"{name}       {epoch}          {2 * epoch}  {f'{size:.1f} kB':>9}  sound"
            for epoch, (name, size) in enumerate(zip(NAMES, sizes), start=1)
        ),
        f"3 checkpoints: 3 sound; resume would begin from {NEWEST}",
    ]
    assert said.sound


def test_several_kinds_of_fault_are_counted(directory: Path) -> None:
    flip(directory, FIRST)
    make_newer(directory, SECOND)
    make_hostile(directory)
    said = told(directory)
    assert said.sum == f"3 checkpoints: 1 damaged, 1 refused, 1 of a newer format; resume would refuse {NEWEST}"


def test_every_byte_is_read(directory: Path, root: Path) -> None:
    for file in (MODEL, TRAINING, STATE, CONFIG, PROVENANCE):
        flip(directory, NEWEST, file)
        assert told(directory).rows[NEWEST].startswith(f"damaged: {file}: "), file
        flip(directory, NEWEST, file)
    assert told(directory).sound


def test_a_run_in_training_is_sound(directory: Path, root: Path) -> None:
    """Its history is ahead of its checkpoints, which count on none of that: resuming cuts it off."""
    with open(directory / runs.METRICS, "ab") as file:
        file.write(b'{"step": 7, "epoch": 4}\n\0\0\0\n{"step": 8, "epo')
    assert told(directory).sound


def test_a_checkpoint_without_history_needs_none(directory: Path, root: Path) -> None:
    for name in (FIRST, SECOND):
        shutil.rmtree(root / name)
    seal(root / NEWEST, STATE, values(history_lines=0))
    (directory / runs.METRICS).unlink()
    assert told(directory).sound


def test_a_run_without_checkpoints_is_no_fault(directory: Path, root: Path) -> None:
    for each in (shutil.rmtree, Path.mkdir):
        each(root)
        said = told(directory)
        assert said.lines == ["0 checkpoints; resume would start over from config.yaml"] and said.sound


# As long as the disk is being read, a run may go on


def test_each_line_is_said_before_the_next_checkpoint_is_read(directory: Path) -> None:
    said = told(directory, say=lambda line: line.startswith(FIRST) and flip(directory))
    assert list(said.rows.values()) == ["sound", "sound", "damaged: model.safetensors: its SHA-256 is not the manifest's"]  # fmt: skip


def test_a_checkpoint_that_retention_deletes_meanwhile_is_no_fault(directory: Path, root: Path) -> None:
    said = told(directory, say=lambda line: line.startswith(FIRST) and shutil.rmtree(root / SECOND))
    assert said.rows == {FIRST: "sound", SECOND: "deleted meanwhile", NEWEST: "sound"} and said.sound
    assert said.sum == "3 checkpoints: 2 sound, 1 deleted", "what resume would do was not looked at"


# Where it comes from


def forge_run(path: Path) -> None:
    seal(path, PROVENANCE, values(run_id=ALIEN))


def forge_commit(path: Path) -> None:
    seal(path, PROVENANCE, values(git={"commit": "0123456789abcdef"}))


def forge_digest(path: Path) -> None:
    seal(path, PROVENANCE, values(config_sha256="0" * 64))


def forge_config(path: Path) -> None:
    seal(path, CONFIG, lambda data: data + b"# more\n")


def metadata_of(key: str) -> Callable[[Path], None]:
    """The same key with another value, of the same length."""
    pattern = rf'("savepoint\.{key}":")([^"]*)"'.encode()
    change = lambda found: found[1] + (found[2][::-1] or b"") + b'"'  # noqa: E731
    return lambda path: seal(path, MODEL, lambda data: re.sub(pattern, change, data))


def drop_metadata(path: Path) -> None:
    seal(path, MODEL, replaced(b'"savepoint.run_id"', b'"savepoint.run_ID"'))


OF_OTHERS = "is not that of the other files"
UNTRACEABLE = {
    "run": (forge_run, f"model.safetensors: its savepoint.run_id {OF_OTHERS}; provenance.json: of run {ALIEN}, and this is "),
    "commit": (forge_commit, f"model.safetensors: its savepoint.git_commit {OF_OTHERS}"),
    "digest": (forge_digest, "provenance.json: its config_sha256 is not that of config.yaml"),
    "config": (forge_config, f"provenance.json: its config_sha256 is not that of config.yaml; model.safetensors: its savepoint.config_sha256 {OF_OTHERS}"),
    "metadata, run": (metadata_of("run_id"), f"model.safetensors: its savepoint.run_id {OF_OTHERS}"),
    "metadata, digest": (metadata_of("config_sha256"), f"model.safetensors: its savepoint.config_sha256 {OF_OTHERS}"),
    "metadata, missing": (drop_metadata, f"model.safetensors: its savepoint.run_id {OF_OTHERS}"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNTRACEABLE)
def test_a_checkpoint_whose_files_disagree_on_where_it_comes_from_is_told(
    directory: Path, root: Path, what: str
) -> None:
    forge, fault = UNTRACEABLE[what]
    forge(root / NEWEST)
    said = told(directory)
    assert said.rows[NEWEST] == f"damaged: {fault}{runs.read(directory).id if what == 'run' else ''}"
    assert said.rows[SECOND] == "sound" and not said.sound
    assert said.outlook == f"{BEGIN} {NEWEST}"


def test_checkpoints_of_another_run_are_told_by_both_ids(directory: Path) -> None:
    own = runs.read(directory).id
    make_another_run(directory)
    assert set(told(directory).rows.values()) == {f"damaged: provenance.json: of run {own}, and this is {ALIEN}"}


@pytest.mark.parametrize("git", [None, "0123456789abcdef", ["commit"]])
def test_a_provenance_of_another_shape_names_no_commit(directory: Path, root: Path, git: object) -> None:
    """As was the one of the run, which was trained outside of any repository."""
    seal(root / NEWEST, PROVENANCE, values(git=git))
    assert told(directory).sound


@pytest.mark.parametrize("lines", [-1, True, "3", None, 1.5])
def test_a_state_that_counts_on_no_number_of_lines_is_told(directory: Path, root: Path, lines: object) -> None:
    seal(root / NEWEST, STATE, values(history_lines=lines))
    assert told(directory).rows[NEWEST] == f"damaged: state.json: history_lines is {lines!r}"


# Which checkpoints


def test_words_after_the_at_choose_one_and_give_no_outlook(directory: Path, root: Path) -> None:
    flip(directory)
    checkpoint.set_aside(root / NEWEST)
    shutil.copytree(root / f".damaged-{NEWEST}", root / NEWEST)
    for choice, name in {"last": NEWEST, "6": NEWEST, SECOND: SECOND, "4": SECOND, f".damaged-{NEWEST}": f".damaged-{NEWEST}"}.items():  # fmt: skip
        said = told(f"{directory}@{choice}")
        assert list(said.rows) == [name], choice
        assert said.sum == f"1 checkpoint: 1 {'sound' if name == SECOND else 'damaged'}"
    for path in (root / SECOND, root / f".damaged-{NEWEST}"):
        assert list(told(path).rows) == [path.name]
    assert told(f"{directory}@4").sound and not told(f"{directory}@6").sound


def test_the_only_checkpoint_is_the_whole_run(directory: Path, root: Path) -> None:
    for name in (FIRST, SECOND):
        shutil.rmtree(root / name)
    assert told(f"{directory}@last").sum == f"1 checkpoint: 1 sound; resume would begin from {NEWEST}"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_is_what_the_runs_config_monitors_damaged_or_not(directory: Path, mode: str) -> None:
    lines = history.read_history(directory / runs.METRICS)
    values = [float(str(line["train/loss"])) for line in lines]
    best = NAMES[values.index(min(values) if mode == "min" else max(values))]
    path = directory / runs.CONFIG
    config = path.read_bytes().replace(b"monitor: val/loss", b"monitor: train/loss")
    path.write_bytes(config.replace(b"mode: min", f"mode: {mode}".encode()))
    assert told(f"{directory}@best").rows == {best: "sound"}
    flip(directory, best)
    assert list(told(f"{directory}@best").rows) == [best]


@pytest.mark.parametrize("monitor", ["null", "[1]", "{a: b}", "1", "val/nothing"])
def test_there_is_no_best_of_what_is_not_measured(directory: Path, monitor: str) -> None:
    path = directory / runs.CONFIG
    path.write_bytes(path.read_bytes().replace(b"monitor: val/loss", f"monitor: {monitor}".encode()))
    with pytest.raises(UserError, match=f"No checkpoint @best in run {runs.read(directory).id}. There are: {NEWEST}, "):
        told(f"{directory}@best")


@pytest.mark.parametrize("choice", ["77", "first", "..", ".", f"../checkpoints/{FIRST}", "epoch_0001", STATE])
def test_a_choice_that_means_nothing_is_refused_with_what_there_is(directory: Path, choice: str) -> None:
    own = runs.read(directory).id
    with pytest.raises(UserError) as caught:
        told(f"{directory}@{choice}")
    assert str(caught.value) == f"No checkpoint @{choice} in run {own}. There are: {NEWEST}, {SECOND}, {FIRST}."
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match=r"There are: none\.$"):
        told(f"{directory}@{choice}")


def test_a_run_is_found_by_its_id_as_everywhere(directory: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "2026-01-01" / "000001-x"
    shutil.copytree(directory, place)
    own = runs.read(place).id
    for text in (own, own[:4], "latest", f"{own}@last", place / "checkpoints"):
        assert NEWEST in told(text, repository=tmp_path).rows, text


def test_the_directory_of_a_runs_checkpoints_is_the_run(directory: Path, root: Path) -> None:
    assert told(root).lines == told(directory).lines
    make_another_run(directory)
    assert told(root).lines == told(directory).lines and not told(root).sound


def test_the_directory_of_a_checkpoint_is_that_checkpoint_of_its_run(directory: Path, root: Path) -> None:
    assert told(root / NEWEST).lines == told(f"{directory}@last").lines
    make_another_run(directory)
    assert told(root / NEWEST).rows[NEWEST].startswith("damaged: provenance.json: of run ")


def test_checkpoints_may_lie_on_another_disk(directory: Path, root: Path, tmp_path: Path) -> None:
    root.symlink_to(root.rename(tmp_path / "elsewhere"))
    assert told(directory).sum == f"3 checkpoints: 3 sound; resume would begin from {NEWEST}"


def test_checkpoints_without_their_run_are_checked_by_themselves(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "away" / "checkpoints"
    shutil.copytree(trained / "checkpoints", root)
    for place in (root, root.parent):
        said = told(place)
        assert list(said.rows.values()) == ["sound"] * 3 and said.sound
        assert said.more == ["There is no run.json with them: whether they are of one run, and its history, was not checked."]  # fmt: skip
        assert said.sum == "3 checkpoints: 3 sound"
    assert told(root / NEWEST).rows == {NEWEST: "sound"}
    (root / NEWEST / STATE).unlink()
    assert told(root / NEWEST).rows == {NEWEST: "damaged: missing state.json"} and not told(root).sound
    (root / SECOND).rename(root.parent / "favourite")
    assert told(root.parent / "favourite").rows == {"favourite": "sound"}


def test_a_checkpoint_without_its_run_still_has_to_be_at_one_with_itself(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    forge_config(tmp_path / "checkpoints" / NEWEST)
    make_hostile(tmp_path, SECOND)
    rows = told(tmp_path).rows
    assert rows[NEWEST].startswith("damaged: provenance.json: its config_sha256") and rows[FIRST] == "sound"
    assert f"{SECOND} {rows[SECOND]}".startswith(f"{SECOND} {HOSTILE}")


def test_a_copy_elsewhere_in_the_run_is_not_taken_for_the_checkpoint_of_that_name(directory: Path, root: Path) -> None:
    copy = shutil.copytree(root / NEWEST, directory / "kept" / NEWEST)
    flip(directory)
    assert told(copy).rows == {NEWEST: "sound"} and not told(root / NEWEST).sound


# What else lies there


def test_leftovers_are_told_and_are_no_fault(directory: Path, root: Path) -> None:
    for name in [f".damaged-x-{n}" for n in range(6)] + [".tmp-pruned-y-1", f".tmp-{NEWEST}-17", ".else"]:
        (root / name).mkdir()
    said = told(directory)
    assert said.more == [
        "set aside as damaged before: .damaged-x-0, .damaged-x-1, .damaged-x-2, .damaged-x-3 and 2 more",
        f"half written or half deleted, removed when the run next starts: .tmp-{NEWEST}-17, .tmp-pruned-y-1",
    ]
    assert said.sound and said.outlook == f"{BEGIN} {NEWEST}"


def test_a_checkpoint_whose_replacement_was_cut_short_is_told(directory: Path, root: Path) -> None:
    (root / NEWEST).rename(root / f"{SUPERSEDED}{NEWEST}")
    said = told(directory)
    assert said.more == [f"half replaced, given its name back when the run next starts: {NEWEST}"]
    assert said.sound and said.outlook == f"resume would first give {NEWEST} its name back"


def test_what_verify_calls_set_aside_is_what_resume_set_aside(workshop: Workshop, directory: Path) -> None:
    flip(directory)
    assert workshop.run("resume.py", f"run={directory}").status == 0
    said = told(directory)
    assert said.more == [f"set aside as damaged before: .damaged-{NEWEST}"]
    assert said.sound and said.sum == f"3 checkpoints: 3 sound; resume would begin from {NEWEST}"


RED = "\x1b[31m\n3 checkpoints: 3 sound\u202e"


def test_names_cannot_move_the_cursor_or_make_lines(directory: Path, root: Path, tmp_path: Path) -> None:
    for name in (f".damaged-{RED}", f".tmp-{RED}"):
        (root / name).mkdir()
    (root / NEWEST / RED).write_bytes(b"")
    seal(root / SECOND, PROVENANCE, values(run_id=RED))
    shutil.copytree(root / FIRST, tmp_path / RED)
    for path in (directory, tmp_path / RED):
        lines = told(path).lines
        assert any(r"\x1b[31m" in line for line in lines)
        assert all(line.isprintable() and not line.startswith("3 checkpoints: 3 sound") for line in lines), lines


def test_faults_of_any_length_are_cut(directory: Path, root: Path) -> None:
    seal(root / NEWEST, PROVENANCE, values(run_id="x" * 10_000))
    assert len(told(directory).rows[NEWEST]) < 330


# The command


def savepoint(*arguments: str, options: tuple[str, ...] = (), **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "savepoint", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        text=True,
        **({"capture_output": True} | how),
    )


def test_the_command_tells_damage_by_its_status_changes_nothing_and_imports_nothing_that_a_config_names(
    directory: Path,
) -> None:
    flip(directory)
    before = contents(directory)
    ended = savepoint("verify", str(directory), options=("-X", "importtime"))
    assert ended.returncode == 1 and ended.stdout.splitlines() == told(directory).lines, ended.stderr
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "savepoint.commands.soundness" in imported
    assert not [name for name in imported if name.split(".")[0] in ("project", "hydra")]
    assert contents(directory) == before


def test_the_command_ends_with_0_where_all_is_sound(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["verify", str(directory)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == told(directory).lines and err == ""


def test_a_reader_that_has_seen_enough_is_no_error(directory: Path) -> None:
    flip(directory)
    reading, writing = os.pipe()
    os.close(reading)  # `| head -1` does so after a line; nobody can say how many were written by then
    ended = savepoint("verify", str(directory), capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_run_that_is_not_there_is_told_in_one_line(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / runs.RECORD).write_text("{")
    own = runs.read(directory).id
    (directory / runs.CONFIG).write_text("{")
    cases = {
        "nosuchrun": "No run nosuchrun.",
        "no": "The id no is too short",
        f"{directory}@77": f"No checkpoint @77 in run {own}. There are: {NEWEST}, ",
        f"{directory}@best": "config.yaml is not valid YAML",
        f"{directory}@": "nothing follows the @",
        "x" * 5000: " cannot be read: File name too long.",
        str(tmp_path / "empty"): "is neither a run (it has no run.json) nor a checkpoint",
        str(tmp_path / "broken"): "run.json cannot be read",
        f"nosuch\x1b[2J{own}": r"nosuch\x1b[2J",
    }
    for text, error in cases.items():
        assert __main__.main(["verify", text]) == 2, text
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and error in err, err
        assert err.count("\n") == 1 and err.rstrip("\n").isprintable(), err
    (directory / runs.CONFIG).unlink()
    assert __main__.main(["verify", f"{directory}@best"]) == 2
    assert "config.yaml cannot be read: No such file or directory." in capsys.readouterr().err


def test_without_a_run_or_with_two_the_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["verify"], ["verify", "a", "b"]):
        assert __main__.main(arguments) == 2
        assert "python -m savepoint verify <run>" in capsys.readouterr().err
