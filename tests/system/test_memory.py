"""When Python's garbage collector rests, and that it never rests for good."""

import gc
from collections.abc import Iterator

import pytest

from savepoint.system import memory


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


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_what_is_imported_is_never_searched_and_all_else_is_again() -> None:
    with memory.permanent():
        assert not gc.isenabled() and gc.get_freeze_count() == 0
    assert gc.isenabled() and gc.get_freeze_count() > 0


@pytest.mark.usefixtures("thawed")
def test_an_import_that_fails_does_not_switch_the_collector_off() -> None:
    with pytest.raises(ImportError), memory.permanent():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.usefixtures("thawed")
def test_what_a_job_of_a_sweep_left_is_not_kept_by_the_next() -> None:
    with memory.permanent():
        pass
    before = gc.get_freeze_count()
    garbage: list[list[int]] = [[] for _ in range(1000)]
    with memory.permanent():
        assert gc.isenabled()
    # Not equal: what is frozen is still freed when nothing refers to it any more.
    assert gc.get_freeze_count() < before + len(garbage)


@pytest.mark.usefixtures("thawed")
def test_a_process_ends_without_a_look_at_what_it_gives_back() -> None:
    memory.leave()
    assert gc.get_freeze_count() > 0
