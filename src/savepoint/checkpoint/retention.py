"""Decide which of a run's checkpoints are kept, and delete the others."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from savepoint import system
from savepoint.checkpoint import layout
from savepoint.checkpoint.selection import best, measured, names, position
from savepoint.checkpoint.storage import SUPERSEDED
from savepoint.errors import CheckpointError

_PRUNED = ".tmp-pruned-"


def prune(
    root: Path,
    *,
    keep_last: int,
    keep_best: int,
    keep_every_n_epochs: int | None = None,
    monitor: str | None,
    mode: str,
    protect: str | None,
) -> list[str]:
    """Delete the checkpoints that no rule keeps. Call it only when the newest one is durable.

    keep_last: how many of the newest sound checkpoints stay, at least 1. keep_best: how many of the best by `monitor`
    stay. keep_every_n_epochs: the first checkpoint of every n-th epoch stays. monitor: the metric's name, or None.
    mode: `min` or `max`. protect: the name of one that stays in any case.
    Returns: the names of the checkpoints that were deleted. A checkpoint that the disk refuses to read or to delete
    stays, and the next call tries again.
    """
    there = names(root)
    damaged = {name: _damaged(root / name) for name in there}
    # A damaged checkpoint never takes the place of a sound one.
    sound = [name for name in there if damaged[name] is False]
    kept = {protect, *(name for name in there if damaged[name] is None)}
    kept |= set(there[there.index(sound[-keep_last]) :] if len(sound) >= keep_last else there)
    if keep_every_n_epochs is not None:
        first = {position(name)[1]: name for name in reversed(there)}
        kept |= {name for epoch, name in first.items() if epoch > 0 and epoch % keep_every_n_epochs == 0}
    if monitor is not None:
        kept |= set([name for name in best(root, monitor=monitor, mode=mode) if name in sound][:keep_best])
    return _delete(root, [name for name in there if name not in kept])


def _damaged(path: Path) -> bool | None:
    """Whether a checkpoint's files are damaged; None if the disk refuses to tell.

    This checks state.json, and the sizes of all files. It leaves digests to resume: hashing gigabytes after each save
    would be too slow.
    """
    try:
        for name, entry in layout.read_manifest(path)[1].items():
            found = (path / name).lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
                return True
        measured(path)
    except (CheckpointError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        unknown = isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ELOOP)
        return None if unknown else True
    return False


def _delete(root: Path, dropped: list[str]) -> list[str]:
    """Delete these checkpoints, except links to other places. Returns: the names that are gone."""
    gone = []
    for name in dropped:
        # Renamed first, or a kill in the middle would leave what looks like a damaged checkpoint.
        if (root / name).is_dir() and not (root / name).is_symlink():
            with contextlib.suppress(OSError):
                os.rename(root / name, root / f"{_PRUNED}{name}-{os.getpid()}")
                gone.append(name)
    with contextlib.suppress(OSError):
        if gone:
            # Without this, a power cut could bring back the name of a checkpoint whose files are deleted.
            system.files.sync_directory(root)
        # An earlier call may have left some that it could not delete.
        for hidden in root.glob(f"{_PRUNED}*"):
            system.files.remove(hidden)
    return gone


def clean(root: Path) -> None:
    """Remove what a killed process left half written or half deleted. Call it while no other process uses the run.

    A checkpoint that was about to be replaced by one that has an evaluation gets its name back.
    What the disk refuses to delete is left for the next start.
    """
    with contextlib.suppress(OSError):
        for aside in root.glob(f"{SUPERSEDED}*"):
            if not (final := root / aside.name.removeprefix(SUPERSEDED)).exists():
                system.files.patiently(os.rename, aside, final)
        for entry in root.glob(".tmp-*"):
            system.files.remove(entry)
