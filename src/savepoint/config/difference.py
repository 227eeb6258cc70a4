"""Compare two plain configs key by key, or flatten one."""

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


class Difference:
    """The differences between the config of a checkpoint, `before`, and that of its fork, `after`.

    keys: each key that differs, with its value in both.
    """

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.before, self.after = before, after
        self.keys = differences(before, after)

    def touches(self, *paths: str) -> bool:
        """Whether a key at or below one of these paths differs."""
        return any(key == path or key.startswith(f"{path}.") for key in self.keys for path in paths)

    def lines(self) -> list[str]:
        """Return `key  old → new` for each key that changes what is trained, aligned."""
        hidden = ("tracker", "name", "_partial_")
        shown = {key: each for key, each in self.keys.items() if not {*key.split(".")} & {*hidden}}
        width = max(map(len, shown), default=0)
        return [f"{key.ljust(width)}  {_short(old)} → {_short(new)}" for key, (old, new) in shown.items()]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
