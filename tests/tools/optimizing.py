"""Optimizers for tests, and the facts about a value that have to come back from a checkpoint."""

import copy
from typing import Any

import torch
from torch import Tensor, nn, optim


def facts(value: Any) -> Any:
    """A value with all that has to come back: types, dtypes, strides, devices, bits."""
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        layout = (value.layout, value.is_coalesced() if value.is_sparse else value.stride())
        bits = dense.contiguous().reshape(-1).view(torch.uint8).tolist()
        return type(value).__name__, value.dtype, tuple(value.shape), str(layout), str(value.device), bits
    if isinstance(value, dict):
        return type(value).__name__, [(repr(key), facts(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [facts(item) for item in value]
    return repr(value)


def loaded(one: optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(one.state_dict())


def shared_rate(model: nn.Module, kind: Any = optim.Adam, **options: Any) -> optim.Optimizer:
    """Two groups whose learning rate is one tensor, and keys of the user's own in a group."""
    rate, named = torch.tensor(0.01), list(model.named_parameters())
    mine = {1: ("a", None), "ids": [3, 1]}
    groups = [{"params": named[:2], "lr": rate, "mine": mine}, {"params": named[2:], "lr": rate}]
    return kind(groups, **options)  # type: ignore[no-any-return]
