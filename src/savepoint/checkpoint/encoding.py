"""One tensor of any kind as plain tensors and a JSON node, and back: what `tree` does with its leaves.

Plain is what a tensor file holds: contiguous numbers of its own dtypes, in memory of their own. All else is described:

    {"$tensor": name}                      a plain tensor
    {"$view": [name, dtype, shape, stride, offset]}
                                           one that shares its memory, is not in row-major order, or is of a dtype that
                                           the file has no word for; `name` holds the bytes; stride and offset count
                                           elements
    {"$conj": node}  {"$neg": node}        a lazy conjugate, a lazy negation
    {"$sparse": {"layout", "shape", "coalesced", "indices": [nodes], "values": node}}
    {"$grad": node}                        a leaf that requires a gradient
    {"$parameter": [node, requires_grad]}  a torch.nn.Parameter

The same description twice is the same tensor object twice.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from savepoint.checkpoint import tensorfile

MAX_DEPTH = 64  # of a tree, and of the nodes of one tensor
ALIGNMENT = 64  # bytes: that of torch's CPU allocator
TAGS = frozenset({"$tensor", "$view", "$conj", "$neg", "$sparse", "$grad", "$parameter"})
# Beside those of the file format, the dtypes that only a description names: their bytes are written as they lie.
DTYPES = tensorfile.DTYPES | {
    "C128": torch.complex128,
    "C32": torch.complex32,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4_E2M1_X2": torch.float4_e2m1fn_x2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COMPRESSED = {
    "csr": torch.sparse_csr,
    "csc": torch.sparse_csc,
    "bsr": torch.sparse_bsr,
    "bsc": torch.sparse_bsc,
}
_LAYOUTS = {layout: name for name, layout in _COMPRESSED.items()} | {torch.sparse_coo: "coo"}


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """The dense tensors that a tensor consists of: itself, or a sparse one's indices and values."""
    if tensor.layout in _LAYOUTS:
        indices, values = _sparse(tensor)
        yield from (*indices, values)
    else:
        yield tensor


class Encoder:
    """Gives each of these tensors, all different objects, its node. `tensors`: what the nodes name. Copies nothing."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # address of the memory → its name
        met: set[int] = set()
        self._shared: set[int] = set()  # addresses of the memory that two or more of them look into
        for tensor in leaves:
            for part in parts(tensor):
                if _describable(part) and (address := _address(part)):
                    (self._shared if address in met else met).add(address)

    def encode(self, tensor: Tensor, name: str) -> dict[str, Any]:
        """The node. name: what to call the tensor in the file, if nothing is called so yet.

        Raises: ValueError that says what kind of tensor it is, if it could not come back as it was.
        """
        if type(tensor) is torch.nn.Parameter:
            return {"$parameter": [self._detached(tensor.detach(), name), tensor.requires_grad]}
        if tensor.grad_fn is not None:
            raise ValueError("a tensor that is part of a graph (detach it first)")
        node = self._detached(tensor.detach() if tensor.requires_grad else tensor, name)
        return {"$grad": node} if tensor.requires_grad else node

    def _detached(self, tensor: Tensor, name: str) -> dict[str, Any]:
        if tensor.layout in _LAYOUTS:
            return {"$sparse": self._sparse(tensor, name)}
        if not _describable(tensor):
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ValueError(f"a {kind} tensor of {tensor.dtype} on {tensor.device}")
        if tensor.is_conj():
            return {"$conj": self._detached(tensor.conj(), name)}
        if tensor.is_neg():
            return {"$neg": self._detached(torch._neg_view(tensor), name)}
        memory = _address(tensor)
        shared = memory in self._shared
        if shared or not _row_major(tensor) or tensor.dtype not in tensorfile.NAMES:
            return self._view(tensor, name, shared)
        return {"$tensor": self._named(tensor, memory, name)}

    def _view(self, tensor: Tensor, name: str, shared: bool) -> dict[str, Any]:
        """shared: the whole memory is written, once, for all that look into it. If not, the part that is looked at."""
        size, stride, offset = tensor.element_size(), tensor.stride(), tensor.storage_offset()
        span = sum((n - 1) * step for n, step in zip(tensor.shape, stride)) + 1 if tensor.numel() else 0
        memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        if shared:
            memory.set_(tensor.untyped_storage())
        else:
            memory.set_(tensor.untyped_storage(), offset * size, (span * size,), (1,))
        named = self._named(memory, _address(tensor), f"{name}/(memory)")
        place = [_NAMES[tensor.dtype], list(tensor.shape), list(stride), offset if shared else 0]
        return {"$view": [named, *place]}

    def _sparse(self, tensor: Tensor, name: str) -> Any:
        indices, values = _sparse(tensor)
        return {
            "layout": _LAYOUTS[tensor.layout],
            "shape": list(tensor.shape),
            "coalesced": tensor.is_coalesced() if tensor.layout is torch.sparse_coo else None,
            "indices": [self._detached(each, f"{name}/(indices {i})") for i, each in enumerate(indices)],
            "values": self._detached(values, f"{name}/(values)"),
        }

    def _named(self, tensor: Tensor, memory: int, wanted: str) -> str:
        """Once for each memory. What has none, since it holds no numbers, shares with nothing."""
        if memory in self._names:
            return self._names[memory]
        name, copy = wanted, 1
        # The keys 1 and "1" of a tree have the same text, and one name is the file's own.
        while name in self.tensors or name == tensorfile.METADATA:
            copy += 1
            name = f"{wanted}~{copy}"
        self.tensors[name] = tensor
        if memory:
            self._names[memory] = name
        return name


class Decoder:
    """Gives each node its tensor. Raises: KeyError, ValueError, TypeError or RuntimeError for what is no such node."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._memories: dict[str, torch.UntypedStorage] = {}
        self._made: dict[str, Tensor] = {}
        self._depth = 0

    def decode(self, tag: str, content: Any) -> Tensor:
        if tag == "$tensor":
            return self._tensors[content]
        description = json.dumps([tag, content])
        if description not in self._made:
            self._made[description] = self._make(tag, content)
        return self._made[description]

    def _node(self, node: Any) -> Tensor:
        ((tag, content),) = node.items()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        made = self.decode(tag, content)
        self._depth -= 1
        return made

    def _make(self, tag: str, content: Any) -> Tensor:
        match tag:
            case "$view":
                return self._view(*content)
            case "$conj":
                return self._node(content).conj()
            case "$neg":
                return torch._neg_view(self._node(content))
            case "$sparse":
                return self._sparse(**content)
            case "$grad":
                # A tensor object of its own: what else looks at the same memory requires none.
                return self._node(content).detach().requires_grad_()
            case "$parameter":
                node, requires_grad = content
                return torch.nn.Parameter(self._node(node), requires_grad=requires_grad)
        raise ValueError("unknown tag")

    def _view(self, name: str, dtype: str, shape: list[int], stride: list[int], offset: int) -> Tensor:
        if name not in self._memories:
            memory = self._tensors[name]
            # In a file, bytes follow upon bytes: those of wider numbers may lie at an address that is none of theirs.
            aligned = memory.data_ptr() % ALIGNMENT == 0 and memory.storage_offset() == 0
            self._memories[name] = (memory if aligned else memory.clone()).untyped_storage()
        storage = self._memories[name]
        # Checked here: `set_` makes room for a view that does not fit, and what it finds there is nobody's.
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else -1
        if min(0, *shape, *stride, offset) < 0 or (last + 1) * DTYPES[dtype].itemsize > self._tensors[name].nbytes:
            raise ValueError("it looks beyond its memory")
        return torch.empty(0, dtype=DTYPES[dtype]).set_(storage, offset, shape, stride)

    def _sparse(self, layout: str, shape: list[int], coalesced: bool | None, indices: list[Any], values: Any) -> Tensor:
        index, numbers = [self._node(each) for each in indices], self._node(values)
        # The file may come from a stranger, and torch reads where the indices point.
        if layout == "coo":
            (where,) = index
            return torch.sparse_coo_tensor(where, numbers, shape, is_coalesced=coalesced, check_invariants=True)
        compressed, plain = index
        return torch.sparse_compressed_tensor(
            compressed, plain, numbers, shape, layout=_COMPRESSED[layout], check_invariants=True
        )


def _address(tensor: Tensor) -> int:
    """Where its memory begins: the same for tensors that share it; 0 where there is none to share."""
    return tensor.untyped_storage().data_ptr()


def _sparse(tensor: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Indices and values as they lie there, uncoalesced where they are."""
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(),), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices()), tensor.values()
    return (tensor.ccol_indices(), tensor.row_indices()), tensor.values()


def _row_major(tensor: Tensor) -> bool:
    """Whether its strides follow from its shape. A size of 1 may have any, and channels_last shows in them alone."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride())):
        if stride != step:
            return False
        step *= max(1, size)
    return True


def _describable(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory and no more than that."""
    strided = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return strided and tensor.dtype in _NAMES
