"""Tensors that are cut by rows among the ranks, as FSDP cuts a model: torch's DTensor.

A tensor that is not cut passes through every function here as it is.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from savepoint.parallel.place import count, leads, rank


def is_cut(tensor: Any) -> bool:
    """Whether this rank holds only a part of a tensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # loaded where something is cut
    return module is not None and isinstance(tensor, module.DTensor)


def rows(length: int, *, of: int | None = None, among: int | None = None) -> range:
    """Return which rows of a tensor of `length` rows a rank holds, of so many ranks; if left out, this rank.

    >>> [list(rows(4, of=each, among=3)) for each in range(3)]
    [[0, 1], [2, 3], []]
    """
    ranks = among or count()
    each = -(-length // ranks)
    begin = min((rank() if of is None else of) * each, length)
    return range(begin, min(begin + each, length))


def own(tensor: Any) -> Tensor:
    """Return this rank's part of a tensor, in the same memory."""
    part: Tensor = tensor.to_local() if is_cut(tensor) else tensor
    return part


def whole(tensor: Any) -> Tensor:
    """Put a tensor together from the parts of all ranks, each of which has to call this."""
    assembled: Tensor = tensor.full_tensor() if is_cut(tensor) else tensor
    return assembled


def cut_like(tensor: Tensor, other: Any) -> Tensor:
    """Cut a whole tensor as another of its shape is cut. Returns: a tensor with this rank's part, copied.

    A tensor of another shape, or beside one that is not cut, is returned as it is.
    """
    if not is_cut(other) or tensor.shape != other.shape:
        return tensor
    mine = rows(len(tensor))
    part = tensor[mine.start : mine.stop].to(other.to_local().device, copy=True)
    made: Tensor = type(other).from_local(
        part, other.device_mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )
    return made


def mine(tensors: Mapping[str, Tensor], *, several: bool) -> dict[str, Tensor]:
    """Return what this rank saves: its rows of tensors that are cut, and all others if it is rank 0.

    several: whether several ranks save together.
    """
    whole_too = not several or leads()
    return {name: own(each) for name, each in tensors.items() if whole_too or is_cut(each)}


def described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the shape of each tensor that is cut, and how many rows of it each rank has, in order."""
    return {
        name: {"shape": list(each.shape), "rows": [len(rows(len(each), of=rank)) for rank in range(count())]}
        for name, each in tensors.items()
        if is_cut(each)
    }
