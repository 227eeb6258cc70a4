"""List a run's checkpoints, and choose one: the newest, the best, or one by step or name."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import trust
from savepoint.checkpoint import tree
from savepoint.checkpoint.layout import STATE
from savepoint.checkpoint.storage import NAME, Checkpoint, load
from savepoint.errors import CheckpointError, short_list


def names(root: Path) -> list[str]:
    """List the names of the checkpoints under `root`, oldest first, sound or not; [] if there is no such directory."""
    if not root.is_dir():
        return []
    return sorted((entry.name for entry in os.scandir(root) if NAME.fullmatch(entry.name)), key=position)


def position(name: str) -> tuple[int, int]:
    """Return the step and the epoch in a checkpoint's name. Checkpoints are ordered by this pair."""
    match = NAME.fullmatch(name)
    assert match
    return int(match[2]), int(match[1])


def latest(root: Path, load: Callable[[Path], Checkpoint] = load) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """Load the newest sound checkpoint under `root`. load: loads one checkpoint.

    Returns: the checkpoint, or None if none is sound; and the path and fault of each newer, damaged checkpoint, newest
    first.
    Raises: NewerFormatError if a newer, sound checkpoint has a format that this version cannot read.
    """
    damaged: list[tuple[Path, str]] = []
    for name in reversed(names(root)):
        try:
            return load(root / name), damaged
        except CheckpointError as error:
            damaged.append((root / name, str(error)))
    return None, damaged


def select(root: Path, choice: str, *, monitor: str | None, mode: str) -> Checkpoint:
    """Load the checkpoint that was named after `@`.

    choice: `last` (the newest sound one), `best` (by `monitor`), a step, or a checkpoint's name.
    monitor: the metric's name, or None. mode: `min` or `max`.
    Raises: CheckpointError if it is damaged, or if there is no such checkpoint, with those that there are;
    NewerFormatError if its format is newer than this version.
    """
    there = names(root)
    if choice == "last":
        loaded, damaged = latest(root)
        if loaded is None:
            raise CheckpointError(damaged[0][1] if damaged else f"{root} holds no checkpoint.")
        return loaded
    if choice == "best":
        found = best(root, monitor=monitor, mode=mode) if monitor is not None else []
    elif choice.isdecimal():
        found = [name for name in there if position(name)[0] == int(choice)][-1:]
    else:
        found = [name for name in there if name == choice]
    if not found:
        raise CheckpointError(f"No checkpoint @{choice}. There are: {short_list(there[::-1])}.")
    return load(root / found[0])


def best(root: Path, *, monitor: str, mode: str) -> list[str]:
    """List the names of the checkpoints at which `monitor` was measured, best first, without NaN.

    A checkpoint between two evaluations does not count: its metrics are those of the evaluation before.
    mode: `min` or `max`.
    """
    scores = {}
    for name in names(root):
        # A damaged checkpoint cannot be the best. Resume reports the damage.
        with contextlib.suppress(CheckpointError):
            score = measured(root / name).get(monitor)
            if isinstance(score, int | float) and score == score:
                # A step may have two checkpoints, before and after the end of its epoch. The later one counts.
                scores[position(name)[0]] = (score if mode == "min" else -score, position(name), name)
    return [name for _, _, name in sorted(scores.values())]


def measured(path: Path) -> dict[str, Any]:
    """Return the metrics that were measured at this checkpoint; {} between two evaluations.

    Raises: CheckpointError if its state.json cannot be read.
    """
    try:
        found = (path / STATE).lstat()
    except OSError as error:
        raise CheckpointError(f"{path / STATE}: {error.strerror}.") from error
    return _metrics(path / STATE, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=10_000)
def _metrics(path: Path, identity: tuple[int, int, int]) -> dict[str, Any]:
    """Cache metrics by inode, size and mtime. Without the cache every save would reread all older state.json."""
    values = trust.parse_json(trust.read_file(path, at_most=trust.MAX_JSON), path)
    try:
        metrics = tree.join({}, values.get("metrics"))
    except tree.TreeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # The first checkpoints lack `evaluated`. Their runs evaluated at the end of each epoch, and only then.
    evaluated = values["evaluated"] == values.get("step") if "evaluated" in values else values.get("batch") == 0
    return metrics if isinstance(metrics, dict) and evaluated else {}
