"""Read the closed groups of a config into the settings, and report all wrong keys, types and ranges together.

It uses the standard library only, because `train.py` reads settings before it imports torch.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping

from savepoint.config.annotations import misfit
from savepoint.config.settings import GROUPS, Check, SchedulerSettings, Settings, by_name

_OPEN_GROUPS = ("model", "task", "optimizer")  # their keys belong to the class that they name
_SCALARS = ("seed", "name", "init_from")


def read_settings(config: Mapping[str, object]) -> tuple[Settings | None, list[str]]:
    """Read the closed groups of a resolved config. Returns: settings and no faults, or None and a line for each fault.

    >>> data, tracker = {"batch_size": 64}, {"kind": "none"}
    >>> read_settings({"seed": 1, "trainer": {"max_epochs": -1}, "data": data, "tracker": tracker})
    (None, ['trainer.max_epochs=-1: must be at least 1.'])
    """
    faults: list[str] = []
    known = {*_OPEN_GROUPS, *_SCALARS, *GROUPS, "scheduler"}
    # `resume` says what to do and not what to train. No setting holds it, and null is no fault.
    unknown = [key for key in config if key not in known and (key, config[key]) != ("resume", None)]
    faults += [_unknown("", key, "the config", known) for key in unknown]
    values: dict[str, object] = {}
    for group, cls in GROUPS.items():
        values[group] = _read_group(group, cls, config.get(group), faults)
    schedulers = config.get("scheduler")
    parts = by_name(schedulers) if isinstance(schedulers, Mapping) else {"": schedulers}
    values["schedulers"] = {
        name: _read_group(f"scheduler.{name}".rstrip("."), SchedulerSettings, each, faults)
        for name, each in parts.items()
    }
    scalars = {key: config[key] for key in _SCALARS if key in config}
    values |= _read_fields("", Settings, scalars, faults)
    return (None, faults) if faults else (Settings(**typing.cast(typing.Any, values)), [])


def _read_group(group: str, cls: type, node: object, faults: list[str]) -> object:
    if node is None:
        node = {}  # the defaults; trust.check_config refuses a run whose config lacks a group
    if not isinstance(node, Mapping):
        faults.append(f"{group}={node!r}: must be a group of settings.")
        return None
    classes = {"dataset", "sampler", "collate"} if group == "data" else set()
    known = {f.name for f in dataclasses.fields(cls)} | classes
    if cls is not SchedulerSettings:  # the other keys of a scheduler are arguments of its class
        faults += [_unknown(f"{group}.", key, group, known) for key in node if key not in known]
    before = len(faults)
    values = _read_fields(f"{group}.", cls, node, faults)
    if (
        group == "trainer"
        and values.get("max_epochs") is None
        and values.get("max_steps") is None
        and len(faults) == before
    ):
        faults.append("trainer.max_epochs=None, trainer.max_steps=None: training needs an end. Set one of them.")
    return cls(**values) if len(faults) == before else None


def _read_fields(prefix: str, cls: type, node: Mapping[str, object], faults: list[str]) -> dict[str, typing.Any]:
    values: dict[str, typing.Any] = {}
    for f in dataclasses.fields(cls):
        if f.name in node:
            value, fault = _read_value(node[f.name], f.type, f.metadata.get("check"))
            values[f.name] = value
            if fault:
                faults.append(f"{prefix}{f.name}={node[f.name]!r}: {fault}.")
        elif f.default is not dataclasses.MISSING:
            values[f.name] = f.default
        elif prefix or f.name in _SCALARS:
            faults.append(f"{prefix}{f.name} is not set, and has no default.")
    return values


def _read_value(value: object, annotation: object, check: Check | None) -> tuple[object, str | None]:
    if fault := misfit(value, annotation):
        return value, fault
    if type(value) is int and float in (annotation, *typing.get_args(annotation)):
        # An int too large for a float becomes infinity here and is refused as such below.
        value = float(value) if abs(value) < 2**1023 else math.inf
    if isinstance(value, float) and not math.isfinite(value):
        return value, "must be finite"
    return value, check(value) if check and value is not None else None


def _unknown(prefix: str, key: object, owner: str, known: set[str]) -> str:
    shown = str(key) if str(key).isprintable() else ascii(key)
    return f"{prefix}{shown}: {owner} has no such key.{closest(shown, known)} It has: {', '.join(sorted(known))}."


def closest(word: str, words: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return " Did you mean x?" with the most similar of `words`, or "" if none is similar. likeness: 0 to 1."""
    near = difflib.get_close_matches(word, sorted(words), n=1, cutoff=likeness)
    return f" Did you mean {near[0]}?" if near else ""
