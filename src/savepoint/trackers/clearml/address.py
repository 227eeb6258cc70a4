"""Which server of ClearML's gets the runs, or which directory their offline sessions. Finds it without ClearML."""

import importlib.util
import os
from pathlib import Path

from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError, UserError
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Page, Server


def locate(settings: TrackerSettings, repository: Path, lock_dir: Path) -> Message:
    """Return the address of the store: ClearML's own configuration names the server and has its keys.

    lock_dir: where processes lock a store on a server.
    Raises: ConfigError if the server has no address, or if the settings name no directory for offline sessions, or ask
    these to register a model.
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
        raise ConfigError(f"CLEARML_API_HOST={server}: this is no address. It is like http://<host>:8008.")
    return {
        "uri": (server or f"the server in {configuration}") if offline is None else str(offline),
        "experiment": settings.experiment,
        "offline": None if offline is None else str(offline),
        "lock": str(lock_dir.absolute() / ".clearml.lock"),
    }


def absent(order: Message) -> bool:
    """Return whether nothing can be found in the store: offline sessions are written, and never read."""
    return order["offline"] is not None


def page(order: Message, path: str) -> Page:
    """Return the page of a run, or the file of its offline session. path: the whole address, or the file's name."""
    return Page(None, "" if order["offline"] is None else f"{order['offline']}{os.sep}", path)


def front(order: Message) -> Page:
    """Return the page that lists the projects. Asks ClearML's SDK, and no server.

    Raises: UserError if offline sessions are meant, or if the address is unknown.
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
    """Raise an error: no page of ClearML's is served here."""
    raise UserError(f"{order['uri']} has a page of its own.")


def check(order: Message) -> None:
    """Find out whether ClearML is installed, and whether offline sessions can be written.

    Raises: UserError if only a person can mend it, so that waiting is pointless.
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
