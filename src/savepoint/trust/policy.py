"""Check what a config holds: plain values within limits, no secrets, and only allowed `_target_` names."""

import math
import re
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint.trust import strict_yaml
from savepoint.trust.redaction import SECRET_KEYS, has_uri_password
from savepoint.trust.targets import refusal
from savepoint.trust.text import join_path, shown

# A config with a hundred thousand wrong values is refused for the first few.
MAX_FAULTS = 20
MAX_INTEGER_BITS = 64
# Keys that have a meaning for Hydra, and are no arguments.
SPECIAL = re.compile(r"_[^_].*_|__.*", re.DOTALL)


def check_values(config: object, *, source: Path, path: str = "") -> list[str]:
    """List what forbids building from `config`, one line for each fault. Nothing is imported.

    source: the directory that holds the `project` package. path: the place of `config` in the whole config.
    """
    walk = _Walk(source)
    try:
        walk.node(config, path, depth=1)
    except _EnoughError:
        walk.faults.append("The rest was not checked.")
    return walk.faults


class _EnoughError(Exception):
    """Ends a walk that has found so many faults, or values, that the rest is not worth checking."""


@dataclass
class _Walk:
    source: Path
    faults: list[str] = field(default_factory=list)
    nodes: int = 0
    bytes: int = 0
    refusals: dict[str, str | None] = field(default_factory=dict)

    def fault(self, path: str, text: str) -> None:
        self.faults.append(f"{path}: {text}" if path else text)
        if len(self.faults) >= MAX_FAULTS:
            raise _EnoughError

    def node(self, value: object, path: str, *, depth: int) -> None:
        self.nodes += 1
        if self.nodes > strict_yaml.MAX_NODES:
            self.fault(path, f"a config has at most {strict_yaml.MAX_NODES} values.")
            raise _EnoughError
        if depth > strict_yaml.MAX_DEPTH:
            self.fault(path, f"nested deeper than {strict_yaml.MAX_DEPTH} levels.")
        elif type(value) is dict:
            self._mapping(value, path, depth=depth)
        elif type(value) is list:
            for index, item in enumerate(value):
                self.node(item, join_path(path, index), depth=depth + 1)
        else:
            self._scalar(value, path)

    def _mapping(self, node: dict[Any, Any], path: str, *, depth: int) -> None:
        for key, value in node.items():
            if type(key) is not str:
                self.fault(path, f"the key {_brief(key)} must be text.")
                continue
            self._text(key, path)
            where = join_path(path, key)
            if SPECIAL.fullmatch(key):
                self._special(key, value, where, node)
            if key in SECRET_KEYS and isinstance(value, str) and value:
                self.fault(where, "a config holds no secrets. Read it from the environment in your own code.")
            else:
                self.node(value, where, depth=depth + 1)

    def _special(self, key: str, value: object, where: str, node: dict[Any, Any]) -> None:
        expected = {"_target_": str, "_partial_": bool, "_args_": list}.get(key)
        if expected is None:
            self.fault(where, "is not allowed. Only _target_, _partial_ and _args_ of Hydra's own words are.")
        elif key != "_target_" and "_target_" not in node:
            self.fault(where, "has no _target_ beside it. Set that to the class to build.")
        elif type(value) is not expected and not (key == "_target_" and value is None):
            self.fault(where, f"must be {_KINDS[expected]}, and is {_brief(value)}.")
        elif isinstance(value, str):
            if value not in self.refusals:  # a hostile config may repeat a target ten thousand times
                self.refusals[value] = refusal(value, self.source)
            if found := self.refusals[value]:
                self.fault(where, found)

    def _scalar(self, value: object, path: str) -> None:
        if type(value) is str:
            self._text(value, path)
        elif type(value) is float:
            if not math.isfinite(value):
                self.fault(path, f"{value} is not finite.")
        elif type(value) is int:
            if value.bit_length() > MAX_INTEGER_BITS:
                self.fault(path, f"an integer of {value.bit_length()} bits. At most {MAX_INTEGER_BITS} are allowed.")
        elif value is not None and type(value) is not bool:
            self.fault(path, f"{_brief(value)} is no plain value: text, number, true, false, null, list or group.")

    def _text(self, text: str, path: str) -> None:
        try:
            self.bytes += len(text.encode())
        except UnicodeEncodeError:
            self.fault(path, f"{shown(text)} is not valid Unicode.")
        if self.bytes > strict_yaml.MAX_BYTES:
            self.fault(path, f"a config holds at most {strict_yaml.MAX_BYTES} bytes.")
            raise _EnoughError
        if "${" in text:
            self.fault(path, f"the interpolation {shown(text)} is not resolved.")
        if has_uri_password(text):
            self.fault(path, "an address with a password in it. Read it from the environment in your own code.")


_KINDS = {str: "text", bool: "true or false", list: "a list"}


def _brief(value: object) -> str:
    # A stranger's object is described by its type alone, since its repr could be anything.
    return shown(value) if type(value) in (str, bool, float, types.NoneType) else f"a {type(value).__name__}"
