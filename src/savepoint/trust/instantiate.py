"""Build the objects that a config describes.

A config may come from a stranger's checkpoint, and importing and calling a `_target_` is a known way to run someone's
code (CVE-2025-23304, CVE-2026-22584). So `make` checks a node and builds from the very object that it checked.
"""

import contextlib
import functools
import inspect
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from savepoint.config import closest, hints, misfit
from savepoint.errors import BuildError, ConfigError, UserError
from savepoint.trust.policy import SPECIAL, check_values
from savepoint.trust.targets import resolve
from savepoint.trust.text import join_path, shown

# Arguments that torch annotates as one number, although it also takes a list: one number for each parameter group.
PER_GROUP = {"CyclicLR": ("base_momentum", "max_momentum"), "SWALR": ("swa_lr",)}

_WRONG_VALUE = (ValueError, AssertionError, TypeError, RuntimeError)  # what torch raises for a wrong value
_PLAIN = (types.NoneType, bool, int, float, str, list)


def make(node: object, *, path: str, source: Path) -> Any:
    """Check a node of a config and build what it describes.

    A dict with a `_target_` becomes that object; objects inside it are built first. Everything else stays plain.
    `_partial_: true` gives a functools.partial, `_args_` are positional arguments, `_target_: null` gives None.

    path: the place of `node` in the whole config. source: the directory that holds the `project` package.
    Raises: ConfigError for a value or class that is not allowed, and for arguments that do not fit the class;
    BuildError if the class fails in another way.
    """
    faults = check_values(node, source=source, path=path)
    if faults:
        raise ConfigError("\n".join(faults))
    return _build(node, path, source)


def call(function: Callable[..., Any], *arguments: Any, path: str, **keywords: Any) -> Any:
    """Call what `make` returned for a node with `_partial_`. Faults are worded like those of `make`."""
    return _call(function, arguments, keywords, path)


@contextlib.contextmanager
def _naming(path: str, function: Any, keywords: dict[str, Any] | None = None) -> Iterator[None]:
    """Name the config's key and class in whatever is raised while `function` builds something.

    keywords: the arguments that the config gives.
    Raises: ConfigError for a value that torch or the fork's own code refuses, BuildError for any other exception, which
    may be a bug in the class as well as a wrong value. Both have the exception as their `__cause__`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a class may raise: the line names it, and __cause__ keeps it
        of_torch = function.__module__.partition(".")[0] == "torch"
        refused = of_torch or type(error) is ValueError
        words = " ".join(str(error).split())
        if not isinstance(error, _WRONG_VALUE if of_torch else ValueError):
            words = f"{type(error).__name__}: {words}"
        if not of_torch:
            words += f" ({_raised_at(error, function)})"
        where = _blamed(path, keywords or {}, str(error))
        raise (ConfigError if refused else BuildError)(f"{where}: {function.__qualname__}: {words}") from error


def _blamed(path: str, keywords: dict[str, Any], words: str) -> str:
    """Return "path.key=value" if an error's words point at one argument, "path (key=value, …)" if at several.

    keywords: the arguments that the config gives. words: the error's.
    """
    given = {key: value for key, value in keywords.items() if isinstance(value, _PLAIN)}
    named = {key for key in given if _mentions(words, key)}
    valued = {key for key, value in given.items() if any(_mentions(words, str(each)) for each in _flat(value))}
    found = named & valued or named or valued
    if len(found) == 1:
        (key,) = found
        return f"{join_path(path, key)}={shown(given[key])}"
    listed = ", ".join(f"{key}={shown(value)}" for key, value in given.items() if key in found)
    return f"{path} ({listed})" if listed else path


def _mentions(words: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(text)}(?!\w|\.\d)", words) is not None


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
    bound = _bind(target, arguments, keywords, path, partly=bool(node.get("_partial_")))
    if bound is not None:
        _check_types(target, bound, path)
    if node.get("_partial_"):
        return functools.partial(target, *arguments, **keywords)
    return _call(target, arguments, keywords, path)


def _call(function: Any, arguments: Iterable[Any], keywords: dict[str, Any], path: str) -> Any:
    if isinstance(function, functools.partial):
        return _call(function.func, [*function.args, *arguments], {**function.keywords, **keywords}, path)
    arguments = list(arguments)
    _bind(function, arguments, keywords, path, partly=False)
    with _naming(path, function, keywords):
        return function(*arguments, **keywords)


def _raised_at(error: Exception, function: Any) -> str:
    """Return the module of a function, and the last line in it that an error passed through."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{function.__module__}, line {lines[-1]}" if lines else str(function.__module__)


def _check_types(function: Any, bound: inspect.BoundArguments, path: str) -> None:
    """Compare the arguments that a config gives with the annotations of the signature. Nothing is converted."""
    annotations, parameters = hints(function), bound.signature.parameters
    faults = []
    for name, key, value in _spread(bound):
        unset = value is None and parameters[name].default is None
        if name in annotations and not unset and name not in PER_GROUP.get(function.__name__, ()):
            fault = misfit(value, annotations[name])
            faults += [f"{join_path(path, key)}={shown(value)}: {fault}.{_decoding(value)}"] if fault else []
    if faults:
        raise ConfigError("\n".join(faults))


def _spread(bound: inspect.BoundArguments) -> Iterator[tuple[str, str, Any]]:
    """Yield each argument: the parameter that takes it, its key in the config, its value."""
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((name, "_args_", each) for each in value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from ((name, key, each) for key, each in value.items())
        else:
            yield name, name, value


def _decoding(value: object) -> str:
    """Say how an environment variable becomes a number, if `value` is a text that reads as one."""
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return " A variable of the environment is text: ${oc.decode:${oc.env:NAME}} makes it a number."


def _bind(
    function: Any, arguments: list[Any], keywords: dict[str, Any], path: str, *, partly: bool
) -> inspect.BoundArguments | None:
    """Compare arguments and signature before the call. Returns None for compiled code, which has no signature.

    Raises: ConfigError for an argument that is missing, unknown or given twice.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    try:
        return (signature.bind_partial if partly else signature.bind)(*arguments, **keywords)
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
