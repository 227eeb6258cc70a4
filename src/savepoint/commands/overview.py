"""Sum up a run in one row, from as few bytes as possible: a listing of 10,000 runs should take two seconds.

What a run has reached is read from its newest checkpoint, because a resume goes on from there. Nothing here imports
torch, or reads a whole config, history or checkpoint.
"""

import contextlib
import functools
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from savepoint import runs, trust
from savepoint.errors import CheckpointError

# The same rule as in `checkpoint.names`, which needs torch.
_NAME = re.compile(r"epoch_([0-9]{4,9})_step_([0-9]{8,15})")
# Keys that say nothing about an experiment: its name, where it is shown and saved, and what it computes on.
_ASIDE = ("name", "tracker", "checkpoint", "hydra", "trainer.threads", "trainer.device", "trainer.log_every_n_steps")


class Overview(NamedTuple):
    """A run as `ls` shows it.

    checkpoint: the newest one's name. epoch, step, best, commit, dirty: what that checkpoint says; None without one.
    best: `metric`, `value`, `epoch`, `step`; None if nothing was measured.
    """

    id: str
    name: str | None
    directory: str
    choices: str
    overrides: list[str]
    status: str
    checkpoint: str | None
    epoch: int | None
    step: int | None
    best: dict[str, Any] | None
    started: str
    commit: str | None
    dirty: bool | None
    parents: list[str]
    sweep: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the overview as JSON has it. A best value that is infinite is the string "inf" or "-inf"."""
        found = self._asdict()
        if self.best and math.isinf(self.best["value"]):
            found["best"] = self.best | {"value": str(self.best["value"])}
        return found


def sum_up(run: runs.Run, groups: frozenset[str]) -> Overview:
    """Read what a listing shows of a run. Values of a damaged file are None. groups: the names of those in conf/."""
    record, directory = run.record, str(run.directory)
    overrides = [str(each) for each in _list(record["overrides"])]
    root = f"{directory}{os.sep}{runs.CHECKPOINTS}"  # text, since joining paths would take a third of the time
    name, step, epoch = _newest(root)
    best, git = (None, {}) if name is None else _state(f"{root}{os.sep}{name}{os.sep}")
    return Overview(
        id=run.id,
        name=None if record["name"] is None else str(record["name"]),
        directory=directory,
        choices=choices(overrides, groups),
        overrides=overrides,
        status=run.current_status(),
        checkpoint=name,
        epoch=epoch,
        step=step,
        best=best,
        started=str(record["started"]),
        commit=git["commit"] if isinstance(git.get("commit"), str) else None,
        dirty=git["dirty"] if isinstance(git.get("dirty"), bool) else None,
        parents=[str(each) for each in _list(record["parents"])],
        sweep=None if record["sweep"] is None else str(record["sweep"]),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _newest(root: str) -> tuple[str | None, int | None, int | None]:
    """Return the newest checkpoint's name, step and epoch, whether it is sound or not."""
    found: list[tuple[int, int, str]] = []
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if match := _NAME.fullmatch(name):
                found.append((int(match[2]), int(match[1]), name))
    if not found:
        return None, None, None
    step, epoch, name = max(found)
    return name, step, epoch


def _state(place: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the best value that a checkpoint knows, and the state of git at its run's start. Digests are not checked.

    place: the checkpoint's directory, with a separator at its end.
    """
    best, git = None, None
    with contextlib.suppress(CheckpointError):
        best = trust.read_member(f"{place}state.json", "best")
    with contextlib.suppress(CheckpointError):
        git = trust.read_member(f"{place}provenance.json", "git")
    return _checked(best), git if isinstance(git, dict) else {}


def _checked(best: Any) -> dict[str, Any] | None:
    """Return a best value if its parts have the right types, otherwise None. An infinite one is stored as an object."""
    if not isinstance(best, dict):
        return None
    value: Any = best.get("value")
    if isinstance(value, dict) and value.get("$float") in ("inf", "-inf"):
        value = float(value["$float"])
    whole = all(type(best.get(key)) is int for key in ("epoch", "step"))
    if type(value) not in (int, float) or not isinstance(best.get("metric"), str) or not whole:
        return None
    return {"metric": best["metric"], "value": float(value), "epoch": best["epoch"], "step": best["step"]}


def choices(overrides: list[str], groups: frozenset[str]) -> str:
    """Sum up overrides in a few words: options of a group by their name alone, other keys by their last part.

    >>> choices(["model=cnn", "optimizer.lr=0.1", "tracker=none", "+trainer.max_steps=9"], frozenset({"model"}))
    'cnn lr=0.1 max_steps=9'
    """
    words = []
    for override in overrides:
        key, value = typed(override)
        if key not in _ASIDE and key.partition(".")[0] not in _ASIDE:
            # A value such as `none` says nothing without its key.
            alone = key in groups and value not in ("none", "default", "null")
            short = f"{key.rpartition('.')[2]}={value}"
            words.append(override if override.startswith("~") else value if alone else short)
    return " ".join(words)


def groups(repository: Path) -> frozenset[str]:
    """Return the names of the config groups."""
    with contextlib.suppress(OSError):
        return frozenset(entry.name for entry in os.scandir(repository / "conf") if entry.is_dir())
    return frozenset()


@functools.lru_cache(maxsize=10_000)
def typed(override: str) -> tuple[str, str]:
    """Split an override into its key and its value.

    >>> typed("+a.b=c=d"), typed("~scheduler")
    (('a.b', 'c=d'), ('scheduler', ''))
    """
    key, _, value = override.lstrip("+~").partition("=")
    return key, value
