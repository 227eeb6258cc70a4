"""One copy of a state in host memory: the same file, whatever becomes of the state; and no more memory than that."""

import gc
import itertools
import math
import resource
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import tensorfiles
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from savepoint.checkpoint import tensorfile
from savepoint.checkpoint.snapshot import Snapshot
from savepoint.checkpoint.tensorfile import DTYPES, Plan
from savepoint.system import files

CHANNELS_LAST = torch.channels_last


def bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bits, those of NaNs among them; the same each time."""
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return (raw & 1 if dtype is torch.bool else raw).view(dtype).view(shape)


LAYOUTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "of no dimensions": lambda dtype: bits(dtype, 1)[0],
    "empty": lambda dtype: bits(dtype, 0),
    "empty, of three dimensions": lambda dtype: bits(dtype, 3, 0, 2),
    "a matrix": lambda dtype: bits(dtype, 5, 7),
    "transposed": lambda dtype: bits(dtype, 5, 7).T,
    "channels last": lambda dtype: bits(dtype, 2, 3, 4, 5).contiguous(memory_format=CHANNELS_LAST),
    "channels last, by strides": lambda dtype: bits(dtype, 2, 4, 5, 3).permute(0, 3, 1, 2),
    "every other": lambda dtype: bits(dtype, 9, 8)[::2, 1::3],
    "expanded": lambda dtype: bits(dtype, 1, 4).expand(3, 4),
    "from the middle of memory": lambda dtype: bits(dtype, 10, 3)[3:6],
}


def contents(plan: Plan) -> bytes:
    return b"".join(plan.chunks())


def plan(tensors: Iterable[Tensor], **metadata: str) -> Plan:
    return Plan({str(index): tensor for index, tensor in enumerate(tensors)}, metadata)


def address(copied: Plan) -> int:
    (memory,) = copied.tensors
    return memory.data_ptr()


# The same file


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_a_copy_is_the_same_file_for_every_dtype_and_layout(dtype: torch.dtype) -> None:
    tensors = {name: make(dtype) for name, make in LAYOUTS.items()}
    for name, tensor in tensors.items():
        one = Plan({name: tensor}, {})
        assert contents(Snapshot().copy(one)) == contents(one), name
    whole = Plan(tensors, {"format": "pt"})
    read, metadata = tensorfiles.read(bytearray(contents(Snapshot().copy(whole))), name="copy")
    assert metadata == {"format": "pt"} and read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_a_lazy_conjugate_and_a_lazy_negation_are_copied_as_the_numbers_that_they_are() -> None:
    numbers = torch.randn(4, 6, dtype=torch.complex64)
    lazy = {
        "conjugate": numbers.conj(),
        "conjugate, transposed": numbers.conj().T,
        "conjugate, every other": numbers.conj()[::2, ::3],
        "negation": torch._neg_view(torch.randn(5)),
        "negation, every other": torch._neg_view(torch.arange(9))[::2],
        "imaginary part of a conjugate": numbers.conj().imag,
    }
    assert all(tensor.is_conj() or tensor.is_neg() for tensor in lazy.values())
    whole = Plan(lazy, {})
    copied = contents(Snapshot().copy(whole))
    assert copied == contents(whole)
    read, _ = tensorfiles.read(bytearray(copied), name="copy")
    assert all(torch.equal(read[name], tensor.resolve_conj().resolve_neg()) for name, tensor in lazy.items())
    assert all(tensor.is_conj() or tensor.is_neg() for tensor in lazy.values()), "and are left as they are"


def test_thousands_of_small_tensors_are_copied_each_to_its_place() -> None:
    dtypes = itertools.cycle(DTYPES.values())
    tensors = [bits(next(dtypes), *(index % size for size in (2, 3, 5)[: index % 4])) for index in range(5000)]
    whole = plan(tensors)
    assert contents(Snapshot().copy(whole)) == contents(whole)


def test_tensors_that_share_memory_are_copied_each_on_its_own() -> None:
    memory = torch.arange(12.0)
    whole = plan([memory, memory, memory[3:], memory.view(3, 4).T])
    assert contents(Snapshot().copy(whole)) == contents(whole)


@pytest.mark.parametrize("tensors", [[], [torch.empty(0)], [torch.empty(2, 0), torch.empty(0, dtype=torch.bool)]])
def test_a_state_without_a_single_number_is_a_header(tensors: list[Tensor]) -> None:
    snapshot, whole = Snapshot(), plan(tensors, format="pt")
    for _ in range(2):
        assert contents(snapshot.copy(whole)) == whole.header


def test_a_file_that_is_written_from_a_copy_is_byte_for_byte_the_one_that_is_written_directly(tmp_path: Path) -> None:
    """With tensors that are written together, and some that are large enough to be written alone, and in pieces."""
    large = tensorfile.PIECE // 4
    tensors = {"large": torch.randn(2, large).T, "contiguous": torch.randn(large), "small": torch.randn(3)}
    copied = Snapshot().copy(Plan(tensors, {"format": "pt"}))
    written = tensorfiles.write(tmp_path / "directly", tensors, {"format": "pt"})
    assert files.write(tmp_path / "copy", copied.chunks()) == written.size == len(copied.header) + copied.bytes
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "directly").read_bytes()
    assert copied.chunks().sha256() == written.sha256


def test_what_is_changed_in_place_after_the_copy_is_in_it_as_it_was() -> None:
    tensors = [make(dtype) for make in LAYOUTS.values() for dtype in (torch.float32, torch.int64, torch.bool)]
    whole = plan(tensors)
    before = contents(whole)
    copied = Snapshot().copy(whole)
    for tensor in tensors:
        tensor.untyped_storage().fill_(1)
    assert contents(copied) == before != contents(whole)


def copy_a_state(snapshot: Snapshot) -> list[weakref.ref[Tensor]]:
    """Copy a state that exists in this function only. Returns weak references to its tensors.

    It includes a tensor that requires a gradient, as a module may give it: a graph would grow with each copy.
    """
    weight, parameter = torch.randn(3), torch.nn.Parameter(torch.randn(3))
    whole = plan([weight, parameter, parameter * 2])
    assert contents(snapshot.copy(whole)) == contents(whole)
    return [weakref.ref(weight), weakref.ref(parameter)]


def test_a_copy_keeps_nothing_of_the_state_alive() -> None:
    snapshot = Snapshot()
    # In a frame of its own: a `del` here would leave what a tracer or a profiler read of this frame's variables.
    left = copy_a_state(snapshot)
    gc.collect()
    assert [reference() for reference in left] == [None, None]


def test_there_is_nothing_to_wait_for_on_the_cpu() -> None:
    snapshot = Snapshot()
    snapshot.wait()
    copied = snapshot.copy(plan([torch.ones(3)]))
    snapshot.wait()
    assert torch.equal(copied.tensors[0].view(torch.float32), torch.ones(3))


# The same memory


def test_the_next_copy_lies_in_the_same_memory() -> None:
    snapshot, weights = Snapshot(), [torch.zeros(300, 40), torch.zeros(7, dtype=torch.int16), torch.zeros(())]
    addresses = set()
    for step in range(4):
        for weight in weights:
            weight.fill_(step)
        copied = snapshot.copy(plan(weights))
        addresses.add(address(copied))
        assert contents(copied) == contents(plan(weights))
    assert len(addresses) == 1


def test_a_state_of_the_same_shapes_is_copied_in_one_call_however_many_tensors_it_has() -> None:
    """Their places in memory are worked out once: for fifty thousand that takes longer than the copy."""
    calls: list[str] = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            calls.append(str(function))
            return function(*arguments, **(keywords or {}))

    snapshot, weights = Snapshot(), [torch.randn(3) for _ in range(100)]
    snapshot.copy(plan(weights))
    with Noted():
        snapshot.copy(plan(weights))
    assert calls.count("aten._foreach_copy_.default") == 1 and len(calls) < 5


def test_other_metadata_are_in_the_next_copy() -> None:
    """The tracker's id, say, that is known only by then."""
    snapshot, weight = Snapshot(), torch.ones(3)
    first = snapshot.copy(plan([weight], run="a"))
    assert contents(first) == contents(plan([weight], run="a"))
    where = address(first)
    second = snapshot.copy(plan([weight], run="b, and longer"))
    assert contents(second) == contents(plan([weight], run="b, and longer")) and address(second) == where


@pytest.mark.parametrize(
    "later",
    [
        [torch.randn(50)],
        [torch.randn(10, 10).to(torch.float64).T],
        [torch.randn(100).to(torch.complex64)],
        [torch.arange(200, dtype=torch.int32)],
        [torch.randn(20, 10)],
        [torch.randn(100), torch.randn(100)],
        [torch.ones(1, dtype=torch.uint8), torch.randn(99), torch.empty(0)],
    ],
    ids=["shrunk", "float64, transposed", "complex", "integers", "another shape", "two", "three"],
)
def test_a_state_that_changes_and_is_no_larger_fits_the_same_memory(later: list[Tensor]) -> None:
    snapshot = Snapshot()
    where = address(snapshot.copy(plan([torch.randn(200)])))
    copied = snapshot.copy(plan(later))
    assert address(copied) == where and contents(copied) == contents(plan(later))
    again = snapshot.copy(plan([torch.arange(200.0)]))
    assert address(again) == where and contents(again) == contents(plan([torch.arange(200.0)]))


def test_a_state_that_grows_gets_the_room_that_it_needs_and_keeps_it() -> None:
    """As an optimizer's does at its first update."""
    snapshot = Snapshot()
    for size in (0, 1, 10, 1000):
        for _ in range(2):
            whole = plan([torch.randn(size), torch.randn(size, 3).T])
            assert contents(snapshot.copy(whole)) == contents(whole)
    where = address(snapshot.copy(whole))
    snapshot.copy(plan([torch.randn(1)]))
    assert address(snapshot.copy(whole)) == where


def test_a_state_that_grows_never_takes_both_memories_at_once() -> None:
    """In an address space that has room for the new one only if the old one is given back first."""
    megabyte = 2**20

    def state(megabytes: int) -> Plan:
        return plan([torch.zeros(1).expand(megabytes * megabyte // 4)])

    snapshot = Snapshot()
    snapshot.copy(state(64))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * megabyte, before[1]))
    try:
        copied = snapshot.copy(state(96))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(copied.tensors[0]) == 96 * megabyte


states = st.lists(
    st.tuples(
        st.sampled_from(list(DTYPES.values())),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([lambda one: one, lambda one: one.T if one.dim() == 2 else one, lambda one: one[1:]]),
    ),
    max_size=6,
)


@given(st.lists(states, min_size=1, max_size=5))
@settings(deadline=None)
def test_any_states_one_after_the_other_are_copied_as_they_are(
    history: list[list[tuple[torch.dtype, list[int], Callable[[Tensor], Tensor]]]],
) -> None:
    snapshot = Snapshot()
    for state in history:
        whole = plan(layout(bits(dtype, 2, *shape)) for dtype, shape, layout in state)
        before = contents(whole)
        copied = snapshot.copy(whole)
        for tensor in whole.tensors:
            tensor.untyped_storage().fill_(1)
        assert contents(copied) == before
