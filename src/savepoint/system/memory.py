"""Less work for Python's garbage collector, which otherwise looks through all of torch again and again."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def permanent() -> Iterator[None]:
    """What is imported inside stays for as long as the process: the collector never looks at it.

    Importing torch makes a million objects, none of them garbage: searching them took a third of the import, and 0.7 s
    at the exit.
    """
    if gc.get_freeze_count():  # a sweep's next job: nothing is imported any more, and what the last one left is garbage
        yield
        return
    with growing():
        try:
            yield
        finally:
            gc.freeze()


@contextlib.contextmanager
def growing() -> Iterator[None]:
    """Many objects are made inside, and nearly all are kept: the collector would look through them again and again.

    For work that ends: garbage in circles that is made inside, by any thread, stays until then.
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
    """Call it last: the process ends without a look at what it is about to give back as a whole."""
    gc.freeze()
