"""Describe each kind of tracker without importing its library. A kind is a package here, or a module of the project."""

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
    """A kind of tracker. `savepoint.trackers.<name>` or the project's `trackers.<name>` defines it as `KIND`.

    title: its name for people. environment: variables that the tracker's process gets unless they are set already.
    locate: settings, repository, a directory for locks → the store's location, as part of an order. `uri` names the
    store for people; the other keys are the kind's own. Raises ConfigError if the store cannot be used. Asks no server.
    absent: a location → whether it is a local store that no run has created yet.
    page: a location, and the path of a run or sweep → its page. front: a location → the page that lists the runs.
    serve: a local store's location, a port → the server of its page, for this machine only. Raises UserError if the
    server cannot work.
    connect: a location → the opened store; called in the tracker's process. Raises UserError if waiting is pointless.
    explain: an error of the store, the order → what the error means, or None if the error's own text is good enough.
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
    """Return the kind with this name: a package beside this module, or a module of the project's package `trackers`.

    The kind's library is not imported. Raises: ConfigError if there is no such kind.
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
        raise ConfigError(f"tracker.kind={name}: {module} must define KIND, a savepoint.trackers.Kind.")
    return kind
