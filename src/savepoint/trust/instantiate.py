"""Build the objects that a config describes.

A config may come from a stranger's checkpoint. Whatever has a `_target_` is imported and called, which is a known way
to run someone's code (CVE-2025-23304, CVE-2026-22584): so `make` checks a node and builds from that very object.
"""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from savepoint.config import closest
from savepoint.errors import ConfigError
from savepoint.trust.policy import SPECIAL, check_values
from savepoint.trust.targets import resolve
from savepoint.trust.text import join_path, shown


def make(node: object, *, path: str, source: Path) -> Any:
    """What `node` describes: a dict with a `_target_` becomes that object, built inner first; the rest stays plain.

    `_partial_: true` gives a functools.partial, `_args_` are positional arguments, `_target_: null` gives None.
    Checks `node` and builds from that very object, so there is no way to build what was not checked.
    Raises: ConfigError for what is not allowed and for arguments that do not fit.
    """
    faults = check_values(node, source=source, path=path)
    if faults:
        raise ConfigError("\n".join(faults))
    return _build(node, path, source)


def call(function: Callable[..., Any], *arguments: Any, path: str, **keywords: Any) -> Any:
    """Call what `make` gave for a `_partial_`, with the wording of `make` for arguments that do not fit."""
    return _call(function, arguments, keywords, path)


def _build(node: Any, path: str, source: Path) -> Any:
    if isinstance(node, list):
        return [_build(item, join_path(path, index), source) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    plain_keys = [key for key in node if not SPECIAL.fullmatch(key)]
    keywords = {key: _build(node[key], join_path(path, key), source) for key in plain_keys}
    if "_target_" not in node:
        return keywords
    if node["_target_"] is None:
        return None
    target = resolve(node["_target_"], path=join_path(path, "_target_"), source=source)
    arguments = _build(node.get("_args_", []), join_path(path, "_args_"), source)
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
        f"{join_path(path, key)}: {name} has no argument {shown(key)}.{closest(key, named)} {takes}"
        for key in keywords
        if key not in named and not _takes_any(signature)
    ]
    return lines or [f"{path}: {name}: {error}. {takes}"]


def _takes_any(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
