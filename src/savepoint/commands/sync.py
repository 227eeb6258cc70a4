"""Send the tracker what it lacks of a run: points, checkpoints, figures, the status."""

import json
from pathlib import Path
from typing import Any

from savepoint import checkpoint, runs, trackers
from savepoint.errors import UserError

SECONDS = 3600.0  # for one run: checkpoints may be large


def sync_runs(repository: Path, arguments: list[str]) -> int:
    """Send what the tracker lacks, of one run or of all that are tracked and not in training.

    arguments: `<run>` or `--all`, and overrides of the tracker: `tracker.uri=…`.
    Returns: the exit code, 1 if something is still not stored.
    Raises: UserError if there is no such run, it is in training, or it is not tracked.
    """
    overrides = [each for each in arguments if each.partition("=")[0].partition(".")[0] == "tracker"]
    queries = [each for each in arguments if each not in overrides]
    if len(queries) != 1 or (queries[0].startswith("-") and queries[0] != "--all"):
        raise UserError("Which run? python -m savepoint sync <run> | --all [tracker.uri=…]")
    everything = queries == ["--all"]
    found = runs.all_runs(repository) if everything else [runs.find(queries[0], repository).run]
    unstored = 0
    for run in found:
        try:
            unstored += not _sync(run, repository, overrides)
        except UserError as error:
            if not everything:
                raise
            print(f"run {run.id}  left out: {error}")
    if not found:
        print("There are no runs yet.")
    return 1 if unstored else 0


def _sync(run: runs.Run, repository: Path, overrides: list[str]) -> bool:
    """Send what the tracker lacks of a run, and print what is still missing. Returns: whether everything is stored."""
    config = runs.read_config(run.directory)
    kept = config.get("tracker")
    kind = kept.get("kind") if isinstance(kept, dict) else None
    settings = trackers.local_settings(kind, repository / "conf", overrides)
    if settings.kind == "none":
        raise UserError(f"Run {run.id} was not tracked. To send it nevertheless: add tracker=mlflow")
    lock = run.hold()
    try:
        sweep = run.record.get("sweep")
        tracker = trackers.open(
            settings,
            run_dir=run.directory,
            run_id=run.id,
            repository=repository,
            sweep=trackers.Sweep(sweep, run.directory.parent.name, run.directory.parent) if sweep else None,
            known_run_id=run.tracker_id,
            upload=bool(config["checkpoint"]["upload"]),
            announce=lambda tracker_id: run.note_tracker(settings.kind, tracker_id),
        )
        tracker.start(
            **runs.describe(run, config, _provenance(run)),
            documents=[run.directory / runs.CONFIG, run.directory / checkpoint.PATCH],
        )
        status = run.record["status"]
        missing = tracker.close("interrupted" if status == "running" else status, SECONDS)
    finally:
        lock.release()
    print(f"run {run.id}  {missing or 'everything is stored'}")
    return missing is None


def _provenance(run: runs.Run) -> dict[str, Any]:
    """Return the newest checkpoint's provenance, {} if there is none."""
    for name in reversed(checkpoint.names(run.checkpoints)):
        try:
            found: dict[str, Any] = json.loads((run.checkpoints / name / checkpoint.PROVENANCE).read_bytes())
            if found.keys() >= {"git", "command"}:
                return found
        except (OSError, ValueError, AttributeError):
            continue  # damaged; the checkpoint before it is of the same run
    return {}
