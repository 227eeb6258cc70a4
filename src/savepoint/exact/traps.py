"""Sources of what no seed decides, watched: where code of the project asks for unseeded randomness, or for the clock.

For `verify --exact` alone. Each source works as before, and notes the line of the project that asked. An unseeded
generator deep inside a library counts for the line that called the library; a clock, which libraries read all the time,
counts only where the project itself reads it.
"""

import calendar
import datetime
import functools
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

UNSEEDED, CLOCK = "without a seed", "the clock"
BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class Traps:
    """project: the directory whose code is watched. notes: the file that gets a line for each place.

    ahead: seconds by which the time of day is ahead for the project's own code, so that what depends on the hour or the
    day shows between two runs of the same minute. Durations stay what they are.
    """

    def __init__(self, project: Path, notes: Path, *, ahead: int = 0) -> None:
        self._project, self._notes, self._ahead = f"{project}{os.sep}", notes, ahead
        self._seen: set[str] = set()

    def install(self) -> None:
        """For the rest of this process, and of those that it forks. Before a module of the project is imported."""
        for name in ("default_rng", "seed"):
            self._function(np.random, name, self._unseeded)
        for name in ("RandomState", "SeedSequence", *BIT_GENERATORS):
            self._class(np.random, name, self._unseeded)
        self._function(random, "seed", self._unseeded)
        self._class(random, "Random", self._unseeded)
        self._class(random, "SystemRandom", self._always)
        self._class(torch, "Generator", None, seed=self._always)
        always = {
            os: ("urandom", "getrandom", "getpid"),
            secrets: ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice"),
            uuid: ("uuid1", "uuid4"),
            torch: ("seed",),
            torch.random: ("seed",),
            torch.cuda: ("seed", "seed_all"),
        }
        for module, names in always.items():
            for name in names:
                if hasattr(module, name):
                    self._function(module, name, self._always)
        self._clocks()

    def _clocks(self) -> None:
        for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
            self._function(time, name, self._clock)
            self._function(time, f"{name}_ns", self._clock)
        self._function(time, "time", self._clock, shift=lambda seconds: seconds + self._ahead)
        self._function(time, "time_ns", self._clock, shift=lambda value: value + self._ahead * 1_000_000_000)
        local, universal = time.localtime, time.gmtime
        no_more = self._clock_unless(0)
        self._function(time, "localtime", no_more, shift=lambda now: local(time.mktime(now) + self._ahead))
        self._function(time, "gmtime", no_more, shift=lambda now: universal(calendar.timegm(now) + self._ahead))
        self._function(time, "ctime", no_more)
        self._function(time, "strftime", self._clock_unless(1))

        def later(value: Any) -> Any:
            return value + datetime.timedelta(seconds=self._ahead)

        self._class(datetime, "datetime", None, shift=later, now=self._clock, utcnow=self._clock, today=self._clock)
        self._class(datetime, "date", None, shift=later, today=self._clock)

    def _function(self, module: Any, name: str, rule: "Rule", *, shift: Callable[[Any], Any] | None = None) -> None:
        real = getattr(module, name)

        @functools.wraps(real)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            own = rule(f"{module.__name__}.{name}", (*arguments, *keywords.values()))
            given = real(*arguments, **keywords)
            return shift(given) if shift is not None and own else given

        setattr(module, name, watched)

    def _class(
        self,
        module: Any,
        name: str,
        rule: "Rule | None",
        *,
        shift: Callable[[Any], Any] | None = None,
        **methods: "Rule",
    ) -> None:
        """Put a class in a class's place. It makes the real thing, but where a method of an instance is watched."""
        real = getattr(module, name)
        told = f"{module.__name__}.{name}"

        class Watched(type(real)):  # type: ignore[misc]
            def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
                if cls is not watched:  # a class that was made from it
                    return super().__call__(*arguments, **keywords)
                if rule is not None:
                    rule(told, (*arguments, *keywords.values()))
                return super().__call__(*arguments, **keywords) if real is GENERATOR else real(*arguments, **keywords)

            def __instancecheck__(cls, instance: Any) -> bool:
                return isinstance(instance, real) if cls is watched else super().__instancecheck__(instance)

            def __subclasscheck__(cls, other: type) -> bool:
                return issubclass(other, real) if cls is watched else super().__subclasscheck__(other)

        inside = {method: _method(real, method, f"{told}.{method}", each, shift) for method, each in methods.items()}
        watched = Watched(name, (real,), {"__module__": real.__module__, "__doc__": real.__doc__, **inside})
        setattr(module, name, watched)

    # Rules: what is noted, and whether the project itself asked.

    def _unseeded(self, call: str, values: tuple[Any, ...]) -> bool:
        return all(value is None for value in values) and self._note(f"{call}() {UNSEEDED}", deep=True)

    def _always(self, call: str, _values: tuple[Any, ...]) -> bool:
        what = "that is another in every process" if call == "os.getpid" else "that no seed decides"
        return self._note(f"{call}(), {what}", deep=call != "os.getpid")

    def _clock(self, call: str, _values: tuple[Any, ...]) -> bool:
        return self._note(f"{call}(), {CLOCK}", deep=False)

    def _clock_unless(self, given: int) -> "Rule":
        """For functions that read the clock only if they get no more arguments than that."""
        return lambda call, values: len(values) <= given and self._note(f"{call}(), {CLOCK}", deep=False)

    def _note(self, what: str, *, deep: bool) -> bool:
        """Returns: whether the caller is the project itself."""
        frame = sys._getframe(3)  # past the rule and the function in the source's place
        while frame.f_code.co_filename == __file__ and frame.f_back:  # a rule that is a lambda is one more
            frame = frame.f_back
        own = frame.f_code.co_filename.startswith(self._project)
        while deep and not frame.f_code.co_filename.startswith(self._project):
            # What a library does while it is imported is no part of what the project computes.
            if frame.f_back is None or frame.f_code.co_filename.startswith("<frozen importlib"):
                return False
            frame = frame.f_back
        if own or deep:
            self._write(f"{frame.f_code.co_filename}:{frame.f_lineno}", what)
        return own

    def _write(self, place: str, what: str) -> None:
        if place not in self._seen:
            self._seen.add(place)
            with self._notes.open("a", encoding="utf-8") as file:  # in one write: workers write to it as well
                file.write(f"{place}\t{what}\n")


Rule = Callable[[str, tuple[Any, ...]], bool]
GENERATOR = torch.Generator


def _method(real: Any, name: str, told: str, rule: Rule, shift: Callable[[Any], Any] | None) -> Any:
    if real is GENERATOR:

        def watched(self: Any) -> Any:
            rule(told, ())
            return getattr(real, name)(self)

        return watched

    def of_class(cls: type, *arguments: Any, **keywords: Any) -> Any:
        own = rule(told, ())
        given = getattr(real, name)(*arguments, **keywords)
        return shift(given) if shift is not None and own else given

    return classmethod(of_class)
