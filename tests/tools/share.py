"""Mark most of the cases that ask one question as long: `make test` runs a few of them, `make test-all` every one."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], keep: Callable[[Any], bool]) -> list[Any]:
    """Return a parameter for each case. keep: whether `make test` runs it. A tuple is one case of several arguments."""
    listed = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        listed.append(pytest.param(*values, marks=() if keep(case) else pytest.mark.long))
    assert any(not each.marks for each in listed), "at least one of them in `make test`"
    return listed
