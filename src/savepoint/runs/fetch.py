"""Bring a run back whose directory is gone, or lies on another machine, from the tracker alone."""

import datetime
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from savepoint import system, trackers
from savepoint.config import TrackerSettings
from savepoint.errors import UserError
from savepoint.runs.directory import CHECKPOINTS, KEYS, METRICS, RECORD, Run, read


def fetch(found: trackers.Found, repository: Path, settings: TrackerSettings) -> Run:
    """Download a run from the tracker into a new directory under runs/, and open it.

    The directory appears whole or not at all. Its checkpoints are verified when they are loaded, like any others.
    Raises: UserError if the tracker lacks what the run needs.
    """
    title = f"The tracker's run {found.tracker_run_id}"
    hidden = repository / "runs" / f".fetching-{found.tracker_run_id}"
    shutil.rmtree(hidden, ignore_errors=True)  # left by a process that was killed
    hidden.mkdir(parents=True)
    try:
        print(f"run {found.run_id} is not on this disk: fetching it from the tracker", file=sys.stderr)
        fetched = trackers.fetch_run(settings, repository=repository, found=found, to=hidden)
        if missing := [name for name in (RECORD, METRICS) if name not in fetched]:
            raise UserError(
                f"{title} has no {' and no '.join(missing)}, so it cannot be continued. Runs have them since version "
                "0.1, once they have saved a checkpoint."
            )
        if not any(name.startswith(f"{CHECKPOINTS}/") for name in fetched):
            raise UserError(f"{title} has no checkpoint, so there is nothing to go on from. Was checkpoint.upload off?")
        record = _record(hidden / RECORD, found, settings, title)
        # The directory gets the name that it had where the run was started. The time in it is local.
        started = datetime.datetime.fromisoformat(record["started"]).astimezone()
        directory = repository / "runs" / f"{started:%Y-%m-%d}" / f"{started:%H%M%S}-{record['id']}"
        if directory.exists():
            raise UserError(f"{directory} is in the way: it is not the run that was asked for. Move it away.")
        directory.parent.mkdir(parents=True, exist_ok=True)
        system.files.replace(hidden / RECORD, json.dumps(record, indent=1).encode() + b"\n")
        system.files.patiently(os.rename, hidden, directory)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    count = sum(name.startswith(f"{CHECKPOINTS}/") for name in fetched)
    print(f"fetched {count} checkpoints into {directory}", file=sys.stderr)
    return read(directory)


def _record(path: Path, found: trackers.Found, settings: TrackerSettings, title: str) -> dict[str, Any]:
    """Read the tracker's copy of run.json, which was stored while the run was in training.

    Raises: UserError if it cannot be read, or is another run's.
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or any(key not in record for key in KEYS):
            raise ValueError("it is not a run's")
        datetime.datetime.fromisoformat(record["started"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{title}: its {RECORD} cannot be read ({error}).") from error
    if record["id"] != found.run_id:
        raise UserError(f"{title} is tagged as {found.run_id}, and its {RECORD} says {record['id']}.")
    status = "interrupted" if record["status"] == "running" else record["status"]
    return record | {"status": status, "tracker": {"kind": settings.kind, "run_id": found.tracker_run_id}}
