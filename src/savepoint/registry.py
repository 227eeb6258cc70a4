"""Have objects of your own saved that change in training and belong to no model, optimizer or schedule.

Register each in the constructor of a model, a task or a data set:

    self.queue = register("queue", Queue())

Its state is then part of every checkpoint, and a resumed run has it back before its first update. An object that a data
set registers has to change in the main process: every loading worker has a copy of its own, which is never saved.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar


class Stateful(Protocol):
    """An object that can be registered. `checkpoint.split` says what its state may hold."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


T = TypeVar("T", bound=Stateful)
_open: list[dict[str, Stateful]] = []


def register(name: str, stateful: T) -> T:
    """Remember an object under a name, and return it. Outside of a run, in a notebook, nothing is remembered.

    Raises: ValueError if the name is taken, or the object has no state_dict and load_state_dict.
    """
    if not (callable(getattr(stateful, "state_dict", None)) and callable(getattr(stateful, "load_state_dict", None))):
        raise ValueError(f"register({name!r}): a {type(stateful).__name__} has no state_dict and load_state_dict")
    if _open:
        if name in _open[-1]:
            raise ValueError(f"register({name!r}): the name is taken; each registered thing needs one of its own")
        _open[-1][name] = stateful
    return stateful


@contextlib.contextmanager
def collecting() -> Iterator[dict[str, Stateful]]:
    """Collect whatever is registered inside in the mapping that this yields: name to object."""
    _open.append({})
    try:
        yield _open[-1]
    finally:
        _open.pop()
