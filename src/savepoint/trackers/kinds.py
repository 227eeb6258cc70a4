"""What is known of each kind of tracker without importing its library. A kind is a package beside this module."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from savepoint import trust
from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Page, Server
from savepoint.trackers.store import Store


@dataclass(frozen=True)
class Kind:
    """A kind of tracker, as `savepoint.trackers.<name>` or the project's `trackers.<name>` gives it in `KIND`.

    title: its name for people. environment: variables that its process gets where they are not set.
    locate: settings, repository, a directory for locks → where the store is, as part of an order. `uri` names it for
    people; the rest is the kind's own. Raises ConfigError if the store cannot be used, and asks no server.
    absent: whether the store, so located, is a local one that no run has created yet.
    page: the store, and the path of a run or sweep → its page. front: the store → the page that lists the runs.
    serve: a local store, a port → the server of its page, for this machine only. Raises UserError if it cannot work.
    connect: the store → the store, opened; called in the tracker's process. Raises UserError if waiting is pointless.
    explain: an error of the store, the order → what it means to a person, or None: its own text is good enough.
    """

    title: str
    environment: Mapping[str, str]
    locate: Callable[[TrackerSettings, Path, Path], Message]
    absent: Callable[[Message], bool]
    page: Callable[[Message, str], Page]
    front: Callable[[Message], Page]
    serve: Callable[[Message, str], Server]
    connect: Callable[[Message], Store]
    explain: Callable[[Exception, Message], str | None]


def load(name: str) -> Kind:
    """Return the kind with this name: one of this package, or a module of the project's package `trackers`.

    Its library is not imported. Raises: ConfigError if there is no such kind.
    """
    source = Path(__file__).resolve().parents[2]
    own = f"{trust.package(source)}.trackers.{name}"
    if (Path(__file__).parent / name).is_dir():
        module = f"savepoint.trackers.{name}"
    elif source.joinpath(*own.split(".")).with_suffix(".py").is_file():
        module = own
    else:
        raise ConfigError(f"tracker.kind={name}: there is no src/{own.replace('.', '/')}.py.")
    kind = getattr(importlib.import_module(module), "KIND", None)
    if not isinstance(kind, Kind):
        raise ConfigError(f"tracker.kind={name}: {module} has no KIND, made by savepoint.trackers.Kind.")
    return kind
