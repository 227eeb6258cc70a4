"""A run on the disk: its directory, its identity, and how a person's words find it.

A directory is a run if and only if it holds `run.json`, which is written atomically, and last. No file holds the
directory's own path: a run that is moved or copied resumes where it lies.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.runs import provenance

RECORD, CONFIG, CHECKPOINTS, METRICS, LOG = "run.json", "config.yaml", "checkpoints", "metrics.jsonl", "train.log"
_RECORDED = ("name", "status", "started", "tracker", "parents", "sweep", "overrides")
LOCK = ".lock"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_ERRORS = FULL | {errno.EROFS, errno.EIO}
log = logging.getLogger("savepoint")


@dataclass
class Run:
    """A run's directory and what `run.json` says: id, name, status, started, tracker, parents, sweep, overrides."""

    directory: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def tracker_id(self) -> str | None:
        return (self.record.get("tracker") or {}).get("run_id")

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.directory / METRICS

    def update(self, **values: Any) -> None:
        """Change `run.json`, atomically."""
        self.record |= values
        system.files.replace(self.directory / RECORD, json.dumps(self.record, indent=1).encode() + b"\n")

    def note_tracker(self, kind: str, tracker_id: str) -> None:
        """Keep the tracker's run id, and tell it. Seconds after the start: training does not wait for it."""
        if tracker_id != self.tracker_id:
            with contextlib.suppress(OSError):  # a full disk is for the checkpoints to tell; `record` has it by then
                self.update(tracker={"kind": kind, "run_id": tracker_id})
        log.info("%s run %s", kind, tracker_id)

    def hold(self) -> system.files.Lock:
        """Keep other processes from training this run, until this one ends. Raises: UserError if one does already."""
        return hold(self.directory, f"Run {self.id}")

    def address(self, repository: Path) -> str:
        """What to type after `run=`: the id, or the directory where no id is looked for."""
        inside = self.directory.is_relative_to(repository)
        place = self.directory.relative_to(repository).parts if inside else ("",)
        listed = (place[0], len(place)) in (("runs", 3), ("sweeps", 4))
        return self.id if listed else shlex.quote(str(self.directory))


def hold(directory: Path, what: str) -> system.files.Lock:
    """The lock of a directory in which something trains. Raises: UserError if another process has it."""
    lock = system.files.Lock(directory / LOCK)
    if not lock.acquire():
        lock.release()
        raise UserError(f"{what} is being trained by another process. Wait for it, or stop it first.")
    for name in (RECORD, CONFIG, METRICS):
        system.files.remove_leftovers(directory / name)  # of a process that was killed: nobody else writes them now
    return lock


def is_disk_error(error: OSError, directory: Path | None = None) -> bool:
    """Whether the disk refused, because it is full, say, and not a file that somebody's code looked for.

    directory: the run's. Whatever is wrong with a file of it, or with the directory itself, is of the disk.
    """
    if directory is not None and isinstance(error.filename, str | os.PathLike):
        return Path(error.filename).absolute().is_relative_to(directory.absolute())
    return error.errno in _DISK_ERRORS


@contextlib.contextmanager
def explaining_disk_errors(directory: Path) -> Iterator[None]:
    """What the disk refuses in here is worded for a person. Raises: UserError for that."""
    try:
        yield
    except OSError as error:
        if not is_disk_error(error, directory):
            raise
        raise UserError(f"The run directory cannot be written: {error.strerror}.") from error


def new_id() -> str:
    """Eight characters, unique also among runs that start in the same second. The first is a letter: no YAML number."""
    return "abcdefghjkmnpqrstuvwxyz"[secrets.randbelow(23)] + secrets.token_hex(4)[1:]


def create(
    directory: Path,
    *,
    id: str,
    name: str | None,
    config: str,
    overrides: list[str],
    sweep: str | None = None,
    parents: tuple[str, ...] = (),
) -> Run:
    """Make `directory` a run. config: the text of its config.yaml. overrides: as typed, without secrets.

    Raises: UserError if it already is one.
    """
    if (directory / RECORD).exists():
        raise UserError(
            f"{directory} already holds a run. To go on with it: python resume.py run={directory}. "
            "To start another, leave hydra.run.dir out or give a new directory."
        )
    if (directory / CHECKPOINTS).exists():
        raise UserError(f"{directory} holds checkpoints, but no {RECORD}. Give a new directory.")
    directory.mkdir(parents=True, exist_ok=True)
    for parent in list(directory.absolute().parents)[:3]:
        # Hydra may just have made them: a power cut must not take their names, with all that this run will save.
        with contextlib.suppress(OSError):
            system.files.sync_directory(parent)
    run = Run(directory, {})
    try:
        system.files.replace(directory / CONFIG, config.encode())
        run.update(
            id=id,
            name=name,
            status="running",
            started=provenance.now(),
            tracker=None,
            parents=list(parents),
            sweep=sweep,
            overrides=overrides,
        )
    except OSError:
        discard(run)
        raise
    return run


def discard(run: Run) -> None:
    """A start that was refused leaves no run. What else lies in the directory is not ours to delete."""
    for name in (RECORD, CONFIG, METRICS, LOG, LOCK, "tracker.log", ".tracker.lock"):
        system.files.remove(run.directory / name)
    shutil.rmtree(run.directory / ".hydra", ignore_errors=True)
    remove_empty(run.directory)


def remove_empty(directory: Path) -> None:
    """Remove a directory that holds nothing, and those around it that were made for it and hold nothing else."""
    with contextlib.suppress(OSError):
        directory.rmdir()
        if directory.parent.parent.name in ("runs", "sweeps"):
            directory.parent.rmdir()
            directory.parent.parent.rmdir()


def read(directory: Path) -> Run:
    """Open a run. Raises: UserError if there is none, or its record is unreadable."""
    try:
        record = json.loads((directory / RECORD).read_bytes())
        if not isinstance(record, dict) or not isinstance(record["id"], str):
            raise ValueError("no id")
        if missing := [key for key in _RECORDED if key not in record]:
            raise ValueError(f"no {', '.join(missing)}")
    except FileNotFoundError:
        raise UserError(f"{directory} is not a run: it has no {RECORD}.") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory / RECORD} cannot be read ({error}).") from error
    return Run(directory, record)
