"""ClearML as a tracker: a ClearML server, or offline sessions in a directory.

Rooms, in reading order:
    address   find the server or the directory of offline sessions, and check that ClearML is installed
    contents  names, points and pictures in the form in which ClearML keeps them
    store     the calls to a server; in the tracker's process alone
    offline   runs that end as offline sessions
    session   write one such session with ClearML's own SDK, in a process of its own
"""

from savepoint import system
from savepoint.trackers.clearml.address import absent, check, front, locate, page, serve
from savepoint.trackers.kinds import Kind
from savepoint.trackers.process import Message
from savepoint.trackers.store import Store

__all__ = ["KIND"]


def _connect(order: Message) -> Store:
    check(order)
    if order["offline"] is not None:
        from savepoint.trackers.clearml.offline import OfflineStore

        return OfflineStore(order)
    with system.memory.permanent():
        from savepoint.trackers.clearml import store
    return store.connect(order)


KIND = Kind(
    title="ClearML",
    environment={},  # ClearML's SDK looks for a newer version of itself when it makes a task, which only `session` does
    locate=locate,
    absent=absent,
    page=page,
    front=front,
    serve=serve,
    connect=_connect,
    explain=lambda error, order: None,  # the messages of `session` are clear enough
)
