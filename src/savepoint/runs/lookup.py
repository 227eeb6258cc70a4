"""Find the run that a person means: by id, tracker id, prefix, directory, or `latest`."""

import re
from dataclasses import dataclass
from pathlib import Path

from savepoint import trackers
from savepoint.config import TrackerSettings, compose, read_settings
from savepoint.errors import UserError
from savepoint.runs.directory import RECORD, Run, read

MIN_ID, MIN_TRACKER_ID = 4, 6  # characters of a prefix


def all_runs(repository: Path) -> list[Run]:
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


def _find_on_disk(text: str, repository: Path) -> Found:
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
    runs = all_runs(repository)
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


def find(text: str, repository: Path, *, tracker: TrackerSettings | None = None) -> Found:
    """As `run.find`; and an id that is none of a run under runs/ and sweeps/ is looked for in the tracker.

    It is believed if the run in the directory that it names has the id that it names. tracker: None for that of conf/.
    Raises: UserError that says what there is, if it names no run or more than one.
    """
    try:
        return _find_on_disk(text, repository)
    except UnknownRunError as unknown:
        # Slow, and only here.
        asked = tracker or _local(repository)
        name, mark, checkpoint = text.rpartition("@")
        there = asked and trackers.find_run(asked, repository=repository, text=name if mark else text)
        if there and there.run_dir and (Path(there.run_dir) / RECORD).exists():
            believed = read(Path(there.run_dir))
            if believed.id == there.run_id:
                return Found(believed, checkpoint if mark else None)
        raise unknown


def _local(repository: Path) -> TrackerSettings | None:
    composed, _ = read_settings(compose([], repository / "conf"))
    return composed.tracker if composed else None
