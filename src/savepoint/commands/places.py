"""Find the checkpoints that a query names. A directory of checkpoints needs no run around it."""

from dataclasses import dataclass
from pathlib import Path

from savepoint import checkpoint, runs, weights
from savepoint.errors import CheckpointError, UserError, short_list


@dataclass(frozen=True)
class Place:
    """A directory of checkpoints.

    root: the directory. names: the checkpoints that were asked for, oldest first. run: the run around them, None if
    there is none. chosen: whether the query names one checkpoint.
    """

    root: Path
    names: list[str]
    run: runs.Run | None
    chosen: bool = False


def find(query: str, repository: Path) -> Place:
    """Return the checkpoints that a query means: a run, a run's checkpoint after `@`, or a directory.

    Raises: UserError if there is no such run or no such checkpoint.
    """
    if directory := _directory(Path(query)):
        return directory
    found = runs.find(query, repository)
    root = found.run.checkpoints
    names = checkpoint.names(root) if found.checkpoint is None else [_choose(found.run, found.checkpoint)]
    return Place(root, names, found.run, chosen=found.checkpoint is not None)


def _directory(path: Path) -> Place | None:
    """Return the checkpoints in a directory that is no run; None if the path is no such directory."""
    if path.is_dir() and not (path / runs.RECORD).exists():
        beside = path.resolve().parent
        # A copy elsewhere in a run's directory is not the run's checkpoint of that name.
        in_a_run = beside.name == runs.CHECKPOINTS and (beside.parent / runs.RECORD).exists()
        if (path / checkpoint.MANIFEST).exists() and not in_a_run:
            return Place(beside, [path.resolve().name], None, chosen=True)
        inside = next((each for each in (path, path / runs.CHECKPOINTS) if checkpoint.names(each)), None)
        if inside is not None:
            around = inside.resolve().parent
            run = runs.read(around) if (around / runs.RECORD).exists() else None
            return Place(inside, checkpoint.names(inside), run)
    return None


def load_newest(place: Place, query: str) -> checkpoint.Checkpoint:
    """Load the newest sound one of the checkpoints that a query means. Raises: UserError if there is none."""
    faults = []
    for name in reversed(place.names):
        try:
            return checkpoint.load(place.root / name)
        except CheckpointError as error:
            faults.append(str(error))
    raise UserError(faults[0] if faults else f"{query} has no checkpoint yet.")


def load(query: str, repository: Path) -> tuple[checkpoint.Checkpoint, runs.Run | None]:
    """Load the one checkpoint that a query means. Returns: it, and its run; None for a checkpoint without a run.

    Raises: UserError if there is no such checkpoint, CheckpointError if it is damaged.
    """
    place = _directory(Path(query))
    if place is not None and place.run is None:
        return load_newest(place, query), None
    found = runs.find(query, repository)
    return weights.load_checkpoint(found), found.run


def _choose(run: runs.Run, choice: str) -> str:
    """Return the name that `@best`, `@last`, `@<step>` or `@<name>` means, whether that checkpoint is sound or not."""
    names = checkpoint.names(run.checkpoints)
    if choice == "last":
        found = names[-1:]
    elif choice == "best":
        found = _best(run)[:1]
    elif choice.isdecimal():
        found = [name for name in names if int(name.rpartition("_")[2]) == int(choice)][-1:]
    else:  # the name of a checkpoint, perhaps of one that was set aside
        found = [choice] if Path(choice).name == choice != ".." and (run.checkpoints / choice).is_dir() else []
    if not found:
        raise UserError(f"No checkpoint @{choice} in run {run.id}. There are: {short_list(names[::-1])}.")
    return found[0]


def _best(run: runs.Run) -> list[str]:
    kept = runs.read_config(run.directory).get("checkpoint")
    kept = kept if isinstance(kept, dict) else {}
    monitor, mode = kept.get("monitor"), kept.get("mode", "min")
    return checkpoint.best(run.checkpoints, monitor=monitor, mode=mode) if isinstance(monitor, str) else []
