"""What a config may hold, and how objects are built from it.

A config may come from a stranger's checkpoint. Whatever has a `_target_` is imported and called, which is a known way
to run someone's code (CVE-2025-23304, CVE-2026-22584): so `make` checks a node and builds from that very object.
"""

import functools
import inspect
import math
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import plain
from savepoint.errors import ConfigError
from savepoint.plain import join, shown
from savepoint.redaction import SECRET_KEYS, has_uri_password
from savepoint.settings import closest
from savepoint.targets import refusal, resolve

MAX_FAULTS = 20  # a config of a hundred thousand wrong values is refused as well by the first few
MAX_INTEGER_BITS = 64

_SPECIAL = re.compile(r"_[^_].*_|__.*", re.DOTALL)  # what looks like a word to Hydra rather than an argument


def check(config: object, *, source: Path, path: str = "") -> list[str]:
    """What forbids building from `config`, one line for each fault. Nothing is imported.

    source: the directory that holds the `project` package. path: where `config` lies in the whole config.
    """
    walk = _Walk(source)
    try:
        walk.node(config, path, depth=1)
    except _EnoughError:
        walk.faults.append("The rest was not looked at.")
    return walk.faults


def make(node: object, *, path: str, source: Path) -> Any:
    """What `node` describes: a dict with a `_target_` becomes that object, built inner first; the rest stays plain.

    `_partial_: true` gives a functools.partial, `_args_` are positional arguments, `_target_: null` gives None.
    Checks `node` and builds from that very object, so there is no way to build what was not checked.
    Raises: ConfigError for what is not allowed and for arguments that do not fit.
    """
    faults = check(node, source=source, path=path)
    if faults:
        raise ConfigError("\n".join(faults))
    return _build(node, path, source)


def call(function: Callable[..., Any], *arguments: Any, path: str, **keywords: Any) -> Any:
    """Call what `make` gave for a `_partial_`, with the wording of `make` for arguments that do not fit."""
    return _call(function, arguments, keywords, path)


class _EnoughError(Exception):
    """There are so many faults, or values, that the rest is not worth looking at."""


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
        if self.nodes > plain.MAX_NODES:
            self.fault(path, f"a config has at most {plain.MAX_NODES} values.")
            raise _EnoughError
        if depth > plain.MAX_DEPTH:
            self.fault(path, f"nested deeper than {plain.MAX_DEPTH} levels.")
        elif type(value) is dict:
            self._mapping(value, path, depth=depth)
        elif type(value) is list:
            for index, item in enumerate(value):
                self.node(item, join(path, index), depth=depth + 1)
        else:
            self._scalar(value, path)

    def _mapping(self, node: dict[Any, Any], path: str, *, depth: int) -> None:
        for key, value in node.items():
            if type(key) is not str:
                self.fault(path, f"the key {_brief(key)} must be text.")
                continue
            self._text(key, path)
            where = join(path, key)
            if _SPECIAL.fullmatch(key):
                self._special(key, value, where, node)
            if key in SECRET_KEYS and isinstance(value, str) and value:
                self.fault(where, "a config holds no secrets. Read it from the environment in your own code.")
            else:
                self.node(value, where, depth=depth + 1)

    def _special(self, key: str, value: object, where: str, node: dict[Any, Any]) -> None:
        expected = {"_target_": str, "_partial_": bool, "_args_": list}.get(key)
        if expected is None:
            self.fault(where, "is not allowed. Of Hydra's own words, _target_, _partial_ and _args_ are.")
        elif key != "_target_" and "_target_" not in node:
            self.fault(where, "stands without a _target_ beside it.")
        elif type(value) is not expected and not (key == "_target_" and value is None):
            self.fault(where, f"must be {_KINDS[expected]}, and is {_brief(value)}.")
        elif isinstance(value, str):
            if value not in self.refusals:  # a target may be there ten thousand times
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
        if self.bytes > plain.MAX_BYTES:
            self.fault(path, f"a config holds at most {plain.MAX_BYTES} bytes.")
            raise _EnoughError
        if "${" in text:
            self.fault(path, f"the interpolation {shown(text)} is not resolved.")
        if has_uri_password(text):
            self.fault(path, "an address with a password in it. Read it from the environment in your own code.")


_KINDS = {str: "text", bool: "true or false", list: "a list"}


def _brief(value: object) -> str:
    # By type alone where the value is a stranger's object: its repr could be anything.
    return shown(value) if type(value) in (str, bool, float, types.NoneType) else f"a {type(value).__name__}"


def _build(node: Any, path: str, source: Path) -> Any:
    if isinstance(node, list):
        return [_build(item, join(path, index), source) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    plain_keys = [key for key in node if not _SPECIAL.fullmatch(key)]
    keywords = {key: _build(node[key], join(path, key), source) for key in plain_keys}
    if "_target_" not in node:
        return keywords
    if node["_target_"] is None:
        return None
    target = resolve(node["_target_"], path=join(path, "_target_"), source=source)
    arguments = _build(node.get("_args_", []), join(path, "_args_"), source)
    if node.get("_partial_"):
        _bind(target, arguments, keywords, path, partly=True)
        return functools.partial(target, *arguments, **keywords)
    return _call(target, arguments, keywords, path)


def _call(function: Any, arguments: Iterable[Any], keywords: dict[str, Any], path: str) -> Any:
    if isinstance(function, functools.partial):
        return _call(function.func, [*function.args, *arguments], {**function.keywords, **keywords}, path)
    arguments = list(arguments)
    _bind(function, arguments, keywords, path, partly=False)
    try:
        return function(*arguments, **keywords)
    except (ValueError, AssertionError, TypeError) as error:
        # torch's classes check their arguments so; a TypeError says it for those (LSTM, Tanh) whose signature does not.
        of_arguments = not isinstance(error, TypeError) or _takes_any(inspect.signature(function))
        if function.__module__.partition(".")[0] == "torch" and of_arguments:
            raise ConfigError(f"{path}: {error}") from error
        # The fork's own code: a ValueError is how Python says a wrong value. Any other may be a bug, and keeps its
        # traceback; this one keeps its line.
        if type(error) is ValueError:
            raise ConfigError(f"{path}: {error} ({_raised_at(error, function)})") from error
        raise
    except RuntimeError as error:  # of options that exclude each other; a model's may be the machine's: no memory
        if type(error) is RuntimeError and function.__module__.startswith("torch.optim"):
            raise ConfigError(f"{path}: {error}") from error
        raise


def _raised_at(error: Exception, function: Any) -> str:
    """The line of the function's own file that an error came through last."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{function.__module__}, line {lines[-1]}" if lines else str(function.__module__)


def _bind(function: Any, arguments: list[Any], keywords: dict[str, Any], path: str, *, partly: bool) -> None:
    """Compare arguments and signature before the call, so that a TypeError inside it stays what it is: a bug."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # compiled code without a signature: the call itself will tell
    try:
        signature.bind_partial(*arguments, **keywords) if partly else signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ConfigError("\n".join(_misfits(function.__qualname__, signature, keywords, path, str(error)))) from None


def _misfits(name: str, signature: inspect.Signature, keywords: dict[str, Any], path: str, error: str) -> list[str]:
    named = {
        key: parameter
        for key, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes = f"It takes: {', '.join(named)}." if named else "It takes none."
    lines = [
        f"{join(path, key)}: {name} has no argument {shown(key)}.{closest(key, named)} {takes}"
        for key in keywords
        if key not in named and not _takes_any(signature)
    ]
    return lines or [f"{path}: {name}: {error}. {takes}"]


def _takes_any(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
