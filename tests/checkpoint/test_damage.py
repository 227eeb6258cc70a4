"""Whatever happens to a checkpoint's files, by accident or by somebody's hand: it is refused, named, and survived."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.processes import REPOSITORY, Ended
from tools.workshop import NAMES, Workshop

from savepoint import checkpoint, runs
from savepoint.checkpoint.layout import CONFIG, FORMAT, MANIFEST, MODEL, PROVENANCE, STATE, TRAINING
from savepoint.commands import diff
from savepoint.errors import CheckpointError

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
FILES = (MODEL, TRAINING, STATE, CONFIG, PROVENANCE, MANIFEST)


@pytest.fixture
def newest(directory: Path) -> Path:
    return directory / "checkpoints" / NAMES[-1]


@contextlib.contextmanager
def kept(path: Path) -> Iterator[bytes]:
    """A file's bytes, which it has again afterwards."""
    whole = path.read_bytes()
    yield whole
    path.write_bytes(whole)


def refused(path: Path, *told: str) -> str:
    """Damaged, by the checkpoint's own name and what was `told`; and the one before is the newest sound one."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message and all(each in message for each in told), message
    assert checkpoint.verify(path) == message
    return message


def fallen_back(path: Path) -> None:
    found, damaged = checkpoint.latest(path.parent)
    assert found is not None and found.path.name == NAMES[-2] and [each for each, _ in damaged] == [path]


# Accidents


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_flips_at_any_place_of_a_real_checkpoint_is_found(newest: Path, name: str) -> None:
    draw = random.Random(f"{SEED} {name}")
    told = () if name == MANIFEST else (name,)  # a digit of another file's digest, there, names that file
    with kept(newest / name) as whole:
        for _ in range(60):
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            (newest / name).write_bytes(data)
            refused(newest, *told)
        fallen_back(newest)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_length_is_found(newest: Path, name: str) -> None:
    draw = random.Random(f"{SEED} {name}")
    with kept(newest / name) as whole:
        for length in [0, 1, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))]:
            (newest / name).write_bytes(whole[:length])
            refused(newest, name)
        fallen_back(newest)


@pytest.mark.parametrize("name", FILES)
def test_any_file_that_is_missing_or_something_else_is_found(newest: Path, tmp_path: Path, name: str) -> None:
    with kept(newest / name):
        (newest / name).rename(tmp_path / "whole")
        ways: list[Callable[[Path], object]] = [
            lambda path: None,
            lambda path: path.symlink_to(tmp_path / "whole"),
            lambda path: path.symlink_to(path),
            lambda path: path.symlink_to("/dev/zero"),
            os.mkfifo,
            Path.mkdir,
        ]
        for make in ways:
            make(newest / name)
            refused(newest, name)
            fallen_back(newest)
            shutil.rmtree(newest / name) if (newest / name).is_dir() else (newest / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "extra", ["extra", ".hidden", "changes.patch", "data.pkl", "nested/model.safetensors", "nested/.x"]
)
def test_whatever_else_lies_there_is_found(newest: Path, extra: str) -> None:
    (newest / extra).parent.mkdir(exist_ok=True)
    (newest / extra).write_bytes(b"")
    refused(newest, extra.split("/")[0])
    fallen_back(newest)


def test_any_two_files_that_changed_places_are_found(newest: Path) -> None:
    for first in FILES:
        for second in FILES[: FILES.index(first)]:
            with kept(newest / first) as one, kept(newest / second) as other:
                (newest / first).write_bytes(other)
                (newest / second).write_bytes(one)
                refused(newest)
                fallen_back(newest)
    checkpoint.load(newest)


def test_a_file_of_another_checkpoint_of_the_run_is_found(newest: Path) -> None:
    for name in (MODEL, TRAINING, STATE, MANIFEST):
        with kept(newest / name):
            shutil.copy(newest.with_name(NAMES[0]) / name, newest / name)
            refused(newest)
            fallen_back(newest)


def test_a_checkpoint_under_another_ones_name_is_found(newest: Path) -> None:
    shutil.rmtree(newest)
    shutil.copytree(newest.with_name(NAMES[0]), newest)
    refused(newest, NAMES[0])
    fallen_back(newest)


# A file that changes while it is read


@pytest.mark.parametrize("name", [MODEL, STATE, MANIFEST])
@pytest.mark.parametrize("way", ["other bytes", "longer", "shorter"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    newest: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    """Changed for real, after its size was looked at and before its bytes are read."""
    path, whole = newest / name, (newest / name).read_bytes()
    touched = threading.Event()
    original = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = original(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path and not touched.is_set():
            touched.set()
            with open(path, "r+b") as file:
                if way == "shorter":
                    file.truncate(len(whole) // 2)
                elif way == "longer":
                    file.seek(0, os.SEEK_END)
                    file.write(b" " * 10)
                else:
                    file.write(bytes([whole[0] ^ 1]))
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    refusal = None
    try:
        checkpoint.load(newest)
    except CheckpointError as error:
        refusal = str(error)
    assert touched.is_set() and refusal and name in refusal


def test_a_file_that_somebody_keeps_rewriting_is_read_whole_or_refused(newest: Path) -> None:
    """What comes back is never a mixture: each byte of it went through the digest."""
    path, stop = newest / MODEL, threading.Event()
    whole = path.read_bytes()
    expected = checkpoint.load(newest).model
    other = bytearray(whole)
    other[-1] ^= 255

    def rewrite() -> None:
        while not stop.is_set():
            for data in (other, whole, whole[: len(whole) // 2], whole):
                path.write_bytes(data)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(100):
            with contextlib.suppress(CheckpointError):
                loaded = checkpoint.load(newest)
                assert all(loaded.model[key].equal(value) for key, value in expected.items())
    finally:
        stop.set()
        writer.join()


# A forger, whose digests are right. Read in a process with little memory and little time.


def seal(path: Path, **contents: bytes) -> None:
    manifest = json.loads((path / MANIFEST).read_bytes())
    for key, data in contents.items():
        name = {"model": MODEL, "training": TRAINING, "state": STATE, "provenance": PROVENANCE, "config": CONFIG}[key]
        (path / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


LIMITED = """
import json, resource, sys
from pathlib import Path
from savepoint import checkpoint
from savepoint.errors import CheckpointError
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20, resource.RLIM_INFINITY))
for line in sys.stdin:
    resource.setrlimit(resource.RLIMIT_CPU, (int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 20, -1))
    try:
        checkpoint.load(Path(line.rstrip("\\n")))
        answer = ["loaded", ""]
    except CheckpointError as error:
        answer = ["refused", str(error)]
    except BaseException as error:
        answer = [type(error).__name__, str(error)[:500]]
    print(json.dumps(answer), flush=True)
"""


class Limited:
    """Another process that loads checkpoints: with 700 MB more than its imports take, and 20 s of processor each."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIMITED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        )

    def load(self, path: Path) -> tuple[str, str]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended: {self.process.wait()}"
        kind, told = json.loads(line)
        return kind, told

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    one = Limited()
    yield one
    one.close()


DEEP = 100_000
HEX = "0" * 64


def entry(size: Any = 1, sha256: Any = HEX, **more: Any) -> dict[str, Any]:
    return {"size": size, "sha256": sha256, **more}


def listed(**changed: Any) -> Callable[[dict[str, Any]], bytes]:
    """The manifest with entries changed; a double underscore in a name is a dot."""
    names = {key.replace("__", "."): value for key, value in changed.items()}
    return lambda manifest: json.dumps(manifest | {"files": manifest["files"] | names}).encode()


def twice(manifest: dict[str, Any]) -> bytes:
    text = json.dumps(manifest)
    return text.replace('"state.json":', f'"state.json": {json.dumps(entry())}, "state.json":').encode()


def renamed(name: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda manifest: json.dumps(manifest | {"files": manifest["files"] | {name: entry()}}).encode()


MANIFESTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "an entry twice": twice,
    "format twice": lambda manifest: b'{"format": 2, ' + json.dumps(manifest).encode()[1:],
    **{f"format {value!r}": lambda manifest, value=value: json.dumps(manifest | {"format": value}).encode() for value in (None, True, 2.0, "2", -1, 0, 1, 3, 2**70, [], {})},
    **{f"size {value!r}": listed(model__safetensors=entry(value)) for value in (2**70, -1, True, 10**9, 1.5, "1", None, [1], 2**63)},
    **{f"digest {value!r}": listed(state__json=entry(1, value)) for value in ("", "A" * 64, HEX, None, 0, [HEX], {})},
    **{f"files {value!r}": lambda manifest, value=value: json.dumps(manifest | {"files": value}).encode() for value in (None, [], 1, "x", {})},
    **{f"entry {value!r}": listed(state__json=value) for value in (None, [], 1, "x", {}, [1, HEX])},
    **{f"name {name!r}": renamed(name) for name in ("../../x", "/etc/passwd", "", ".", "..", "a/b", "a\0b", "\ud800", "\x1b[2J", "x" * 5000, "manifest.json", "./state.json")},
    "deep": lambda manifest: b'{"format": 2, "files": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": lambda manifest: b'{"files": ' * DEEP + b"1" + b"}" * DEEP,
    "no text": lambda manifest: b"\xff\xfe" + json.dumps(manifest).encode("utf-16"),
    "an integer of a million digits": lambda manifest: b'{"format": ' + b"9" * 1_000_000 + b"}",
    "many names": lambda manifest: json.dumps({"format": 2, "files": {f"f{i}": 1 for i in range(50_000)}}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_of_any_shape_is_refused(newest: Path, limited: Limited, what: str) -> None:
    manifest = json.loads((newest / MANIFEST).read_bytes())
    (newest / MANIFEST).write_bytes(MANIFESTS[what](manifest))
    kind, told = limited.load(newest)
    assert kind == "refused" and str(newest) in told, (kind, told[:500])


def file(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def header(tensors: dict[str, Any], metadata: Any = None) -> bytes:
    return json.dumps({"__metadata__": metadata or {"savepoint.format": "2"}, **tensors}).encode()


def described(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FOUR, EIGHT = b"\0" * 4, b"\0" * 8
META = b'"__metadata__": {"savepoint.format": "2"}'
ONE = json.dumps(described()).encode()
TENSORS: dict[str, bytes] = {
    "a name twice": file(b"{" + META + b', "a": ' + ONE + b', "a": ' + ONE + b"}", FOUR),
    "metadata twice": file(b"{" + META + b", " + META + b', "a": ' + ONE + b"}", FOUR),
    "a key of the metadata twice": file(b'{"__metadata__": {"savepoint.format": "2", "savepoint.format": "2"}}'),
    "overlapping": file(header({"a": described(), "b": described()}), FOUR),
    "partly overlapping": file(header({"a": described(shape=[2], offsets=[0, 8]), "b": described(shape=[2], offsets=[4, 12])}), FOUR * 3),
    "a hole": file(header({"a": described(), "b": described(offsets=[8, 12])}), FOUR * 3),
    "a hole in front": file(header({"a": described(offsets=[4, 8])}), EIGHT),
    "more behind": file(header({"a": described()}), EIGHT),
    "beyond the end": file(header({"a": described(shape=[100], offsets=[0, 400])}), FOUR),
    "backwards": file(header({"a": described(shape=[1], offsets=[4, 0])}), FOUR),
    "an unknown dtype": file(header({"a": described("F128")}), FOUR),
    "a wrong dtype": file(header({"a": described("F64")}), FOUR),
    "no dtype": file(header({"a": described(None)}), FOUR),
    "a list for a dtype": file(header({"a": described([])}), FOUR),
    "a product that overflows": file(header({"a": described("U8", [2**32, 2**32], [0, 0])})),
    "a product that overflows to the right size": file(header({"a": described("U8", [2**40, 2**24 + 1], [0, 2**40])})),
    "an empty tensor of absurd sizes": file(header({"a": described("U8", [0, 2**47, 2**47], [0, 0])})),
    "a thousand dimensions": file(header({"a": described("U8", [1] * 1000, [0, 1])}), b"\0"),
    "a negative size": file(header({"a": described(shape=[-1], offsets=[0, -4])})),
    "a size with a fraction": file(header({"a": described(shape=[1.0])}), FOUR),
    "a boolean size": file(header({"a": described(shape=[True])}), FOUR),
    "offsets of three": file(header({"a": described(offsets=[0, 2, 4])}), FOUR),
    "a shape of text": file(header({"a": described(shape="1")}), FOUR),
    "huge offsets": file(header({"a": described(offsets=[2**70, 2**70 + 4])}), FOUR),
    "more keys": file(header({"a": described() | {"more": 1}}), FOUR),
    "no object": file(header({"a": 1})),
    "booleans of 7": file(header({"a": described("BOOL", [4])}), b"\1\0\7\1"),
    **{f"a tensor named {name!r}": file(header({name: described()}), FOUR) for name in ("../../x", "/etc/passwd", "a/../b", "..", "a\0b", "\\\\x", "..\\x")},
    **{f"metadata {value!r}": file(header({}, value)) for value in ([1], "1", {"savepoint.format": 2}, {"savepoint.format": None}, {"savepoint.format": ["2"]}, {"x": "1"}, {"savepoint.format": "1" * 5000}, {"savepoint.format": "02\n"})},
    "deep": file(b'{"__metadata__": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "no JSON": file(b"{"),
    "a list": file(b"[]"),
    "no text": file(b"\xff" * 100),
    "nothing": b"",
    "a header that is all": file(b""),
    "a header beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a pickle": b"\x80\x04\x95" + b"\0" * 100,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
@pytest.mark.parametrize("of", ["model", "training"])
def test_a_file_of_tensors_of_any_shape_is_refused_by_name(newest: Path, limited: Limited, of: str, what: str) -> None:
    seal(newest, **{of: TENSORS[what]})
    kind, told = limited.load(newest)
    # Without its numbers of formats it is not said which file it is: they only have to agree.
    assert kind == "refused" and str(newest) in told, (kind, told[:500])
    assert f"{of}.safetensors" in told or "name different formats" in told or of == "training", told


DEEP_LIST = b"[" * DEEP + b"]" * DEEP
SEALED: dict[str, dict[str, bytes]] = {
    "state: deep lists": {"state": b'{"format": 2, "x": ' + DEEP_LIST + b"}"},
    "state: deep objects": {"state": b'{"x": ' * DEEP + b"1" + b"}" * DEEP},
    "state: deep, unclosed": {"state": b"[" * DEEP},
    "state: deep tags": {"state": b'{"format": 2, "x": ' + b'{"$tuple": [' * 5000 + b"]}" * 5000 + b"}"},
    "state: a number of a million digits": {"state": b'{"format": 2, "x": ' + b"1" * 1_000_000 + b"}"},
    "state: $int of a million digits": {"state": b'{"format": 2, "x": {"$int": "' + b"1" * 1_000_000 + b'"}}'},
    "state: no text": {"state": b"\xff\xfe\x00"},
    "state: no step": {"state": b'{"format": 2}'},
    "state: a step of text": {"state": b'{"format": 2, "epoch": 3, "step": "6"}'},
    "state: a step that is true": {"state": b'{"format": 2, "epoch": true, "step": true}'},
    "state: another step": {"state": b'{"format": 2, "epoch": 3, "step": 7}'},
    "provenance: deep": {"provenance": b'{"x": ' + DEEP_LIST + b"}"},
    "provenance: a list": {"provenance": b"[]"},
    "provenance: a key twice": {"provenance": b'{"a": 1, "a": 1}'},
    "config: no text": {"config": b"\xff"},
}
for tag in ("$tensor", "$view", "$array", "$scalar", "$tuple", "$bytes", "$int", "$float", "$complex", "$dict", "$ordered", "$counter", "$sparse", "$none"):  # fmt: skip
    for odd in (None, 1, "x", -1, [], {}, [[]], ["a", "F32", [2**40], [1], 0], [[1, 2, 3]], {"$tuple": []}, [[[], 1]], "../../x"):  # fmt: skip
        if (tag, odd) not in [("$tuple", []), ("$tuple", [[]]), ("$tuple", [[1, 2, 3]]), ("$tuple", [[[], 1]]), ("$int", 1), ("$int", -1), ("$dict", []), ("$ordered", []), ("$counter", []), ("$tuple", ["a", "F32", [2**40], [1], 0]), ("$tuple", {})]:  # fmt: skip
            text = json.dumps({"format": 2, "epoch": 3, "step": 6, "x": {tag: odd}})
            SEALED[f"state: {tag} of {json.dumps(odd)}"] = {"state": text.encode()}
# A loose reader may take these for what they are not far from, with no harm done: they only have to raise nothing else.
LOOSE = ("$tuple", "$dict", "$ordered", "$counter", "$int", "$bytes")


@pytest.mark.parametrize("what", SEALED)
def test_sealed_files_of_any_content_are_refused(newest: Path, limited: Limited, what: str) -> None:
    seal(newest, **SEALED[what])
    kind, told = limited.load(newest)
    loose = " of " in what and any(f" {tag} " in what for tag in LOOSE)
    assert kind == "refused" or (kind == "loaded" and loose), (kind, told[:500])
    assert kind == "loaded" or str(newest) in told


def test_a_size_that_the_manifest_invents_takes_no_memory(newest: Path, limited: Limited) -> None:
    """A sparse file of a terabyte costs nobody anything to make."""
    manifest = json.loads((newest / MANIFEST).read_bytes())
    os.truncate(newest / MODEL, 2**40)
    manifest["files"][MODEL]["size"] = 2**40
    (newest / MANIFEST).write_text(json.dumps(manifest))
    kind, told = limited.load(newest)
    assert kind == "refused" and MODEL in told, (kind, told)


def test_a_manifest_of_a_newer_format_alone_is_damage(newest: Path) -> None:
    manifest = json.loads((newest / MANIFEST).read_bytes())
    (newest / MANIFEST).write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    refused(newest, "different formats")
    fallen_back(newest)


# As a person meets it


def flipped(path: Path) -> str:
    data = bytearray((path / MODEL).read_bytes())
    data[random.Random(SEED).randrange(len(data))] ^= 4
    (path / MODEL).write_bytes(data)
    return MODEL


def without_manifest(path: Path) -> str:
    (path / MANIFEST).unlink()
    return MANIFEST


def piped(path: Path) -> str:
    (path / STATE).unlink()
    os.mkfifo(path / STATE)
    return STATE


def deep(path: Path) -> str:
    seal(path, state=b"[" * DEEP)
    return STATE


def linked(path: Path) -> str:
    (path / TRAINING).rename(path.parent / "there")
    (path / TRAINING).symlink_to(path.parent / "there")
    return TRAINING


def copied(path: Path) -> str:
    shutil.rmtree(path)
    shutil.copytree(path.with_name(NAMES[0]), path)
    return NAMES[0]


@pytest.mark.parametrize("harm", [flipped, without_manifest, piped, deep, linked, copied])
def test_resume_names_it_falls_back_and_ends_with_the_same_bits(
    workshop: Workshop, trained: Path, directory: Path, harm: Callable[[Path], str]
) -> None:
    told = harm(directory / "checkpoints" / NAMES[-1])
    ended = workshop.run("resume.py", f"run={directory}")
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("damaged, now ")]
    assert line.startswith(f"damaged, now .damaged-{NAMES[-1]}: ") and told in line, line
    assert f"resumed from {NAMES[-2]}" in ended.output
    assert diff.diff_runs(runs.read(trained), runs.read(directory)) == []


def test_diff_says_that_the_two_are_identical(workshop: Workshop, trained: Path, directory: Path) -> None:
    flipped(directory / "checkpoints" / NAMES[-1])
    assert workshop.run("resume.py", f"run={directory}").status == 0
    ended = savepoint("diff", str(trained), str(directory))
    assert (ended.returncode, ended.stdout) == (0, "identical\n"), ended.stdout


def test_a_hostile_config_is_no_damage_and_nothing_is_fallen_back_to(workshop: Workshop, directory: Path) -> None:
    path = directory / "checkpoints" / NAMES[-1]
    seal(path, config=(path / CONFIG).read_bytes().replace(b"project.models.mlp.Mlp", b"os.system"))
    ended = workshop.run("resume.py", f"run={directory}")
    assert ended.status == 2 and "'os.system' is not allowed" in ended.output and "resumed" not in ended.output
    assert checkpoint.names(directory / "checkpoints") == NAMES


def test_a_run_of_which_nothing_is_sound_is_refused_in_one_line(workshop: Workshop, directory: Path) -> None:
    for name in NAMES:
        flipped(directory / "checkpoints" / name)
    ended: Ended = workshop.run("resume.py", f"run={directory}")
    assert ended.status == 2 and "Traceback" not in ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "none is sound" in line and NAMES[-1] in line and MODEL in line
    assert checkpoint.names(directory / "checkpoints") == NAMES, "nothing was set aside"


def savepoint(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "savepoint", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
