"""Tensors that are cut by rows among the ranks, as FSDP cuts a model: torch's DTensor.

A tensor that is not cut passes through every function here as it is.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from savepoint.errors import CheckpointError
from savepoint.parallel.place import count, leads, rank


@dataclass(frozen=True)
class Part:
    """This rank's rows of a tensor that was read from a checkpoint. shape: that of the whole tensor."""

    rows: Tensor
    shape: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        """The type of the elements."""
        return self.rows.dtype


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


def computing_device(tensor: Any) -> torch.device:
    """Return the device that computes with a tensor. Rows of one that is cut may wait in host memory meanwhile."""
    return torch.device(tensor.device_mesh.device_type) if is_cut(tensor) else tensor.device


def own(tensor: Any) -> Tensor:
    """Return this rank's part of a tensor, in the same memory."""
    part: Tensor = tensor.to_local() if is_cut(tensor) else tensor
    return part


def whole(tensor: Any) -> Tensor:
    """Put a tensor together from the parts of all ranks, each of which has to call this."""
    assembled: Tensor = tensor.full_tensor() if is_cut(tensor) else tensor
    return assembled


def cut_like(tensor: Tensor | Part, other: Any, *, copy: bool = False) -> Tensor:
    """Cut a tensor that was read as another of its shape is cut. Returns: a tensor with this rank's part.

    A tensor of another shape, or beside one that is not cut, is returned as it is.
    copy: whether the part gets memory of its own.
    """
    if not is_cut(other) or tensor.shape != other.shape:
        return tensor  # type: ignore[return-value]
    mine = rows(tensor.shape[0])
    part = tensor.rows if isinstance(tensor, Part) else tensor[mine.start : mine.stop]
    made: Tensor = type(other).from_local(
        part.to(other.to_local().device, copy=copy),
        other.device_mesh,
        other.placements,
        run_check=False,
        shape=other.shape,
        stride=other.stride(),
    )
    return made


def mine(tensors: Mapping[str, Tensor], *, several: bool) -> dict[str, Tensor]:
    """Return what this rank saves: its rows of tensors that are cut, and all others if it is rank 0.

    several: whether several ranks save together.
    """
    whole_too = not several or leads()
    with torch.no_grad():  # torch then hands out a part at once, without a node for a gradient
        return {name: own(each) for name, each in tensors.items() if whole_too or is_cut(each)}


def described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the shape of each tensor that is cut, and how many rows of it each rank has, in order."""
    ranks = count()
    return {
        name: {
            "shape": list(each.shape),
            "rows": [len(rows(each.shape[0], of=rank, among=ranks)) for rank in range(ranks)],
        }
        for name, each in tensors.items()
        if is_cut(each)
    }


def assemble(
    parts: Mapping[int, Mapping[str, Tensor]], described: Any, *, names: Sequence[str], alone: bool
) -> dict[str, Any]:
    """Put together the tensors that several ranks have saved: each wrote its rows, and rank 0 also all that is whole.

    parts: the contents of the files, by rank. described: for each tensor that is cut its shape, and how many rows each
    rank has; {} for a file of one process. names: what errors call the files of all ranks.
    alone: whether there are only rank 0's and this rank's file. A tensor that is cut is then returned as a `Part`.
    Raises: CheckpointError if a rank lacks rows, has other ones, or has a tensor that is not described.
    """
    found: dict[str, Any] = {name: tensor for name, tensor in parts[0].items() if name not in described}
    if alone:
        found = {name: tensor.clone() for name, tensor in found.items()}  # the rest of that file is not needed
    for each, part in parts.items():
        if each and (extra := sorted(part.keys() - described.keys())):
            raise CheckpointError(f"{names[each]}: state.json does not say what its tensor {extra[0]!r} is a part of.")
    for name, entry in described.items():
        try:
            shape, counts = entry["shape"], entry["rows"]
            if len(counts) != len(names) or sum(counts) != shape[0]:
                raise ValueError(f"rows {counts} of the shape {shape} in {len(names)} files")
            if alone and counts[rank()] != len(rows(shape[0])):
                raise ValueError(f"rows {counts}, which is not how several ranks cut a tensor")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{names[0]}: state.json describes tensor {name!r} wrongly ({error}).") from error
        for each, part in parts.items():
            wanted = (parts[0][name].dtype if name in parts[0] else None, [counts[each], *shape[1:]])
            there = (part[name].dtype, list(part[name].shape)) if name in part else None
            if there != wanted:
                raise CheckpointError(f"{names[each]}: its part of tensor {name!r} is {there}, and should be {wanted}.")
        pieces = [part[name] for part in parts.values()]
        found[name] = Part(pieces[-1], torch.Size(shape)) if alone else torch.cat(pieces)
    return found
