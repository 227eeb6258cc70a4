"""The tensor file, against the safetensors library in both directions, and against every kind of damage."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from tools import tensorfiles
from torch import Tensor

from savepoint.checkpoint import tensorfile
from savepoint.errors import CheckpointError

SOURCE = Path(tensorfile.__file__).parents[2]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> dict[str, Tensor]:
    path.unlink(missing_ok=True)
    tensorfiles.write(path, tensors, metadata or {})
    return tensorfiles.read(bytearray(path.read_bytes()), name="file")[0]


def random_bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Every bit pattern may occur: infinities, NaNs with their payloads, subnormal numbers."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, dtype=torch.uint8).bool()
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def one_of_each() -> dict[str, Tensor]:
    """Each dtype, 0-dim, empty and three-dimensional, with sizes that would leave the next one unaligned."""
    torch.manual_seed(0)
    tensors = {}
    for name, dtype in tensorfile.DTYPES.items():
        tensors[f"{name}.scalar"] = random_bits(dtype, 1).reshape(())
        tensors[f"{name}.empty"] = torch.empty(0, 3, dtype=dtype)
        tensors[f"{name}.cube"] = random_bits(dtype, 3, 5, 7)
    return tensors


def test_reading_gives_back_every_bit_of_every_dtype(tmp_path: Path) -> None:
    tensors = one_of_each()
    back = written(tmp_path / "file", tensors)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(back[name], tensor), name


def test_safetensors_reads_every_dtype_that_we_write(tmp_path: Path) -> None:
    tensors = one_of_each()
    tensorfiles.write(tmp_path / "file", tensors, {"format": "pt", "commit": "abc"})
    theirs = load_file(tmp_path / "file")
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(theirs[name], tensor), name
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"format": "pt", "commit": "abc"}


def test_we_read_every_dtype_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = one_of_each()
    save_file(tensors, tmp_path / "file", {"format": "pt", "commit": "abc"})
    ours, metadata = tensorfiles.read(bytearray((tmp_path / "file").read_bytes()), name="file")
    assert metadata == {"format": "pt", "commit": "abc"}
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(ours[name], tensor), name


def test_a_file_without_tensors_or_metadata_is_sound_for_both(tmp_path: Path) -> None:
    assert written(tmp_path / "file", {}) == {}
    assert load_file(tmp_path / "file") == {}


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    import hashlib

    told = tensorfiles.write(tmp_path / "file", one_of_each(), {"a": "b"})
    data = (tmp_path / "file").read_bytes()
    assert (told.size, told.sha256) == (len(data), hashlib.sha256(data).hexdigest())


MAKER = """
import sys, torch
from pathlib import Path
from savepoint.checkpoint import tensorfile
names = [f"name{i}" for i in range(40)]
metadata = {f"key{i}": str(i) for i in range(40)}
order = names if sys.argv[2] == "forward" else names[::-1]
tensors = {name: torch.full((int(name[4:]) + 1,), 1.5, dtype=torch.float64 if name[-1] in "13" else torch.float16) for name in order}
plan = tensorfile.Plan(tensors, {key: metadata[key] for key in (metadata if sys.argv[2] == "forward" else list(metadata)[::-1])})
Path(sys.argv[1]).write_bytes(b"".join(plan.chunks()))
"""


def test_equal_contents_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """Whatever the order in which they were put in, and however Python hashes its strings."""
    makers = []
    for seed, order in (("1", "forward"), ("2", "backward")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)}
        makers.append(subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path / seed), order], env=environment))
    assert [maker.wait() for maker in makers] == [0, 0]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    "lazy",
    [
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,  # a lazy negation
        torch._neg_view(torch.tensor([1.0, -2.0])),
        torch.tensor([[1 + 2j, 3 - 4j]]).conj().t(),
    ],
    ids=["conj", "imaginary part of conj", "neg", "conj and transposed"],
)
def test_lazy_conjugates_and_negations_are_saved_as_the_numbers_that_they_show(tmp_path: Path, lazy: Tensor) -> None:
    assert lazy.is_conj() or lazy.is_neg()
    expected = torch.tensor(lazy.tolist(), dtype=lazy.dtype)
    assert torch.equal(written(tmp_path / "file", {"a": lazy})["a"], expected)
    assert torch.equal(load_file(tmp_path / "file")["a"], expected)


def test_strided_shared_and_expanded_tensors_are_written_in_row_major_order(tmp_path: Path) -> None:
    grid = torch.arange(24.0).reshape(2, 3, 4)
    views = {
        "transposed": grid.permute(2, 0, 1),
        "stepped": grid[:, ::2, 1:],
        "expanded": torch.tensor([7.0]).expand(5),
        "one": torch.ones(1).as_strided((1,), (0,)),
        "same": grid,
        "again": grid,
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    back = written(tmp_path / "file", views)
    for name, view in views.items():
        assert torch.equal(back[name], view) and back[name].is_contiguous()


def chunks(tensors: list[Tensor]) -> list[bytes]:
    """Without the header; the tensors are all of one dtype, and so stand in the file as they do here."""
    plan = tensorfile.Plan({f"{index:03d}": tensor for index, tensor in enumerate(tensors)}, {})
    header, *rest = (bytes(chunk) for chunk in plan.chunks())
    assert header == plan.header
    return rest


def numbers(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)


@pytest.mark.parametrize(
    "tensor, most",
    [
        (numbers(120).reshape(12, 10).t(), 24),
        (numbers(120).reshape(4, 5, 6).permute(2, 0, 1), 40),
        (numbers(120).reshape(1, 4, 30).transpose(1, 2), 24),
        (numbers(120).reshape(40, 3).t(), 40),
        (numbers(1).expand(100), 24),
    ],
    ids=["rows", "long rows", "one row of many", "rows beyond a piece", "numbers"],
)
def test_a_tensor_that_has_to_be_copied_is_copied_in_pieces(
    monkeypatch: pytest.MonkeyPatch, tensor: Tensor, most: int
) -> None:
    monkeypatch.setattr(tensorfile, "PIECE", 24)
    written = chunks([tensor])
    assert b"".join(written) == bits(tensor)
    assert max(map(len, written)) <= most and len(written) <= 2 * tensor.numel() // 24


def test_a_conjugate_that_is_only_a_flag_is_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "PIECE", 24)
    tensor = torch.randn(20, dtype=torch.complex64).conj()
    written = chunks([tensor])
    assert b"".join(written) == bits(tensor.resolve_conj()) and max(map(len, written)) <= 24


def test_a_large_tensor_that_lies_as_it_is_written_is_one_piece_of_its_own_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorfile, "PIECE", 24)
    tensor = numbers(100)
    _, chunk = tensorfile.Plan({"a": tensor}, {}).chunks()
    tensor[0] = 77
    assert len(chunk) == 100 and chunk[0] == 77


def test_the_same_file_from_other_memory_leaves_the_first_one_alone() -> None:
    first = tensorfile.Plan({"a": numbers(3)}, {"b": "c"})
    second = first.with_tensors([torch.tensor([7, 8, 9], dtype=torch.uint8)])
    assert (second.header, second.bytes) == (first.header, first.bytes)
    assert [bytes(b"".join(plan.chunks()))[-3:] for plan in (first, second)] == [b"\0\1\2", b"\7\x08\x09"]


def test_no_metadata_are_no_entry_of_the_header() -> None:
    assert tensorfile.Plan({}, {}).header == b"\x08\0\0\0\0\0\0\0{}      "


def test_every_tensor_is_aligned_to_its_own_size(tmp_path: Path) -> None:
    """So that a reader can map the file, and ours need not copy."""
    tensorfiles.write(tmp_path / "file", one_of_each(), {"odd": "x"})
    header = tensorfile.read_header((tmp_path / "file").read_bytes(), name="file")
    for e in header.entries.values():
        assert (header.start + e["data_offsets"][0]) % tensorfile.DTYPES[e["dtype"]].itemsize == 0


def test_another_writers_unaligned_tensors_are_read(tmp_path: Path) -> None:
    """The format does not promise alignment."""
    body = b"\x07" + np.float64(1.25).tobytes()
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F64", [], 1, 9)}
    tensors, _ = tensorfiles.read(raw(header, body), name="file")
    assert tensors["a"].tolist() == [7] and tensors["b"].item() == 1.25
    assert tensors["b"].data_ptr() % 8 == 0


@pytest.mark.parametrize("spaces", range(8))
def test_tensors_behind_a_header_of_any_length_are_read(spaces: int) -> None:
    header = json.dumps({"b": entry("F64", [], 0, 8)}).encode() + b" " * spaces
    tensors, _ = tensorfiles.read(raw(header, np.float64(1.25).tobytes()), name="file")
    assert tensors["b"].item() == 1.25 and tensors["b"].data_ptr() % 8 == 0


@pytest.mark.parametrize("umask, mode", [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        tensorfiles.write(tmp_path / "file", {"a": torch.ones(1)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_all_bytes_are_synced_before_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    told = tensorfiles.write(tmp_path / "file", {"a": torch.ones(1000)}, {})
    assert synced == [told.size]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        tensorfiles.write(tmp_path / "file", {}, {})
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_tensor_cannot_take_the_name_of_the_metadata(tmp_path: Path) -> None:
    """The library writes such a file, and nobody can read it."""
    with pytest.raises(AssertionError):
        tensorfiles.write(tmp_path / "file", {"__metadata__": torch.ones(1)}, {})
    assert not (tmp_path / "file").exists()


def test_tensors_are_not_copied_out_of_the_files_bytes(tmp_path: Path) -> None:
    tensorfiles.write(tmp_path / "file", {"a": torch.zeros(4, dtype=torch.uint8)}, {})
    data = bytearray((tmp_path / "file").read_bytes())
    tensors, _ = tensorfiles.read(data, name="file")
    data[-4:] = b"\x01\x02\x03\x04"
    assert tensors["a"].tolist() == [1, 2, 3, 4]


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: Any, body: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + body)


GOOD = {"a": entry("F32", [2], 0, 8)}
DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGE: dict[str, bytearray] = {
    "empty": bytearray(),
    "shorter than a length": bytearray(b"\x02\0\0\0\0\0\0"),
    "a header beyond the file": bytearray(b"\xff\0\0\0\0\0\0\0{}"),
    "a header of 2**63 bytes": bytearray(b"\xff" * 8 + b"{}"),
    "a header just past the file": bytearray(b"\x03\0\0\0\0\0\0\0{}"),
    "a header that is no JSON": raw(b"{"),
    "a header that is no UTF-8": raw(b'{"\xff": 1}'),
    "a header in UTF-16": raw(json.dumps({"a": entry("U8", [1], 0, 1)}).encode("utf-16"), b"\0"),
    "a header that is a list": raw(b"[]"),
    "a header nested deep": raw(DEEP),
    "a pickle": bytearray(b"\x80\x04K\x01." + b"\0" * 50),
    "a zip": bytearray(b"PK\x03\x04" + b"\0" * 50),
    "a tensor cut short": raw(GOOD, b"\0" * 7),
    "a byte too many": raw(GOOD, b"\0" * 9),
    "a hole at the start": raw({"a": entry("F32", [1], 4, 8)}, b"\0" * 8),
    "a hole between": raw({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\0" * 12),
    "an overlap": raw({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "two in one place": raw({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4),
    "an empty one inside another": raw({"a": entry("F32", [2], 0, 8), "b": entry("F32", [0], 4, 4)}, b"\0" * 8),
    "a name twice": raw(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "a field twice": raw(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
    "a metadata key twice": raw(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "metadata that are no text": raw({"__metadata__": {"a": 1}}),
    "metadata that are a list": raw({"__metadata__": ["a"]}),
    "metadata that are null": raw({"__metadata__": None}),
    "metadata that are a tensor": raw({"__metadata__": entry("U8", [1], 0, 1)}, b"\0"),
    "a boolean of 7": raw({"a": entry("BOOL", [3], 0, 3)}, b"\x00\x07\x01"),
    "an unknown dtype": raw({"a": entry("F4", [2], 0, 1)}, b"\0"),
    "a dtype that is a list": raw({"a": entry(["U8"], [1], 0, 1)}, b"\0"),  # type: ignore[arg-type]
    "a shape that disagrees": raw({"a": entry("F32", [3], 0, 8)}, b"\0" * 8),
    "a shape of text": raw({"a": entry("U8", "", 0, 1)}, b"\0"),
    "a shape that is an object": raw({"a": entry("U8", {}, 0, 1)}, b"\0"),
    "a shape that is null": raw({"a": entry("U8", None, 0, 1)}, b"\0"),
    "a negative size": raw({"a": entry("U8", [-1, -1], 0, 1)}, b"\0"),
    "a size with a fraction": raw({"a": entry("U8", [1.0], 0, 1)}, b"\0"),
    "a size that is true": raw({"a": entry("U8", [True], 0, 1)}, b"\0"),
    "a size of 2**62 squared": raw({"a": entry("U8", [2**62, 2**62], 0, 1)}, b"\0"),
    "an empty shape of absurd size": raw({"a": entry("U8", [0, 2**47, 2**47], 0, 0)}),
    "a thousand dimensions": raw({"a": entry("U8", [1] * 1000, 0, 1)}, b"\0"),
    "a negative offset": raw({"a": entry("U8", [1], -1, 0)}, b"\0"),
    "an end before its start": raw({"a": entry("U8", [0], 1, 0)}, b"\0"),
    "offsets beyond the file": raw({"a": entry("U8", [1000], 0, 1000)}, b"\0"),
    "three offsets": raw({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"\0"),
    "no offsets": raw({"a": {"dtype": "U8", "shape": [1]}}, b"\0"),
    "a field too many": raw({"a": entry("U8", [1], 0, 1) | {"x": 1}}, b"\0"),
    "an entry that is a number": raw({"a": 1}, b""),
    "an entry that is null": raw({"a": None}, b""),
    "an offset of 5,000 digits": raw(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}", b"\0"
    ),
    "NaN": raw(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"\0"),
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused_by_the_files_name(data: bytearray) -> None:
    with pytest.raises(CheckpointError, match=r"^the/file: "):
        tensorfiles.read(data, name="the/file")


def test_a_shape_of_a_million_sizes_is_refused_at_once() -> None:
    """Multiplied out, as Python's big integers, it would take minutes."""
    import time

    started = time.process_time()
    with pytest.raises(CheckpointError):
        tensorfiles.read(raw({"a": entry("U8", [2**47] * 300_000, 0, 1)}, b"\0"), name="file")
    assert time.process_time() - started < 20


def test_the_undamaged_file_of_these_tests_is_read() -> None:
    tensors, metadata = tensorfiles.read(raw(GOOD, b"\0" * 8), name="file")
    assert tensors["a"].tolist() == [0.0, 0.0] and metadata == {}


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    tensorfiles.write(tmp_path / "file", {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bool)}, {"c": "d"})
    data = (tmp_path / "file").read_bytes()
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            tensorfiles.read(bytearray(data[:length]), name="file")


@pytest.mark.parametrize(
    "outside", ["../../etc/passwd", "/etc/passwd", "a/..", "a\\..\\b", "\\\\host\\x", "..", "a\0b"]
)
def test_a_name_that_would_lead_a_reader_elsewhere_is_refused(tmp_path: Path, outside: str) -> None:
    with pytest.raises(CheckpointError, match="file: it has a tensor named"):
        tensorfiles.read(raw({outside: entry("U8", [1], 0, 1)}, b"\x05"), name="file")
    with pytest.raises(AssertionError):
        tensorfiles.write(tmp_path / "file", {outside: torch.ones(1)}, {})


@pytest.mark.parametrize("inside", ["a..b", "...", "a/.../b", "~", "", "layer.0/weight", ".hidden"])
def test_a_name_with_dots_that_leads_nowhere_is_read(inside: str) -> None:
    tensors, _ = tensorfiles.read(raw({inside: entry("U8", [1], 0, 1)}, b"\x05"), name="file")
    assert tensors[inside].tolist() == [5]


def test_tensors_may_stand_in_the_header_in_any_order() -> None:
    header = {"b": entry("U8", [1], 1, 2), "a": entry("U8", [1], 0, 1), "empty": entry("U8", [0], 1, 1)}
    tensors, _ = tensorfiles.read(raw(header, b"\x01\x02"), name="file")
    assert (tensors["a"].item(), tensors["b"].item()) == (1, 2)


def test_a_header_longer_than_the_format_allows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = raw(GOOD, b"\0" * 8)
    monkeypatch.setattr(tensorfile, "MAX_HEADER", int.from_bytes(data[:8], "little"))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        tensorfiles.read(data, name="file")


def test_a_header_can_be_read_without_the_tensors_and_is_checked_alone() -> None:
    header = tensorfile.read_header(raw(GOOD), name="file")
    assert header == tensorfile.Header(entries=GOOD, metadata={}, start=len(raw(GOOD)))
    with pytest.raises(CheckpointError, match="cut short"):
        tensorfile.read_header(b"\x03\0\0\0\0\0\0\0{}", name="file")
