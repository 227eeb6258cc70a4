"""Serve the tracker's web page."""

import os
import subprocess
import sys
from pathlib import Path

from savepoint import trackers


def serve_ui(repository: Path, *, port: str) -> int:
    """Serve MLflow's web page, reachable from this machine only, until Ctrl-C. Returns: the exit code.

    Where the tracker is a server that somebody runs already, only its address is printed.
    Raises: ConfigError if the store's address cannot be used.
    """
    page = trackers.find_page(trackers.local_settings("mlflow", repository / "conf"), repository=repository)
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
