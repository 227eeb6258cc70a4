"""Watch the sources of randomness and time that no seed decides, and note which line of the project asks for them.

Only `verify --exact` uses this. Every source works as before. No class is replaced: C extensions, subclasses and type
checks depend on the real ones. Three means cover everything:

- Functions of a module (`time.time`, `os.urandom`) and Python methods (`random.Random.seed`) are wrapped in place.
- NumPy's generators are classes written in C. All fetch their entropy from one Python function, which is wrapped.
- Other methods of C classes (`datetime.now`, `torch.Generator.seed`) are watched in the project's own source, whose
  syntax tree is changed when it is imported.
"""

import ast
import builtins
import calendar
import copy
import datetime
import functools
import importlib.machinery
import linecache
import os
import random
import re
import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.random import _pickle, bit_generator

UNSEEDED, CLOCK = "without a seed", "the clock"
_CLOCKS = ("now", "utcnow", "today")  # methods of datetime's classes
# Decides from a call's arguments whether to note it. None stands for an argument that was left out.
Rule = Callable[[tuple[Any, ...]], bool]
Shift = Callable[[Any], Any]
_HOOK = "__savepoint_watched__"  # what the changed source of the project calls
# Unseeded draws in these modules do no harm: they name a file, or the generator is given another state at once.
_HARMLESS = frozenset(module.__file__ for module in (tempfile, copy, _pickle))


def _always(_values: tuple[Any, ...]) -> bool:
    return True


def _unseeded(values: tuple[Any, ...]) -> bool:
    return all(value is None for value in values)


def _seeds_nothing(_values: tuple[Any, ...]) -> bool:
    """Whether the call under way leaves a NumPy generator unseeded.

    `RandomState(seed)` makes an unseeded generator first, and seeds it then. Only the source of the call tells.
    """
    frame = _outside(sys._getframe())
    if frame is None:
        return True
    line, last, start, end = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    if line is None or line != last:
        return True
    call = linecache.getline(frame.f_code.co_filename, line).encode()[start:end].decode(errors="replace")
    return not re.search(r"\b(RandomState|cls)\((?!None\)|\))", call)


def _outside(frame: FrameType | None) -> FrameType | None:
    """Return the nearest caller that is no code of this module."""
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


class Traps:
    """Notes each place where the project asks for unseeded randomness or for the time.

    An unseeded generator deep inside a library counts for the line of the project that called the library. A clock,
    which libraries read all the time, counts only where the project itself reads it.

    project: the directory of the watched code. notes: the file that gets a line for each place. clock_offset: seconds
    that are added to the time of day that the project's own code reads. Two runs of the same minute then differ if they
    depend on the hour or the day. Durations stay what they are.
    """

    def __init__(self, project: Path, notes: Path, *, clock_offset: int = 0) -> None:
        self._project, self._notes = f"{project}{os.sep}", notes
        self._clock_offset = clock_offset
        self._places: set[str] = set()

    def install(self) -> None:
        """Watch for the rest of this process and of those it forks. Call it before the project is imported."""
        for name in ("default_rng", "seed"):
            self._wrap(np.random, name, f"calls numpy.random.{name}() {UNSEEDED}", _unseeded)
        self._wrap(bit_generator, "randbits", f"makes a NumPy generator {UNSEEDED}", _seeds_nothing)
        self._wrap(random, "seed", f"calls random.seed() {UNSEEDED}", _unseeded)
        # A generator of Python seeds itself when it is made.
        self._wrap_method(random.Random, "seed", f"makes a random.Random() {UNSEEDED}", _unseeded)
        self._wrap_method(random.SystemRandom, "seed", "makes a random.SystemRandom(), that no seed decides", _always)
        undecided = {
            os: ("urandom", "getrandom"),
            secrets: ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice"),
            uuid: ("uuid1", "uuid4"),
            torch: ("seed",),
            torch.random: ("seed",),
            torch.cuda: ("seed", "seed_all"),
        }
        for module, names in undecided.items():
            for name in filter(functools.partial(hasattr, module), names):
                self._wrap(module, name, f"calls {module.__name__}.{name}(), that no seed decides", _always)
        self._wrap(os, "getpid", "calls os.getpid(), that is another in every process", _always, deep=False)
        self._wrap_clocks()
        setattr(builtins, _HOOK, self._watched)
        sys.meta_path.insert(0, _Finder(Path(self._project).name))

    def _wrap_clocks(self) -> None:
        offset = self._clock_offset
        for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
            self._wrap_clock(name, _always)
            self._wrap_clock(f"{name}_ns", _always)
        self._wrap_clock("time", _always, lambda seconds: seconds + offset)
        self._wrap_clock("time_ns", _always, lambda nanoseconds: nanoseconds + offset * 1_000_000_000)
        # These read the clock only if no time is given.
        local, universal = time.localtime, time.gmtime
        self._wrap_clock("localtime", _unseeded, lambda now: local(time.mktime(now) + offset))
        self._wrap_clock("gmtime", _unseeded, lambda now: universal(calendar.timegm(now) + offset))
        self._wrap_clock("ctime", _unseeded)
        self._wrap_clock("strftime", lambda values: len(values) <= 1)

    def _wrap_clock(self, name: str, rule: Rule, shift: Shift | None = None) -> None:
        self._wrap(time, name, f"calls time.{name}(), {CLOCK}", rule, deep=False, shift=shift)

    def _wrap(
        self, module: ModuleType, name: str, words: str, rule: Rule, *, deep: bool = True, shift: Shift | None = None
    ) -> None:
        if hasattr(module, name):
            setattr(module, name, _Wrapped(getattr(module, name), self, words, rule, deep=deep, shift=shift))

    def _wrap_method(self, cls: type, name: str, words: str, rule: Rule) -> None:
        real = getattr(cls, name)

        @functools.wraps(real)
        def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if rule((*arguments, *keywords.values())):
                traps.note(words, deep=True)
            return real(self, *arguments, **keywords)

        traps = self
        setattr(cls, name, method)

    def _watched(self, method: Any) -> Any:
        """Return a method that the project looks up, wrapped if it reads the clock or draws a random seed."""
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if name == "seed" and isinstance(owner, torch.Generator):
            return _Wrapped(method, self, "calls torch.Generator.seed(), that no seed decides", _always)
        if name in _CLOCKS and isinstance(owner, type) and issubclass(owner, datetime.date):
            words = f"calls {owner.__module__}.{owner.__name__}.{name}(), {CLOCK}"
            later = datetime.timedelta(seconds=self._clock_offset)
            return _Wrapped(method, self, words, _always, deep=False, shift=lambda now: now + later)
        return method

    def note(self, words: str, *, deep: bool) -> bool:
        """Note the line of the project that asked. Returns: whether the project itself asked, and not a library.

        words: what was asked for. deep: whether a library that the project called counts for the project.
        """
        frame = _outside(sys._getframe())
        own = frame is not None and self._is_own(frame)
        while deep and frame and not self._is_own(frame):
            file = frame.f_code.co_filename
            # What a library does while it is imported is no part of what the project computes.
            frame = None if file in _HARMLESS or file.startswith("<frozen importlib") else frame.f_back
        if frame and (own or deep):
            self._write(f"{frame.f_code.co_filename}:{frame.f_lineno}", words)
        return own

    def _is_own(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(self._project)

    def _write(self, place: str, words: str) -> None:
        if place not in self._places:
            self._places.add(place)
            # Written in one piece, because loading workers write to the same file.
            with self._notes.open("a", encoding="utf-8") as file:
                file.write(f"{place}\t{words}\n")


class _Wrapped:
    """Stands in for a function. Unlike a Python function, it does not become a method in the body of a class."""

    def __init__(
        self,
        real: Callable[..., Any],
        traps: Traps,
        words: str,
        rule: Rule,
        *,
        deep: bool = True,
        shift: Shift | None = None,
    ) -> None:
        functools.update_wrapper(self, real)
        self._real, self._traps, self._words, self._rule = real, traps, words, rule
        self._deep, self._shift = deep, shift

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        noted = self._rule((*arguments, *keywords.values())) and self._traps.note(self._words, deep=self._deep)
        value = self._real(*arguments, **keywords)
        return self._shift(value) if noted and self._shift else value

    def __reduce__(self) -> str:
        return self._real.__qualname__  # pickled by name, as the real function is


class _Finder(importlib.machinery.PathFinder):
    """Finds the modules of the project's own package, and has their syntax trees changed as they are loaded."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:  # type: ignore[override]
        if fullname.partition(".")[0] != self._package:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        """Compile the changed source. Byte code on the disk is neither read nor written: it is that of the original."""
        tree = ast.fix_missing_locations(_Lookups().visit(ast.parse(self.get_data(self.path), self.path)))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Lookups(ast.NodeTransformer):
    """Pass every method with a watched name through `Traps._watched`: `x.now` becomes `watched(x.now)`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if node.attr not in (*_CLOCKS, "seed") or not isinstance(node.ctx, ast.Load):
            return node
        return ast.copy_location(ast.Call(ast.Name(_HOOK, ast.Load()), [node], []), node)

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.MatchValue:
        return node  # a pattern may not hold a call
