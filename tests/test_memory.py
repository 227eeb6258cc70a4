"""When Python's garbage collector rests, and that it never rests for good."""

import gc

import pytest

from savepoint import memory


def test_no_garbage_is_searched_for_while_memory_grows() -> None:
    with memory.growing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_is_searched_for_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="odd"), memory.growing():
        raise ValueError("odd")
    assert gc.isenabled()


def test_who_switched_the_collector_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with memory.growing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
