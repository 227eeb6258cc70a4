"""Give Python's garbage collector less work. It would walk through all of torch's objects again and again."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def permanent() -> Iterator[None]:
    """Keep all objects that exist after this block out of garbage collection, for as long as the process lives.

    This is meant for the import of torch, which makes a million objects and no garbage. Walking through them took a
    third of the import, and 0.7 s at exit.
    """
    # In a sweep, the first job has imported everything. What exists now includes that job's garbage.
    if gc.get_freeze_count():
        yield
        return
    with growing():
        try:
            yield
        finally:
            gc.freeze()


@contextlib.contextmanager
def growing() -> Iterator[None]:
    """Turn the collector off inside this block, for code that makes many objects and keeps nearly all of them.

    Cyclic garbage of any thread stays until the block ends.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave() -> None:
    """Prepare the process to end, as its last call. Python then skips its final search for garbage."""
    gc.freeze()
