"""The checkpoints of one run: list them, and choose the newest, the best or one by name."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

from savepoint import trust
from savepoint.checkpoint import tree
from savepoint.checkpoint.layout import STATE
from savepoint.checkpoint.storage import NAME, Checkpoint, load
from savepoint.errors import CheckpointError, short_list


def names(root: Path) -> list[str]:
    """Names of the checkpoints under `root`, oldest first, sound or not."""
    if not root.is_dir():
        return []
    return sorted((entry.name for entry in os.scandir(root) if NAME.fullmatch(entry.name)), key=position)


def position(name: str) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    assert match
    return int(match[2]), int(match[1])


def latest(root: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest sound checkpoint, and each newer one that is damaged, with what is wrong with it."""
    damaged: list[tuple[Path, str]] = []
    for name in reversed(names(root)):
        try:
            return load(root / name), damaged
        except CheckpointError as error:
            damaged.append((root / name, str(error)))
    return None, damaged


def select(root: Path, choice: str, *, monitor: str | None, mode: str) -> Checkpoint:
    """The checkpoint that `@best`, `@last`, `@<name>` or `@<step>` means, loaded.

    Raises: CheckpointError that says which there are, if there is none such, or what is wrong with it.
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
    """Names of the checkpoints in which `monitor` was just measured, best first. NaN is never among them.

    A checkpoint from the middle of an epoch carries the value of the epoch before: it is not measured there.
    """
    scores = []
    for name in names(root):
        with contextlib.suppress(CheckpointError):  # it cannot be the best, and resume is where damage is reported
            score = measured(root / name).get(monitor)
            if isinstance(score, int | float) and score == score:
                scores.append((score if mode == "min" else -score, position(name), name))
    return [name for _, _, name in sorted(scores)]


def measured(path: Path) -> dict[str, Any]:
    """The metrics that were measured at this very checkpoint."""
    try:
        found = (path / STATE).lstat()
    except OSError as error:
        raise CheckpointError(f"{path / STATE}: {error.strerror}.") from error
    return _metrics(path / STATE, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=10_000)
def _metrics(path: Path, identity: tuple[int, int, int]) -> dict[str, Any]:
    """Remembered by the file's identity, or each save of a long run would read what all checkpoints before it hold."""
    values = trust.parse_json(trust.read_file(path, at_most=trust.MAX_JSON), path)
    try:
        metrics = tree.join({}, values.get("metrics"))
    except tree.TreeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return metrics if isinstance(metrics, dict) and values.get("batch") == 0 else {}
