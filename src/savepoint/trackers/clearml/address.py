"""Find the ClearML server that gets the runs, or the directory for offline sessions. Only `front` imports ClearML."""

import importlib.util
import os
from pathlib import Path

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Page, Server


def locate(settings: TrackerSettings, repository: Path, lock_dir: Path) -> Message:
    """Return the address of the store. ClearML's own configuration names the server and has its keys.

    lock_dir: where processes lock a store on a server.
    Raises: ConfigError if an address is malformed, or if offline sessions are asked to register a model.
    """
    if settings.uri is not None and "://" in settings.uri:
        why = "this names a directory for offline sessions"
        use = "clearml.conf, which `clearml-init` writes, or CLEARML_API_HOST, beside its keys"
        raise ConfigError(f"tracker.uri={settings.uri}: {why}. A server is named by {use}.")
    wanted = os.environ.get("CLEARML_OFFLINE_MODE", "").lower() in ("1", "true", "yes", "on", "y", "t")
    offline = repository.absolute() / (settings.uri or "clearml_offline") if wanted or settings.uri else None
    if offline and settings.register_as is not None:
        why = "an offline session of ClearML's holds no model. Leave it out"
        raise ConfigError(f"tracker.register_as={settings.register_as}: {why}.")
    configuration = os.environ.get("CLEARML_CONFIG_FILE", "").strip() or "~/clearml.conf"
    server = os.environ.get("CLEARML_API_HOST", "").strip()
    if server and offline is None and not server.startswith(("http://", "https://")):
        raise ConfigError(f"CLEARML_API_HOST={server}: this is not an address. Write it as http://<host>:8008.")
    return {
        "uri": (server or f"the server in {configuration}") if offline is None else str(offline),
        "experiment": settings.experiment,
        "offline": None if offline is None else str(offline),
        "lock": str(lock_dir.absolute() / ".clearml.lock"),
    }


def absent(order: Message) -> bool:
    """Return whether the store has nothing to read, as for offline sessions, which are only written."""
    return order["offline"] is not None


def page(order: Message, path: str) -> Page:
    """Return the page of a run, or the file of its offline session. path: the page's address, or the file's name."""
    return Page(None, "" if order["offline"] is None else f"{order['offline']}{os.sep}", path)


def front(order: Message) -> Page:
    """Return the page that lists the projects. It asks ClearML's SDK, but no server.

    Raises: UserError for offline sessions, or if the page's address is unknown.
    """
    check(order)
    if order["offline"] is not None:
        show = "python -c \"from clearml import Task; Task.import_offline_session('<file>.zip')\" sends one to a server"
        raise UserError(f"{order['offline']} is for offline sessions, which have no page. {show}.")
    from clearml.backend_api import Session

    try:
        return Page(None, Session.get_app_server_host(), "/projects")
    except ValueError as error:
        raise UserError(
            f"{order['uri']}: its web page is unknown. Set web_server in clearml.conf, or CLEARML_WEB_HOST."
        ) from error


def serve(order: Message, port: str) -> Server:
    """Raise an error: ClearML serves its page itself."""
    raise UserError(f"{order['uri']} has a page of its own.")


def check(order: Message) -> None:
    """Check that ClearML is installed and that offline sessions can be written.

    Raises: UserError for a fault that only a person can mend, so that waiting is pointless.
    """
    if importlib.util.find_spec("clearml") is None:
        use = "pip install 'clearml>=2.1,<3'"
        raise UserError(f"tracker=clearml needs a package that is not installed. Install it: {use}")
    if order["offline"] is not None:
        try:
            Path(order["offline"]).mkdir(parents=True, exist_ok=True)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UserError(
                f"{order['offline']} cannot be a directory ({error}). Set tracker.uri to another one"
            ) from error
