"""Remove a run: `python -m savepoint rm`. Asks before anything is lost."""

import os
import sys
from pathlib import Path

from savepoint import runs, system, trust
from savepoint.commands import options, overview, tables
from savepoint.errors import UserError, short_list

USAGE = "usage: python -m savepoint rm <run> [--yes]"
# What Savepoint writes into a run's directory, besides names that begin with a dot.
_OWN = (
    *(runs.RECORD, runs.CONFIG, runs.CHECKPOINTS, runs.METRICS, runs.LOG, runs.FIGURES, runs.EVALUATIONS),
    *("changes.patch", "tracker.log", "trace.json"),
)


def remove_run(repository: Path, arguments: list[str]) -> int:
    """Say what would be removed, ask, and remove it. Returns: the exit code; 1 if the answer was no.

    arguments: as typed after `rm`.
    Raises: UserError for a run in training, a parent of runs that exist, a directory that holds more than a run, no
    terminal to ask on, and a disk that refuses.
    """
    given = options.parse(arguments, USAGE, flags=("--yes",))
    found = runs.find(given.run(), repository)
    run = found.run
    if found.checkpoint is not None:
        raise UserError(
            f"rm removes whole runs. Old checkpoints go by checkpoint.keep_last. To remove the run: rm {run.id}"
        )
    _check(run, repository)
    print(trust.printable(_description(run, repository)))
    if "--yes" not in given.flags and not _agreed():
        print("Nothing was removed.")
        return 1
    _remove(run)
    kind = (run.record["tracker"] or {}).get("kind")
    stays = f" Its copy in {kind} stays: run {run.tracker_id}." if run.tracker_id else ""
    print(trust.printable(f"Removed run {run.id}.{stays}"))
    return 0


def _check(run: runs.Run, repository: Path) -> None:
    """Check that the run may be removed. Raises: UserError that says what forbids it."""
    directory = run.directory.resolve()
    if repository.resolve().is_relative_to(directory):
        raise UserError(f"{directory} holds this repository too. Remove the run's files by hand.")
    others = [place for place, _, files in os.walk(directory) if runs.RECORD in files and Path(place) != directory]
    if others:
        raise UserError(f"{directory} holds other runs too: {short_list(others)}. Remove those first.")
    if system.files.is_locked(run.directory / runs.LOCK):
        raise UserError(f"Run {run.id} is being trained by another process. Wait for it, or stop it first.")
    if children := [other.id for other in runs.all_runs(repository) if run.id in other.origins]:
        raise UserError(f"Run {run.id} is the parent of {short_list(children)}. Remove first what began from it.")


def _description(run: runs.Run, repository: Path) -> str:
    """Say what would be lost, in a few lines."""
    files = [Path(place, name) for place, _, names in os.walk(run.directory) for name in names]
    size = sum(path.lstat().st_size for path in files)
    row = overview.sum_up(run, overview.groups(repository))
    saved = sorted(path.name for path in run.checkpoints.glob("epoch_*_step_*"))
    foreign = [name for name in sorted(os.listdir(run.directory)) if name not in _OWN and not name.startswith(".")]
    return "\n".join(
        [
            " ".join(filter(None, ("run", row.id, row.name, row.status, tables.local_time(row.started)))),
            f"  directory    {run.directory}",
            f"  size         {tables.size(size)} in {len(files)} files",
            f"  checkpoints  {short_list(saved[::-1])}",
            *([f"  other files in it: {short_list(foreign)}"] if foreign else []),
        ]
    )


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed: without a terminal to ask on, rm needs --yes.")
    try:
        return input("Remove it for good? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _remove(run: runs.Run) -> None:
    """Remove the run's directory, and the directories around it that become empty.

    run.json goes last. Until then the directory is a run, so a removal that was cut short can be repeated.
    Raises: UserError if a process began to train the run meanwhile, or if the disk refuses.
    """
    try:
        lock = run.hold()
        try:
            for name in os.listdir(run.directory):
                if name not in (runs.RECORD, runs.LOCK):
                    system.files.remove(run.directory / name)
            if left := {*os.listdir(run.directory)} - {runs.RECORD, runs.LOCK}:
                raise UserError(f"{run.directory}: the disk refuses to remove {short_list(sorted(left))}.")
            (run.directory / runs.RECORD).unlink()
        finally:
            lock.release()
        (run.directory / runs.LOCK).unlink()
    except OSError as error:
        raise UserError(f"{run.directory} cannot be removed: {error.strerror}.") from error
    runs.remove_empty(run.directory)
