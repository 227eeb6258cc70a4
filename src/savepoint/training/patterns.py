"""Divide a model's parameters among optimizers, by patterns over names as `model.named_parameters()` gives them."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from savepoint.config import match
from savepoint.errors import ConfigError, short_list

Named = list[tuple[str, nn.Parameter]]


def divide(nodes: Mapping[str, dict[str, Any]], model: nn.Module) -> dict[str, Named]:
    """Divide a model's parameters among optimizers, by the `parameters` of each one's config.

    nodes: the optimizers' configs by name. A parameter that is frozen when the model is built may belong to none.
    Raises: ConfigError that names the parameters that none or two would train.
    """
    named = list(model.named_parameters())
    names = [name for name, _ in named]
    owners: dict[str, list[str]] = {name: [] for name in names}
    for optimizer, node in nodes.items():
        path = f"optimizer.{optimizer}.parameters"
        if node.get("parameters") is None:
            raise ConfigError(f"{path} is not set. Optimizers with names divide the parameters by patterns: {path}=…")
        for name in match(node["parameters"], names, path=path):
            owners[name].append(optimizer)
    twice = [f"{name} ({' and '.join(each)})" for name, each in owners.items() if len(each) > 1]
    if twice:
        raise ConfigError(f"optimizer: parameters of two optimizers: {short_list(twice, most=6)}.")
    none = [name for name, parameter in named if not owners[name] and parameter.requires_grad]
    if none:
        raise ConfigError(
            f"optimizer: no optimizer has these parameters: {short_list(none, most=6)}. Let a pattern match them, or "
            "freeze them in the model (requires_grad_(False))."
        )
    return {
        optimizer: [(name, parameter) for name, parameter in named if optimizer in owners[name]] for optimizer in nodes
    }
