"""Put together the tensors that several ranks have saved: each wrote its rows, and rank 0 also all that is not cut."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from savepoint.errors import CheckpointError


def assemble(parts: Sequence[dict[str, Tensor]], described: Any, *, names: Sequence[str]) -> dict[str, Tensor]:
    """Return whole tensors. parts: the contents of each rank's file. names: what errors call these files.

    described: for each tensor that is cut its shape, and how many rows each rank has; {} for a file of one process.
    Raises: CheckpointError if a rank lacks rows, has other ones, or has a tensor that is not described.
    """
    found = {name: tensor for name, tensor in parts[0].items() if name not in described}
    for part, file in zip(parts[1:], names[1:]):
        if extra := sorted(part.keys() - described.keys()):
            raise CheckpointError(f"{file}: state.json does not say what its tensor {extra[0]!r} is a part of.")
    for name, entry in described.items():
        try:
            shape, rows = entry["shape"], entry["rows"]
            if len(rows) != len(parts) or sum(rows) != shape[0]:
                raise ValueError(f"rows {rows} of the shape {shape} in {len(parts)} files")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{names[0]}: state.json describes tensor {name!r} wrongly ({error}).") from error
        for part, count, file in zip(parts, rows, names):
            wanted = (parts[0][name].dtype if name in parts[0] else None, [count, *shape[1:]])
            there = (part[name].dtype, list(part[name].shape)) if name in part else None
            if there != wanted:
                raise CheckpointError(f"{file}: its part of tensor {name!r} is {there}, and should be {wanted}.")
        found[name] = torch.cat([part[name] for part in parts])
    return found
