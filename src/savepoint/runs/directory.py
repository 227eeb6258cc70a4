"""The directory of a run and its record, run.json.

A directory is a run if and only if it holds run.json, which is written atomically, and last. No file in it contains the
directory's own path, so a run that was moved or copied resumes where it lies.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import system, trust
from savepoint.errors import UserError
from savepoint.runs import provenance

RECORD, CONFIG, CHECKPOINTS, METRICS, LOG = "run.json", "config.yaml", "checkpoints", "metrics.jsonl", "train.log"
USAGE, EXAMPLE, FIGURES, LOCK = "system.jsonl", "example.safetensors", "figures", ".lock"
KEYS = ("id", "name", "status", "started", "tracker", "parents", "sweep", "overrides")
# Error numbers of a file system that has no locks: NFS without its lock daemon, some FUSE mounts.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
log = logging.getLogger("savepoint")


@dataclass
class Run:
    """A run's directory, and its record: id, name, status, started, tracker, parents, sweep, overrides, forked_from."""

    directory: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def tracker_id(self) -> str | None:
        """The id that the tracker gave this run; None until then."""
        return (self.record.get("tracker") or {}).get("run_id")

    @property
    def origins(self) -> set[str]:
        """The ids of the runs that this one began from."""
        parents, fork = self.record["parents"], self.record.get("forked_from")
        return {*map(str, parents if isinstance(parents, list) else [])} | (
            {str(fork.get("run"))} if isinstance(fork, dict) else set()
        )

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.directory / METRICS

    @property
    def usage(self) -> Path:
        """The file system.jsonl: what the machine did while the run trained."""
        return self.directory / USAGE

    @property
    def stop_file(self) -> Path:
        """The file that asks this run to stop while it exists. Nobody but a person makes or deletes it."""
        return self.directory / system.signals.STOP_FILE

    def current_status(self) -> str:
        """Return the recorded status, or `killed` where it says `running` and no process holds the run's lock."""
        status = str(self.record["status"])
        # On a file system without locks nobody can tell, so the recorded status counts.
        with contextlib.suppress(OSError):
            if status == "running" and not system.files.is_locked(self.directory / LOCK):
                return "killed"
        return status

    def update(self, **values: Any) -> None:
        """Change values of the record, and write run.json atomically. Raises: OSError if the disk refuses."""
        self.record |= values
        system.files.replace(self.directory / RECORD, json.dumps(self.record, indent=1).encode() + b"\n")

    def note_tracker(self, kind: str, tracker_id: str) -> None:
        """Record the tracker's run id. Trackers call this seconds after training has begun, or after its end."""
        if tracker_id == self.tracker_id:
            return
        # A full disk is reported by the next checkpoint. The id stays in `record`, so a later update writes it.
        with contextlib.suppress(OSError):
            if self.record["status"] != "running":  # another process may have resumed the run meanwhile
                self.record = read(self.directory).record
            self.update(tracker={"kind": kind, "run_id": tracker_id})

    def hold(self, *, force: bool = False) -> system.files.Lock:
        """Lock this run, so that no other process trains it.

        force: go on without the lock if it cannot be had.
        Raises: UserError if another process holds the lock, or the file system has no locks.
        """
        return hold(self.directory, f"Run {self.id}", force=force)

    def address(self, repository: Path) -> str:
        """Return what to type after `run=`: the id, or the directory if the run is not under runs/ or sweeps/."""
        inside = self.directory.is_relative_to(repository)
        place = self.directory.relative_to(repository).parts if inside else ("",)
        listed = (place[0], len(place)) in (("runs", 3), ("sweeps", 4))
        return self.id if listed else _typed(self.directory)


def _typed(path: Path) -> str:
    """Quote a path for a shell. The shell of Windows knows no single quotes."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(str(path))


def hold(directory: Path, title: str, *, force: bool = False, new: bool = False) -> system.files.Lock:
    """Lock a run's directory until the lock is released or this process ends, however it ends.

    title: what the error calls the run. force: go on without the lock if it cannot be had. new: the run is about to be
    made, so nobody else can train it, and a file system without locks is no obstacle.
    Raises: UserError if another process holds the lock, or the file system has no locks.
    """
    lock = system.files.Lock(directory / LOCK)
    try:
        taken = lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not (force or new):
            lock.release()
            raise UserError(
                f"{directory} is on a file system without locks ({error.strerror}), as some network disks are. Nothing "
                f"would notice if two processes trained {title}. Make sure that no other one does, and add --force to "
                "resume.py, or resume=force to train.py."
            ) from error
        return lock
    if not taken and force:
        log.warning("%s is locked by another process, and goes on nevertheless: that was forced.", title)
        return lock
    if not taken:
        lock.release()
        raise UserError(f"{title} is being trained by another process. Wait for it, or stop it first.")
    # A killed process may have left half-written files. While this process holds the lock, nobody else writes them.
    for name in (RECORD, CONFIG, METRICS, USAGE, EXAMPLE):
        system.files.remove_leftovers(directory / name)
    return lock


def new_id() -> str:
    """Make a run id: a letter and seven hexadecimal digits, drawn at random.

    Runs that start in the same second get different ids. The letter keeps YAML from reading an id as a number.
    """
    return "abcdefghjkmnpqrstuvwxyz"[secrets.randbelow(23)] + secrets.token_hex(4)[1:]


def derived_id(start_id: str, name: str) -> str:
    """Make the run id that follows from the id of a sweep's start and the name of one of its jobs.

    >>> derived_id("ab12cd34", "0"), derived_id("ab12cd34", "1")
    ('r8a50dfc', 'g295a1ca')
    """
    digest = hashlib.sha256(f"{start_id}/{name}".encode()).digest()
    return "abcdefghjkmnpqrstuvwxyz"[digest[0] % 23] + digest[1:5].hex()[1:]


def create(
    directory: Path,
    *,
    id: str,
    name: str | None,
    config: str,
    overrides: list[str],
    sweep: str | None = None,
    forked_from: dict[str, str] | None = None,
    choices: Mapping[str, str] | None = None,
) -> Run:
    """Make `directory` a run with the status `running`.

    config: the text of config.yaml. overrides: the command line's, without secrets. sweep: the sweep's id.
    forked_from: `run` and `checkpoint` that a fork begins from, the `sha256` of that checkpoint's manifest, and the
    `directory` of a parent that is not listed under runs/ or sweeps/. choices: the option chosen in each group of
    conf/, where Hydra has composed the config.
    Raises: UserError if the directory already holds a run or checkpoints; OSError if the disk refuses, after whatever
    was written has been removed.
    """
    if (directory / RECORD).exists():
        raise UserError(
            f"{directory} already holds a run. To go on with it: python resume.py run={directory}. "
            "To start another, leave hydra.run.dir out or give a new directory."
        )
    if (directory / CHECKPOINTS).exists():
        raise UserError(f"{directory} holds checkpoints, but no {RECORD}. Give a new directory.")
    directory.mkdir(parents=True, exist_ok=True)
    # Hydra may have made the parents a moment ago. Without this, a power cut could remove them together with the run.
    for parent in list(directory.absolute().parents)[:3]:
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
            parents=[forked_from["run"]] if forked_from else [],
            sweep=sweep,
            overrides=overrides,
            forked_from=forked_from,
            choices=dict(choices) if choices else None,
            commands=[],
        )
    except OSError:
        discard(run)
        raise
    return run


def discard(run: Run, *, keep_log: bool = False) -> None:
    """Remove the files of a run that was refused at its start. Files that Savepoint did not write are kept.

    keep_log: leave train.log, which holds a traceback. The directory is no run without its run.json.
    """
    ours = (RECORD, CONFIG, METRICS, USAGE, EXAMPLE, LOCK, "tracker.log", ".tracker.lock")
    for name in (*ours, *(() if keep_log else (LOG,))):
        system.files.remove(run.directory / name)
    shutil.rmtree(run.directory / ".hydra", ignore_errors=True)
    remove_empty(run.directory)


def remove_empty(directory: Path) -> None:
    """Remove a run's directory if it is empty, then its date directory and runs/ or sweeps/ if those are empty too."""
    with contextlib.suppress(OSError):
        directory.rmdir()
        if directory.parent.parent.name in ("runs", "sweeps"):
            directory.parent.rmdir()
            directory.parent.parent.rmdir()


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.yaml of a run or of a checkpoint, as plain data that is not checked yet.

    Raises: UserError if the file cannot be read, ConfigError or HostileError if it is no plain config.
    """
    path = directory / CONFIG
    try:
        return trust.parse_config(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def read(directory: Path) -> Run:
    """Open the run in `directory`. Raises: UserError if there is no run.json, or if it cannot be read."""
    try:
        # `Path.read_bytes` would take longer than the rest of this function, and a listing reads 10,000 records.
        with open(f"{directory}{os.sep}{RECORD}", "rb", buffering=0) as file:
            record = json.loads(file.readall())
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        if missing := [key for key in KEYS if key not in record]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if not isinstance(record["id"], str):
            raise ValueError("its id is not text")
    except FileNotFoundError:
        raise UserError(f"{directory} is not a run: it has no {RECORD}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / RECORD} cannot be read ({error}).") from error
    return Run(directory, record)
