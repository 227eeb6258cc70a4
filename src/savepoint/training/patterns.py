"""Choose parameters by patterns over their names, and divide them among optimizers.

A pattern is a name as `model.named_parameters()` gives it, in which `*` stands for any characters, dots included, and
`?` for one: `backbone.*`, `*.bias`.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from savepoint.config import closest
from savepoint.errors import ConfigError, short_list

Named = list[tuple[str, nn.Parameter]]


def match(patterns: object, names: Sequence[str], *, path: str) -> set[str]:
    """Return the names that at least one pattern matches.

    patterns: a pattern or a list of them, from a config. path: their place in it.
    Raises: ConfigError for a pattern that matches no name, with the closest one that would.

    >>> sorted(match(["head.*", "*.bias"], ["body.weight", "body.bias", "head.weight"], path=""))
    ['body.bias', 'head.weight']
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, list) or not listed or not all(isinstance(each, str) for each in listed):
        raise ConfigError(f"{path}={patterns}: must be a pattern over parameter names, or a list: for example head.*")
    found: set[str] = set()
    for pattern in listed:
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            modules = {f"{name[:at]}.*" for name in names for at, sign in enumerate(name) if sign == "."}
            near = closest(pattern, {*names, *modules}) or f" There are: {short_list(names, most=6)}."
            raise ConfigError(f"{path}={pattern}: matches no parameter.{near}")
        found.update(matched)
    return found


def divide(nodes: Mapping[str, dict[str, Any]], model: nn.Module) -> dict[str, Named]:
    """Divide a model's parameters among optimizers, by the `parameters` of each one's config.

    A parameter that is frozen as the model is built may be left to none.
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
