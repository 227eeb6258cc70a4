"""Aim as a tracker: a local repository of Aim's, or an Aim server.

Rooms, in reading order:
    address   where Aim keeps its runs and shows them, and whether that place works
    contents  a run's params in the form in which Aim keeps them
    store     the calls to Aim's SDK; in the tracker's process alone
"""

from savepoint import system
from savepoint.trackers.aim.address import absent, check, front, locate, page, serve
from savepoint.trackers.kinds import Kind
from savepoint.trackers.process import Message
from savepoint.trackers.store import Store

__all__ = ["KIND"]


def _connect(order: Message) -> Store:
    check(order)
    with system.memory.permanent():
        import aim  # noqa: F401

        from savepoint.trackers.aim import store
    return store.connect(order)


KIND = Kind(
    title="Aim",
    environment={},  # Aim 3.29 sends no telemetry
    locate=locate,
    absent=absent,
    page=page,
    front=front,
    serve=serve,
    connect=_connect,
    explain=lambda error, order: None,
)
