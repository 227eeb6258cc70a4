"""Move a batch to the device that trains on it."""

import copy
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

ALIGNMENT = 64  # bytes, as torch's CPU allocator aligns
NON_BLOCKING: tuple[type[Any], ...] = (Tensor, PackedSequence)  # their method `to` takes the argument non_blocking


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch: tensors, objects with a method `to(device)`, and those within tuples, lists and mappings.

    Containers keep their type; everything else is returned as it is. Tensors in pinned memory are copied while the
    computation goes on.
    """
    if isinstance(batch, NON_BLOCKING) and device.type != "cpu":
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Tensor):
        # Math libraries promise equal bits only for equally aligned memory. Torch aligns its own. NumPy does not, so
        # the address of a tensor from `from_numpy` differs from process to process.
        return batch if batch.data_ptr() % ALIGNMENT == 0 else batch.clone()
    # The class is asked: a mapping may offer its keys as attributes, and a namedtuple may have a field named `to`.
    if callable(getattr(type(batch), "to", None)):
        return batch.to(device)
    if isinstance(batch, (list, tuple)):
        values = [to_device(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # keeps what a subclass has besides its items, such as a default
        moved.update({key: to_device(value, device) for key, value in batch.items()})
        return moved
    return batch
