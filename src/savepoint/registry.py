"""Things of your own that change while training, and are in no model, optimizer or schedule: saved with all the rest.

In the constructor of a model, a task or a data set, one line for each:

    self.queue = register("queue", Queue())

From then on its state is part of every checkpoint, and a resumed run has it back before its first update. What a data
set registers has to change in the main process: one that changes in loading workers is many, none of them this one.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar


class Stateful(Protocol):
    """What can be registered: torch's own pair of methods. A state is whatever `tree.split` takes."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


T = TypeVar("T", bound=Stateful)
_open: list[dict[str, Stateful]] = []


def register(name: str, thing: T) -> T:
    """Give it back, and remember it under a name of its own. Outside of a run, in a notebook, that is all.

    Raises: ValueError if the name is taken, or the thing has no state_dict and load_state_dict.
    """
    if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
        raise ValueError(f"register({name!r}): a {type(thing).__name__} has no state_dict and load_state_dict")
    if _open:
        if name in _open[-1]:
            raise ValueError(f"register({name!r}): the name is taken; each registered thing needs one of its own")
        _open[-1][name] = thing
    return thing


@contextlib.contextmanager
def collecting() -> Iterator[dict[str, Stateful]]:
    """Gives the mapping in which everything is that is registered inside."""
    _open.append({})
    try:
        yield _open[-1]
    finally:
        _open.pop()
