"""Serve the tracker's web page."""

import os
import subprocess
import sys
from pathlib import Path

from savepoint import trackers
from savepoint.errors import UserError


def serve_ui(repository: Path, arguments: list[str]) -> int:
    """Serve MLflow's web page, reachable from this machine only, until Ctrl-C. Returns: the exit code.

    Where the tracker is a server that somebody runs already, only its address is printed.
    arguments: `--port <number>`, and overrides of the tracker: `tracker.uri=…`.
    Raises: UserError for another argument; ConfigError if the store's address cannot be used.
    """
    overrides = [each for each in arguments if each.startswith("tracker.")]
    match [each for each in arguments if each not in overrides]:
        case []:
            port = "5000"
        case ["--port", port] if port.isdigit():
            pass
        case _:
            raise UserError("usage: python -m savepoint ui [--port 5000] [tracker.uri=…]")
    page = trackers.find_page(trackers.local_settings("mlflow", repository / "conf", overrides), repository=repository)
    if page.store is None:
        print(f"{page.server}{page.path}")
        return 0
    print(f"http://127.0.0.1:{port}/{page.path}   (Ctrl-C ends it)", flush=True)
    # MLflow's job workers would keep running after their server has ended.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = ["--host", "127.0.0.1", "--port", port, "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", page.store, *address]
    try:
        return subprocess.run(command, env=environment, cwd=repository).returncode
    except KeyboardInterrupt:
        return 0
