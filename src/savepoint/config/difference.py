"""Plain configs key by key: compare two, or flatten one."""

from typing import Any


def differences(before: Any, after: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return each key in which two configs differ, sorted, with its value in both; None where one lacks the key.

    Lists are compared as a whole. A value of another type is a difference, even if it compares equal.

    >>> differences({"seed": 1, "model": {"width": 8}}, {"seed": 1, "model": {"width": 9}})
    {'model.width': (8, 9)}
    """
    if isinstance(before, dict) and isinstance(after, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(before.keys() | after.keys()):
            found |= differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
        return found
    return {} if type(before) is type(after) and before == after else {path: (before, after)}


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Flatten a config into the names and texts that a tracker shows as parameters.

    >>> flatten({"model": {"hidden": [8], "dropout": 0.1}, "seed": 1})
    {'model.hidden': '[8]', 'model.dropout': '0.1', 'seed': '1'}
    """
    if isinstance(config, dict) and config:
        flat: dict[str, str] = {}
        for key, value in config.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
        return flat
    return {prefix: str(config)}
