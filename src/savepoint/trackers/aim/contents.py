"""A run's names and params in the form in which Aim keeps them. Aim is not imported."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

OPTION = "option"  # the key for a group's option: `model.option` is cnn after model=cnn


def stored_id(kind: str, own_id: str) -> str:
    """Return Aim's id of a run or a sweep. It is derived from our own id, so two processes cannot create a run twice.

    >>> stored_id("run", "ab12cd34")
    'd7c1525e8b3fae293390411c'
    """
    return hashlib.sha256(f"savepoint {kind} {own_id}".encode()).hexdigest()[:24]  # as long as Aim's own ids


def allowed(key: str) -> str:
    """Return a name that Aim takes. Aim cannot read back an empty name, and refuses lone surrogates.

    >>> allowed("model.kernel@3x3=same"), allowed(""), allowed("a\\ud800")
    ('model.kernel@3x3=same', '_', 'a?')
    """
    return key.encode("utf-8", "replace").decode() or "_"


def nested(flat: Mapping[str, str]) -> dict[str, Any]:
    """Return params as a tree, so that Aim can search for `run.optimizer.lr > 0.01`. Texts of numbers become numbers.

    If a key has a value and further keys below it, as a group's option does, its value moves to the key `option` there.

    >>> nested({"model": "cnn", "model.hidden": "[8]", "seed": "1", "optimizer.lr": "0.1"})
    {'model': {'option': 'cnn', 'hidden': '[8]'}, 'optimizer': {'lr': 0.1}, 'seed': 1}
    """
    tree: dict[str, Any] = {}
    for key in sorted(flat):
        *folders, name = (allowed(part) for part in key.split("."))
        place = tree
        for folder in folders:
            if not isinstance(place.get(folder), dict):
                place[folder] = {OPTION: place[folder]} if folder in place else {}
            place = place[folder]
        place[name] = _value(flat[key])
    return tree


def _value(text: str) -> int | float | str:
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return allowed(text) if text else ""
    number = type(value) is float or (type(value) is int and abs(value) < 2**63)  # Aim's integers have 64 bits
    return value if number else allowed(text)


def merged(kept: Any, fresh: Any) -> Any:
    """Return `kept` plus the entries that only `fresh` has. A resumed run then still shows the values it began with.

    >>> merged({"lr": 0.1, "a": {"b": 1}}, {"lr": 0.2, "a": {"c": 2}})
    {'lr': 0.1, 'a': {'b': 1, 'c': 2}}
    """
    if not isinstance(kept, dict) or not isinstance(fresh, dict):
        return kept
    return {**kept, **{key: merged(kept[key], value) if key in kept else value for key, value in fresh.items()}}
