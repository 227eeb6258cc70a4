"""Record the checkpoint that a fork begins from, and find it again. It may lie outside of any run's directory."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from savepoint import runs, trust
from savepoint.errors import UserError

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint


def record(parent: "Checkpoint", run: runs.Run, repository: Path, *, alone: bool) -> dict[str, str]:
    """Return what a fork's run.json holds about its parent: where to find it again, and a digest to recognise it by.

    parent: the checkpoint that the fork begins from. run: the run of that checkpoint. alone: whether the checkpoint
    lies outside of any run's directory.
    """
    origin = {"run": run.id, "checkpoint": parent.path.name, "sha256": _digest(parent)}
    if alone:
        return origin | {"directory": str(parent.path)}
    listed = run.address(repository) == run.id
    return origin if listed else origin | {"directory": str(run.directory)}


def checkpoint_alone(query: str) -> Path | None:
    """Return the checkpoint directory that a query names, or None if there is none or it lies in a run's directory."""
    path = Path(query)
    if not query or not (path / "manifest.json").is_file():
        return None
    path = path.resolve()
    return None if (path.parent.parent / runs.RECORD).exists() else path


def run_of(alone: Path) -> runs.Run:
    """Return the run that a lone checkpoint names in its provenance. That run has no directory here.

    Raises: CheckpointError if its provenance cannot be read.
    """
    provenance = trust.parse_json(trust.read_file(alone / "provenance.json", at_most=trust.MAX_JSON), alone)
    known = provenance.get("run_id")
    return runs.Run(alone.parent, {"id": known if isinstance(known, str) else "unknown"})


def find_again(run: runs.Run, origin: dict[str, str], repository: Path) -> "Checkpoint":
    """Load the checkpoint that a fork began from. origin: `forked_from` in the fork's run.json.

    Raises: UserError if the checkpoint is gone or has changed, or if the record of it is incomplete.
    """
    from savepoint import checkpoint

    keys = ("run", "checkpoint", "sha256")
    if not isinstance(origin, dict) or not all(isinstance(origin.get(key), str) for key in keys):
        raise UserError(f"{run.directory / runs.RECORD}: forked_from must have the keys {', '.join(keys)}.")
    again = f"Run {run.id} has no checkpoint yet and was forked from {origin['run']}@{origin['checkpoint']}"
    try:
        place = Path(str(origin.get("directory", "")))
        if not (place / checkpoint.MANIFEST).exists():
            found = runs.find(str(origin.get("directory", origin["run"])), repository)
            place = found.run.checkpoints / origin["checkpoint"]
        parent = checkpoint.load(place)
    except UserError as error:
        raise UserError(f"{again}, which cannot be loaded any more: {error}") from error
    if _digest(parent) != origin["sha256"]:
        raise UserError(f"{again}, which is another checkpoint now.")
    return parent


def _digest(parent: "Checkpoint") -> str:
    """Return the SHA-256 of a checkpoint's manifest, which names the digests of all its files."""
    from savepoint import checkpoint

    return hashlib.sha256((parent.path / checkpoint.MANIFEST).read_bytes()).hexdigest()
