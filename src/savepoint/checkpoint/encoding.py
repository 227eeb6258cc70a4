"""Encode a tensor of any kind as plain tensors and a JSON node, and decode it again. `tree` uses this for its leaves.

A plain tensor is one that a tensor file can hold: row-major, of one of the format's dtypes, in memory of its own.

    {"$tensor": name}                      a plain tensor
    {"$view": [name, dtype, shape, stride, offset]}
                                           a tensor that shares its memory, is not row-major, or has a dtype that the
                                           format lacks. `name` is the memory's bytes; stride and offset count elements
    {"$conj": node}  {"$neg": node}        a lazy conjugate, a lazy negation
    {"$sparse": {"layout", "shape", "coalesced", "indices": [nodes], "values": node}}
    {"$grad": node}                        a leaf that requires a gradient
    {"$parameter": [node, requires_grad]}  a torch.nn.Parameter

Equal nodes decode to one and the same tensor object.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from savepoint import parallel
from savepoint.checkpoint import tensorfile

# Levels of nesting, in a tree and in the node of one tensor.
MAX_DEPTH = 64
# Bytes: the alignment of torch's CPU allocator.
ALIGNMENT = 64
TAGS = frozenset({"$tensor", "$view", "$conj", "$neg", "$sparse", "$grad", "$parameter"})
# The format's dtypes, and those that only a `$view` can name: their bytes are written as they lie in memory.
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
    """Yield the dense tensors of which a tensor consists: itself, or the indices and values of a sparse one."""
    if tensor.layout in _LAYOUTS:
        indices, values = _sparse(tensor)
        yield from (*indices, values)
    else:
        yield tensor


class Encoder:
    """Encodes a fixed list of tensor objects, all different. Copies nothing.

    tensors: the plain tensors that the nodes refer to, by name.
    """

    def __init__(self, leaves: list[Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        # The name of each memory that is already in `tensors`, by its address.
        self._names: dict[int, str] = {}
        # Addresses of memory that two or more of the leaves use.
        self._shared: set[int] = set()
        seen: set[int] = set()
        for tensor in leaves:
            for part in parts(tensor):
                if _describable(part) and (address := _address(part)):
                    (self._shared if address in seen else seen).add(address)

    def encode(self, tensor: Tensor, name: str) -> dict[str, Any]:
        """Return the tensor's node. name: the tensor's name in the file, unless another tensor already has it.

        Raises: ValueError that says what kind of tensor it is, if `decode` could not give it back exactly.
        """
        if parallel.is_cut(tensor):  # all ranks have to name and describe it alike, whatever their parts look like
            return {"$tensor": self._named(tensor, 0, name)}
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
        """Describe a tensor by its memory's bytes.

        shared: write the whole memory, once for all tensors that use it. Otherwise write only the part that is used.
        """
        size, stride, offset = tensor.element_size(), tensor.stride(), tensor.storage_offset()
        span = sum((n - 1) * step for n, step in zip(tensor.shape, stride)) + 1 if tensor.numel() else 0
        memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        if shared:
            memory.set_(tensor.untyped_storage())
        else:
            memory.set_(tensor.untyped_storage(), offset * size, (span * size,), (1,))
        named = self._named(memory, _address(tensor), f"{name}/(memory)")
        return {"$view": [named, _NAMES[tensor.dtype], list(tensor.shape), list(stride), offset if shared else 0]}

    def _sparse(self, tensor: Tensor, name: str) -> Any:
        indices, values = _sparse(tensor)
        return {
            "layout": _LAYOUTS[tensor.layout],
            "shape": list(tensor.shape),
            "coalesced": tensor.is_coalesced() if tensor.layout is torch.sparse_coo else None,
            "indices": [self._detached(each, f"{name}/(indices {i})") for i, each in enumerate(indices)],
            "values": self._detached(values, f"{name}/(values)"),
        }

    def _named(self, tensor: Tensor, memory: int, preferred: str) -> str:
        """Name each memory once. Empty tensors own no memory (address 0), so each gets a name of its own."""
        if memory in self._names:
            return self._names[memory]
        name, copy = preferred, 1
        # The keys 1 and "1" of a tree give the same name, and the format reserves one name for itself.
        while name in self.tensors or name == tensorfile.METADATA:
            copy += 1
            name = f"{preferred}~{copy}"
        self.tensors[name] = tensor
        if memory:
            self._names[memory] = name
        return name


class Decoder:
    """Decodes nodes into tensors. tensors: those of the file, by name. Equal nodes give the same tensor object."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._memories: dict[str, torch.UntypedStorage] = {}
        self._made: dict[str, Tensor] = {}
        self._depth = 0

    def decode(self, tag: str, content: Any) -> Tensor:
        """Return the tensor of the node `{tag: content}`.

        Raises: KeyError, ValueError, TypeError or RuntimeError for a node that `encode` does not write.
        """
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
                # Detached, so that other tensors of the same memory do not require a gradient.
                return self._node(content).detach().requires_grad_()
            case "$parameter":
                node, requires_grad = content
                return torch.nn.Parameter(self._node(node), requires_grad=requires_grad)
        raise ValueError("unknown tag")

    def _view(self, name: str, dtype: str, shape: list[int], stride: list[int], offset: int) -> Tensor:
        if name not in self._memories:
            memory = self._tensors[name]
            # The file stores bytes, so they may start at an address that is not a multiple of the dtype's size.
            aligned = memory.data_ptr() % ALIGNMENT == 0 and memory.storage_offset() == 0
            self._memories[name] = (memory if aligned else memory.clone()).untyped_storage()
        storage = self._memories[name]
        # `set_` would enlarge the memory for a view that does not fit, and show whatever happens to lie there.
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else -1
        if min(0, *shape, *stride, offset) < 0 or (last + 1) * DTYPES[dtype].itemsize > self._tensors[name].nbytes:
            raise ValueError("it reaches beyond its memory")
        return torch.empty(0, dtype=DTYPES[dtype]).set_(storage, offset, shape, stride)

    def _sparse(self, layout: str, shape: list[int], coalesced: bool | None, indices: list[Any], values: Any) -> Tensor:
        index, numbers = [self._node(each) for each in indices], self._node(values)
        # A stranger may have written the file, and torch would read wherever unchecked indices point.
        if layout == "coo":
            (where,) = index
            return torch.sparse_coo_tensor(where, numbers, shape, is_coalesced=coalesced, check_invariants=True)
        compressed, plain = index
        return torch.sparse_compressed_tensor(
            compressed, plain, numbers, shape, layout=_COMPRESSED[layout], check_invariants=True
        )


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory. Tensors that share memory have the same one; empty tensors have 0."""
    return tensor.untyped_storage().data_ptr()


def _sparse(tensor: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the indices and the values of a sparse tensor, without coalescing them."""
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(),), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices()), tensor.values()
    return (tensor.ccol_indices(), tensor.row_indices()), tensor.values()


def _row_major(tensor: Tensor) -> bool:
    """Whether the strides are exactly those of a new tensor of this shape.

    `is_contiguous` ignores the strides of dimensions of size 1, and channels_last may show in those alone.
    """
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride())):
        if stride != step:
            return False
        step *= max(1, size)
    return True


def _describable(tensor: Tensor) -> bool:
    """Whether a tensor is dense numbers in memory: strided, not nested, not on the meta device, of a known dtype."""
    if parallel.is_cut(tensor):
        return False
    strided = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return strided and tensor.dtype in _NAMES
