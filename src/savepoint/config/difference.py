"""Compare two plain configs, key by key."""

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
