"""Serve the tracker's web page."""

import os
import subprocess
import sys
from pathlib import Path


def serve_ui(repository: Path, *, port: str) -> int:
    """Serve MLflow's web page, reachable from this machine only, until Ctrl-C. Returns: the exit code."""
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{repository / 'mlflow.db'}")
    print(f"http://127.0.0.1:{port}   (Ctrl-C ends it)")
    # MLflow's job workers would keep running after their server has ended.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = ["--host", "127.0.0.1", "--port", port, "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, *address]
    try:
        return subprocess.run(command, env=environment, cwd=repository).returncode
    except KeyboardInterrupt:
        return 0
