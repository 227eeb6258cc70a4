"""Compare a value of a config with a type annotation, and say in words what was expected.

The comparison is strict, because no value is converted: text is no number, true is no whole number. A whole number is
accepted where a float is annotated, and stays a whole number. A list is accepted where a tuple is annotated, because
YAML has no tuples. This uses the standard library only: `train.py` checks settings before it pays for importing torch.
"""

import collections.abc
import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Mapping

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
_KINDS = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a fraction",
    str: "text",
    types.NoneType: "null",
    dict: "a group",
    list: "a list",
}


def misfit(value: object, annotation: typing.Any) -> str | None:
    """Return "must be …, and is …" if `value` does not fit `annotation`, or None if it does.

    A plain value fits every class that is neither plain nor torch's, since its constructor may convert the value, as
    `Path` does. Annotations that are not known here fit everything.

    >>> misfit("x", float | None), misfit([1, 2], tuple[int, ...]), misfit(1, float)
    ('must be a number or null, and is text', None, None)
    """
    if _fits(value, annotation):
        return None
    expected, found = describe(annotation), kind(value)
    literal = typing.get_origin(annotation) is typing.Literal
    return f"must be {expected}" if literal or found in expected else f"must be {expected}, and is {found}"


def kind(value: object) -> str:
    """Return the words for the type of a value: "a whole number", "text", "a list", …"""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def describe(annotation: typing.Any) -> str:
    """Return the words for an annotation. Members of a union that no plain value can express are left out.

    >>> describe(float | None), describe(typing.Literal["cos", "linear"]), describe(tuple[float, float])
    ('a number or null', "one of 'cos', 'linear'", 'a list of 2, each item a number')
    """
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if annotation is None:
        return "null"
    if _is_union(origin):
        known = [each for each in arguments if each in _WORDS or typing.get_origin(each) or not isinstance(each, type)]
        return " or ".join(dict.fromkeys(describe(each) for each in known or arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        items = dict.fromkeys(describe(each) for each in arguments)
        return f"a list of {len(arguments)}, each item {' or '.join(items)}"
    if _is(origin or annotation, collections.abc.Mapping):
        return "a group"
    if _is_series(origin or annotation):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return "something to call, named by a _target_"
    return f"an object ({getattr(annotation, '__name__', annotation)}), named by a _target_"


def _fits(value: typing.Any, annotation: typing.Any) -> bool:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if _is_union(origin):
        return any(_fits(value, each) for each in arguments)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation in (bool, int, str):
        return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return callable(value)
    if not isinstance(container := origin or annotation, type):
        return True  # Any, a type variable, a forward reference
    return _fits_class(value, container, arguments)


def _fits_class(value: typing.Any, container: type, arguments: tuple[typing.Any, ...]) -> bool:
    if isinstance(value, dict) and _is(container, Mapping):
        return len(arguments) != 2 or all(_fits(each, arguments[1]) for each in value.values())
    if isinstance(value, list) and _is_series(container):
        if container is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return not arguments or all(_fits(each, arguments[0]) for each in value)
    if isinstance(value, str) and issubclass(str, container):
        return arguments in ((), (str,), (typing.Any,))
    if type(value) in _KINDS:
        return not (
            _is_series(container) or _is(container, Mapping) or container.__module__.partition(".")[0] == "torch"
        )
    # A partial stands for what it makes. A protocol that is not runtime-checkable cannot be asked.
    if isinstance(value, functools.partial) or getattr(container, "_is_protocol", False):
        return True
    return isinstance(value, container)


def _is_union(origin: object) -> bool:
    return origin is typing.Union or origin is types.UnionType


def _is_series(container: object) -> bool:
    """Whether a container is a list, a tuple or a set, or an abstract class of those: a tensor is iterable too."""
    if _is(container, Mapping):
        return False
    abstract = getattr(container, "__module__", "") == "collections.abc" and _is(container, Iterable)
    return abstract or any(_is(container, each) for each in (list, tuple, set, frozenset))


def _is(container: object, ancestor: type) -> bool:
    return isinstance(container, type) and issubclass(container, ancestor)


def hints(function: typing.Any) -> dict[str, typing.Any]:
    """Return the annotation of each argument of a function or a class, without those that cannot be evaluated."""
    called: typing.Any = typing.cast(typing.Any, function).__init__ if isinstance(function, type) else function
    function = inspect.unwrap(called)
    # torch imports some of these names for type checkers only.
    names = vars(typing) | vars(collections.abc) | getattr(function, "__globals__", {})
    found: dict[str, typing.Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError, TypeError, AttributeError, SyntaxError):
            found |= typing.get_type_hints(alone, names)
    return found
