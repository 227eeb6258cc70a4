"""Which of a run's checkpoints are kept, and how the others are deleted."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from savepoint import system
from savepoint.checkpoint import layout
from savepoint.checkpoint.selection import best, measured, names, position
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
    """Delete what retention does not keep, and return the names. Call it only once the newest one is durable.

    A damaged one, as far as sizes tell, is never kept in place of a sound one. What the disk does not let itself be
    read or deleted is kept, and the next call tries again.
    """
    there = names(root)
    damaged = {name: _damaged(root / name) for name in there}
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
    """Whether a checkpoint is, as far as its sizes and its state.json tell; None if the disk does not say.

    Retention hashes no gigabytes: that is what resume does.
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
    """Delete those that are directories of this run, and no links to others'. Returns the names that are gone."""
    gone = []
    for name in dropped:
        # Renamed first: a kill in the middle of deleting must not leave what looks like a damaged checkpoint.
        if (root / name).is_dir() and not (root / name).is_symlink():
            with contextlib.suppress(OSError):
                os.rename(root / name, root / f"{_PRUNED}{name}-{os.getpid()}")
                gone.append(name)
    with contextlib.suppress(OSError):
        if gone:
            system.files.sync_directory(root)  # or a power cut could bring a name back whose files are deleted
        for hidden in root.glob(f"{_PRUNED}*"):  # also what an earlier call could not delete
            system.files.remove(hidden)
    return gone


def clean(root: Path) -> None:
    """Remove what a killed process left half written or half deleted. Call it while no other process uses the run."""
    with contextlib.suppress(OSError):  # the next start tries again
        for entry in root.glob(".tmp-*"):
            system.files.remove(entry)
