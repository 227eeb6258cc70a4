"""Where Aim keeps its runs and shows them. Aim is not imported."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Page, Server


def locate(settings: TrackerSettings, repository: Path, lock_dir: Path) -> Message:
    """Return the address of the store: from the environment, else from the config, else .aim in the repository.

    lock_dir: where processes lock a store on a server.
    Raises: ConfigError if Aim has no such store.
    """
    if settings.register_as is not None:
        raise ConfigError(f"tracker.register_as={settings.register_as}: Aim has no registry of models. Leave it out.")
    environment = os.environ.get("AIM_REPO", "").strip()
    uri = environment or settings.uri or "."
    if "://" in uri:
        _check_server(uri, f"AIM_REPO={environment}" if environment else f"tracker.uri={uri}")
        return {
            "uri": uri.rstrip("/"),
            "experiment": settings.experiment,
            "root": None,
            "artifacts": str(repository.absolute() / "aimartifacts"),
            "lock": str(lock_dir.absolute() / ".aim.lock"),
            "usual": False,
        }
    # A relative path in the environment starts at the current directory, as for `aim up`. One in the config starts at
    # the repository, so that it means the same place everywhere.
    root = (Path.cwd() if environment else repository.absolute()) / uri
    root = root.parent if root.name == ".aim" else root
    return {
        "uri": str(root / ".aim"),
        "experiment": settings.experiment,
        "root": str(root),
        "artifacts": str(root / "aimartifacts"),
        "lock": str(root / ".aim.lock"),
        "usual": root == repository.absolute(),
    }


def _check_server(uri: str, name: str) -> None:
    """Refuse an address that Aim has no client for. name: the setting that holds the address, for the message."""
    try:
        parts = urlsplit(uri)
        usable = parts.scheme == "aim" and bool(parts.hostname) and parts.port is not None
    except ValueError:
        usable, parts = False, urlsplit("")
    if parts.username or parts.password:
        raise ConfigError("The address of an Aim server has no user and no password: aim://<host>:<port>.")
    if not usable:
        raise ConfigError(f"{name}: this is no store of Aim's. Use a directory, or a server's aim://<host>:<port>.")


def absent(order: Message) -> bool:
    """Return whether the store is a local one that no run has created yet."""
    return order["root"] is not None and not Path(order["uri"]).exists()


def page(order: Message, path: str) -> Page:
    """Return the page of one run or of several. path: follows the server's address.

    An Aim server takes runs but shows none. `aim up` shows them, on the machine where the server's repository lies.
    """
    if order["root"] is None:
        return Page(None, f"{order['uri']}, whose page `aim up` serves on that machine: /", path)
    arguments = ("tracker=aim",) if order["usual"] else ("tracker=aim", f"tracker.uri={order['root']}")
    return Page(order["uri"], None, path, arguments)


def front(order: Message) -> Page:
    """Return the page that lists the runs."""
    return page(order, "runs")


def serve(order: Message, port: str) -> Server:
    """Return the command that serves the page of a local store. Raises: UserError if there is nothing to serve."""
    check(order)
    if absent(order):
        train = "Train one with tracker=aim, or check tracker.uri and AIM_REPO"
        raise UserError(f"{order['uri']} has no runs yet. {train}.")
    start = "from aim.cli.cli import cli_entry_point; cli_entry_point()"
    address = ["--repo", order["root"], "--host", "127.0.0.1", "--port", port]
    return Server([sys.executable, "-P", "-c", start, "up", *address], {})


def check(order: Message) -> None:
    """Check that Aim is installed and that a local store can be used.

    Raises: UserError for a fault that only a person can mend, so that waiting is pointless.
    """
    if importlib.util.find_spec("aim") is None:
        raise UserError("tracker=aim needs a package that is not installed. Install it: pip install 'aim>=3.29,<4'")
    if order["root"] is None:
        return
    place = Path(order["uri"])
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place if place.exists() else place.parent).close()
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        use = "Move it away, or set tracker.uri or AIM_REPO to another store"
        raise UserError(f"{place} cannot be used as Aim's repository ({error}). {use}") from error
