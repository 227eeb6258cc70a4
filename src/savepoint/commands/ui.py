"""Serve the tracker's web page."""

import os
import subprocess
from pathlib import Path

from savepoint import trackers
from savepoint.config import TrackerSettings
from savepoint.errors import UserError


def serve_ui(repository: Path, arguments: list[str]) -> int:
    """Serve the tracker's web page, reachable from this machine only, until Ctrl-C. Returns: the exit code.

    Where the tracker is a server that somebody runs already, only its address is printed.
    arguments: `--port <number>`, and overrides of the tracker: `tracker=aim`, `tracker.uri=…`.
    Raises: UserError for another argument, or if the server cannot work; ConfigError if the store's address cannot be
    used.
    """
    overrides = [each for each in arguments if each.startswith(("tracker=", "tracker."))]
    match [each for each in arguments if each not in overrides]:
        case []:
            port = "5000"
        case ["--port", port] if port.isdigit():
            pass
        case _:
            raise UserError("usage: python -m savepoint ui [--port 5000] [tracker=aim] [tracker.uri=…]")
    settings = _settings(repository / "conf", overrides)
    page = trackers.find_page(settings, repository=repository)
    if page.store is None:
        print(f"{page.server}{page.path}")
        return 0
    server = trackers.find_server(settings, repository=repository, port=port)
    print(f"http://127.0.0.1:{port}/{page.path}   (Ctrl-C ends it)", flush=True)
    try:
        return subprocess.run(server.command, env=os.environ | server.environment, cwd=repository).returncode
    except KeyboardInterrupt:
        return 0


def _settings(conf: Path, overrides: list[str]) -> TrackerSettings:
    """Return the settings of the tracker that is asked for, else of conf/config.yaml's, else of MLflow."""
    settings = trackers.local_settings(None, conf, overrides)
    if settings.kind == "none" and "tracker=none" not in overrides:
        return trackers.local_settings("mlflow", conf, overrides)  # single runs may have been tracked
    return settings
