"""A run on the disk: its directory, its identity, and how a person's words find it.

A directory is a run if and only if it holds `run.json`, which is written atomically, and last. No file holds the
directory's own path: a run that is moved or copied resumes where it lies.
"""

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import files, provenance
from savepoint.errors import UserError

RECORD, CONFIG, CHECKPOINTS, METRICS, LOG = "run.json", "config.yaml", "checkpoints", "metrics.jsonl", "train.log"
_RECORDED = ("name", "status", "started", "tracker", "parents", "sweep", "overrides")
LOCK = ".lock"
MIN_ID, MIN_TRACKER_ID = 4, 6  # characters of a prefix
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
        files.replace(self.directory / RECORD, json.dumps(self.record, indent=1).encode() + b"\n")

    def note_tracker(self, kind: str, tracker_id: str) -> None:
        """Keep the tracker's run id, and tell it. Seconds after the start: training does not wait for it."""
        if tracker_id != self.tracker_id:
            with contextlib.suppress(OSError):  # a full disk is for the checkpoints to tell; `record` has it by then
                self.update(tracker={"kind": kind, "run_id": tracker_id})
        log.info("%s run %s", kind, tracker_id)

    def hold(self) -> files.Lock:
        """Keep other processes from training this run, until this one ends. Raises: UserError if one does already."""
        return hold(self.directory, f"Run {self.id}")

    def address(self, repository: Path) -> str:
        """What to type after `run=`: the id, or the directory where no id is looked for."""
        inside = self.directory.is_relative_to(repository)
        place = self.directory.relative_to(repository).parts if inside else ("",)
        listed = (place[0], len(place)) in (("runs", 3), ("sweeps", 4))
        return self.id if listed else shlex.quote(str(self.directory))


def hold(directory: Path, what: str) -> files.Lock:
    """The lock of a directory in which something trains. Raises: UserError if another process has it."""
    lock = files.Lock(directory / LOCK)
    if not lock.acquire():
        lock.release()
        raise UserError(f"{what} is being trained by another process. Wait for it, or stop it first.")
    for name in (RECORD, CONFIG, METRICS):
        files.remove_leftovers(directory / name)  # of a process that was killed: nobody else writes them now
    return lock


def of_the_disk(error: OSError, directory: Path | None = None) -> bool:
    """Whether the disk refused, because it is full, say, and not a file that somebody's code looked for.

    directory: the run's. Whatever is wrong with a file of it, or with the directory itself, is of the disk.
    """
    if directory is not None and isinstance(error.filename, str | os.PathLike):
        return Path(error.filename).absolute().is_relative_to(directory.absolute())
    return error.errno in _DISK_ERRORS


@contextlib.contextmanager
def told(directory: Path) -> Iterator[None]:
    """What the disk refuses in here is worded for a person. Raises: UserError for that."""
    try:
        yield
    except OSError as error:
        if not of_the_disk(error, directory):
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
            files.sync_directory(parent)
    run = Run(directory, {})
    try:
        files.replace(directory / CONFIG, config.encode())
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
        files.remove(run.directory / name)
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


def every(repository: Path) -> list[Run]:
    """The runs under runs/ and sweeps/, oldest first. One that cannot be read is left out."""
    runs = []
    for pattern in ("runs/*/*/run.json", "sweeps/*/*/*/run.json"):
        for path in repository.glob(pattern):
            try:
                runs.append(read(path.parent))
            except UserError:
                continue
    return sorted(runs, key=lambda run: str(run.record.get("started")))


@dataclass(frozen=True)
class Found:
    """What a person's words mean. checkpoint: what stood after `@`, or a checkpoint's name; None for the newest."""

    run: Run
    checkpoint: str | None


def find(text: str, repository: Path) -> Found:
    """`<run>[@best|@last|@<checkpoint name>|@<step>]`, by id, tracker id, prefix, directory or `latest`.

    Raises: UserError that says what there is, if it names no run or more than one.
    """
    if not text:
        raise UserError("Which run? Give run=<id>, a run directory, or latest.")
    if Path(text).exists():
        return _at(Path(text))
    name, mark, checkpoint = text.rpartition("@")
    name, selector = (name, checkpoint) if mark else (text, None)
    if selector == "":
        raise UserError(f"run={text}: nothing follows the @. Give @best, @last, @<step> or a checkpoint's name.")
    if Path(name).exists():
        return Found(_at(Path(name)).run, selector)
    runs = every(repository)
    if name == "latest":
        if not runs:
            raise UserError(f"There are no runs yet under {repository}. Start one: python train.py")
        return Found(runs[-1], selector)
    return Found(_by_id(name, runs), selector)


def _at(path: Path) -> Found:
    path = path.resolve()
    if (path / RECORD).exists():
        return Found(read(path), None)
    if (path / "manifest.json").exists() or re.fullmatch(r"epoch_\d+_step_\d+", path.name):
        if (path.parent.parent / RECORD).exists():
            return Found(read(path.parent.parent), path.name)
        raise UserError(f"{path} is a checkpoint without its run: {path.parent.parent} has no {RECORD}.")
    raise UserError(f"{path} is neither a run (it has no {RECORD}) nor a checkpoint (it has no manifest.json).")


def _by_id(name: str, runs: list[Run]) -> Run:
    exact = [run for run in runs if name in (run.id, run.tracker_id)]
    own = [run for run in runs if len(name) >= MIN_ID and run.id.startswith(name)]
    tracked = [run for run in runs if len(name) >= MIN_TRACKER_ID and (run.tracker_id or "").startswith(name)]
    matches = exact or list({run.directory: run for run in own + tracked}.values())
    if len(matches) == 1:
        return matches[0]
    if len({run.id for run in matches}) == 1:
        places = ", ".join(str(run.directory) for run in matches)
        raise UserError(f"run={name} has been copied. Give one of these directories: {places}.")
    if matches:
        ids = ", ".join(run.id for run in matches)
        raise UserError(f"run={name} could be any of {ids}. Give more characters.")
    if len(name) < MIN_ID:
        raise UserError(f"run={name} is too short: give at least {MIN_ID} characters of a run's id.")
    raise UnknownRunError(
        f"No run {name}." + (f" The newest are {', '.join(_told(run) for run in runs[:-6:-1])}." if runs else "")
    )


class UnknownRunError(UserError):
    """No run of that id under runs/ and sweeps/; the tracker may know one that lies elsewhere."""


def _told(run: Run) -> str:
    return f"{run.id} ({run.record.get('name')})" if run.record.get("name") else run.id
