"""Survey what a run keeps outside its saved state: attributes, module globals, caches, by name and by digest.

Such values are no fault by themselves: a cache may fill up and change nothing. When two runs differ, these values are
where to look for the cause.
"""

import collections
import contextlib
import contextvars
import functools
import inspect
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from savepoint.data import spread
from savepoint.exact import probe
from savepoint.exact.probe import DEPTH, ITEMS, PLAIN
from savepoint.training import Parts, TrainState

LEAVES = 4000  # values of one object that are read
MODULE = frozenset(vars(nn.Module())) - {"training"}  # torch's own attributes: parameters, hooks, …
# torch's too, on any object. FSDP resizes its tensors, which it could not after one of them was read as an array.
TORCHS = ("_torchdynamo", "__composable_api_state")
HOOKS = tuple(sorted(name for name in MODULE if name.endswith("_hooks")))
CONTAINERS = (Mapping, set, frozenset, list, tuple, collections.deque)
CACHED = type(functools.cache(len))


class Value(NamedTuple):
    """A surveyed value. digest: equal for equal values. shown: the value in a few words."""

    digest: str
    shown: str


def survey(state: TrainState, parts: Parts, *, package: str) -> dict[str, Value]:
    """Return every value found, by name: `model.layers.1.calls`, `data.train.cache`, `project.data.mine.COUNT`.

    package: the name of the project's own package, whose globals are visited too.
    """
    known: list[Any] = [
        *state.model.modules(),
        *state.registered.values(),
        *(part for one in state.optimizers.values() for part in (one.optimizer, one.scheduler, one.scaler)),
    ]
    known += [*state.model.parameters(), *_persistent(state.model)]
    walk = _Walk({id(each): each for each in known}, package)
    for name, module in state.model.named_modules():
        walk.module(f"model.{name}".rstrip("."), module)
    for name, parameter in state.model.named_parameters():
        walk.root(f"model.{name}'s hooks", list((parameter._backward_hooks or {}).values()))
    walk.root("task", parts.task)
    for split in ("train", "val"):
        walk.root(f"data.{split}", getattr(parts, split).dataset)
    for name, one in state.optimizers.items():
        prefix = f"optimizers.{name}." if name else ""
        walk.attributes(f"{prefix}optimizer", one.optimizer, but=("state", "param_groups", "defaults"))
        walk.attributes(f"{prefix}scheduler", one.scheduler, but=("optimizer", *one.scheduler.state_dict()))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        walk.begin()
        walk.namespace(name, vars(sys.modules[name]), owner=name)
    return walk.found


def _persistent(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that a state_dict holds."""
    for module in model.modules():
        yield from (
            buffer
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        )


class _Walk:
    """A walk through objects.

    seen: objects that are saved or were visited, by identity; the walk skips them. package: the name of the project's
    own package.
    """

    def __init__(self, seen: dict[int, Any], package: str) -> None:
        self.found: dict[str, Value] = {}
        self._package = package
        self._seen = seen  # keeps the objects alive: a new object could get the identity of one that is gone
        self._left = LEAVES

    def begin(self) -> None:
        """Reset the budget before visiting the next object."""
        self._left = LEAVES

    def root(self, path: str, value: Any) -> None:
        self.begin()
        self.value(path, value)

    def module(self, path: str, module: nn.Module) -> None:
        """Visit what no state_dict of a module holds."""
        self.attributes(path, module, but=tuple(MODULE))
        for name in HOOKS:
            for hook in list((vars(module)[name] or {}).values()):
                self.value(f"{path}.{name}", hook)
        for name in sorted(module._non_persistent_buffers_set):
            if module._buffers.get(name) is not None:
                self.leaf(f"{path}.{name}", module._buffers[name], "a non-persistent buffer")

    def attributes(self, path: str, value: Any, *, but: tuple[str, ...] = ()) -> None:
        self.begin()
        for name, each in probe.attributes(value).items():
            if name not in but and not name.startswith(TORCHS):
                self.value(f"{path}.{name}", each)

    def namespace(self, path: str, names: Mapping[str, Any], *, owner: str) -> None:
        """Visit the globals of a module of the project, or the attributes of one of its classes."""
        for name, each in names.items():
            if name.startswith("__") or isinstance(each, types.ModuleType):
                continue
            if isinstance(each, type):
                if each.__module__ == owner and id(each) not in self._seen:
                    self._seen[id(each)] = each
                    self.namespace(f"{path}.{name}", dict(vars(each)), owner=owner)
            else:
                self.value(f"{path}.{name}", each)

    def value(self, path: str, value: Any, depth: int = 0) -> None:
        if self._left <= 0 or depth > DEPTH or isinstance(value, type | types.ModuleType | threading.Thread):
            return
        if type(value).__module__.startswith("torch._dynamo"):
            return
        if type(value).__name__ == "_WrappedHook":  # torch's, around a hook that may be anybody's
            value = value.hook
        if isinstance(value, PLAIN):
            self.leaf(path, value, repr(value[:40] if isinstance(value, str | bytes) else value))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if (generator := probe.generator_state(value)) is not None:
            self.leaf(path, generator, "a generator of random numbers")
        elif isinstance(value, Tensor | np.ndarray | np.generic):
            self.leaf(path, value, probe.few_words(value))
        elif isinstance(value, contextvars.ContextVar):
            self.value(path, value.get(None), depth)
        elif isinstance(value, CONTAINERS):
            self._container(path, value, depth)
        elif callable(value) and not isinstance(value, nn.Module):
            self._function(path, value, depth)
        else:
            self._other(path, value, depth)

    def leaf(self, path: str, value: Any, shown: str) -> None:
        self._left -= 1
        self.found[path] = Value(probe.digest(probe.sample(value)), shown)

    def _container(self, path: str, value: Any, depth: int) -> None:
        count = len(value)
        shown = f"{count} {'entry' if count == 1 else 'entries'}"
        if not isinstance(value, Mapping) and all(isinstance(each, PLAIN) for each in value):
            self.leaf(path, probe.contents(value), shown)
            return
        self.leaf(path, count, shown)
        if isinstance(value, set | frozenset):
            self.leaf(f"{path}{{}}", sorted(map(probe.text, value)) if count <= ITEMS else count, "entries")
        elif isinstance(value, Mapping):
            for key in list(value)[-ITEMS:]:  # the newest entries
                self.value(f"{path}[{probe.text(key)[:40]}]", value[key], depth + 1)
        else:
            for index in islice(spread(count), ITEMS):
                self.value(f"{path}[{index}]", value[index], depth + 1)

    def _function(self, path: str, function: Any, depth: int) -> None:
        """Visit what a function of the project remembers: its cache, closure, defaults and attributes."""
        if isinstance(function, classmethod | staticmethod | types.MethodType):
            self.value(path, function.__func__, depth)
            owner = getattr(function, "__self__", None)
            if type(owner).__module__.partition(".")[0] == self._package:  # perhaps nothing else refers to it
                self.value(path, owner, depth)
        elif isinstance(function, CACHED):
            misses = function.cache_info().misses
            self.leaf(path, misses, f"a cache of {misses} results")
        elif isinstance(function, functools.partial):
            self.value(f"{path}.func", function.func, depth + 1)
            self.value(f"{path}.args", [*function.args, function.keywords], depth + 1)
        elif not isinstance(function, types.FunctionType):
            if not isinstance(function, types.BuiltinFunctionType):
                self._other(path, function, depth)
        elif str(function.__module__).partition(".")[0] == self._package:
            self._remembered(path, function, depth)

    def _remembered(self, path: str, function: types.FunctionType, depth: int) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            with contextlib.suppress(ValueError):  # not yet filled
                self.value(f"{path}.{name}", cell.cell_contents, depth + 1)
        for index, default in enumerate(function.__defaults__ or ()):
            self.value(f"{path}'s default {index}", default, depth + 1)
        self.value(f"{path}'s defaults", function.__kwdefaults__, depth + 1)
        for name, each in vars(function).items():
            self.value(f"{path}.{name}", each, depth + 1)

    def _other(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, types.GeneratorType):
            local = inspect.getgeneratorlocals(value)
            self.leaf(path, (value.gi_frame.f_lasti if value.gi_frame else -1, str(list(local))), "a Python generator")
            inner: dict[str, Any] = local
        elif isinstance(value, nn.Module):  # it is no part of the model, so its weights are outside too
            tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
            inner = tensors | {name: each for name, each in vars(value).items() if name not in MODULE}
        else:
            inner = probe.attributes(value)
            if not inner:
                self.leaf(path, probe.position(value), f"a {type(value).__name__}")
        if inner and not isinstance(value, types.GeneratorType):
            self.leaf(path, type(value).__qualname__, f"a {type(value).__name__}")
        for name, each in inner.items():
            self.value(f"{path}.{name}", each, depth + 1)
