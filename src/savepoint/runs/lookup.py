"""Find the run that a person names: by id, tracker id, prefix, directory, or `latest`."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from savepoint import trackers
from savepoint.config import TrackerSettings, compose, read_settings
from savepoint.errors import UserError, short_list
from savepoint.runs.directory import RECORD, Run, read
from savepoint.runs.fetch import fetch

# The shortest prefix of an id that names a run, in characters.
MIN_ID, MIN_TRACKER_ID = 4, 6


@dataclass(frozen=True)
class Found:
    """A run, and what names one of its checkpoints: `best`, `last`, a step or a name. None means the newest one."""

    run: Run
    checkpoint: str | None


def all_runs(repository: Path) -> list[Run]:
    """List the runs under runs/ and sweeps/, oldest first. Runs whose record cannot be read are left out."""
    places = [*_below([str(repository / "runs")], 2), *_below([str(repository / "sweeps")], 3)]
    return sorted(runs_in(places), key=lambda run: str(run.record.get("started")))


def runs_in(places: Iterable[str]) -> Iterator[Run]:
    """Yield the runs among some directories, without those whose record cannot be read."""
    for place in places:
        with contextlib.suppress(UserError):
            yield read(Path(place))


def _below(places: list[str], levels: int) -> list[str]:
    """List everything that lies `levels` levels below some directories. Path.glob would take ten times as long."""
    for _ in range(levels):
        found = []
        for place in places:
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                found += [entry.path for entry in entries]
        places = found
    return places


def find(
    query: str, repository: Path, *, tracker: TrackerSettings | None = None, apart_from: str | None = None
) -> Found:
    """Find the run that `query` names, and the checkpoint after its `@`.

    query: `<run>` or `<run>@<checkpoint>`. `<run>` is a run's id or at least 4 characters of it, the tracker's id or at
    least 6 characters of it, a run directory, a checkpoint directory, or `latest`. An existing path is taken whole,
    even if it contains an `@`.
    tracker: where to look for an id that is not under runs/ and sweeps/. None takes the tracker of conf/.
    apart_from: the id of a run or of a sweep that is just being started, so `latest` does not mean it.
    Raises: UserError if `query` names no run, or several. The message repeats the query and says what there is.
    """
    if os.path.lexists(query):
        return _at(query)
    name, mark, checkpoint = query.rpartition("@") if "@" in query else (query, "", "")
    if not name:
        raise UserError("Which run? Give its id, a run directory, or latest.")
    if mark and not checkpoint:
        raise UserError(f"{query}: nothing follows the @. Give @best, @last, @<step> or a checkpoint's name.")
    choice = checkpoint or None
    if os.path.lexists(name):
        return Found(_at(name).run, choice)
    runs = [run for run in reversed(all_runs(repository)) if apart_from not in (run.id, run.record["sweep"] or run.id)]
    if name == "latest":
        if not runs:
            raise UserError(f"There are no runs yet under {repository}. Start one: python train.py")
        return Found(runs[0], choice)
    run = _by_id(name, runs) or _by_tracker(name, repository, tracker)
    if run is None:
        newest = f" The newest are {short_list([_title(run) for run in runs])}." if runs else ""
        raise UserError(f"No run {name}.{newest}")
    return Found(run, choice)


def _at(query: str) -> Found:
    """Open the run directory or the checkpoint directory that exists at `query`."""
    # `Path.resolve` raises RuntimeError for links in a circle.
    path = Path(os.path.realpath(query))
    try:
        return _open(path)
    except UserError as error:
        if query == str(path):
            raise
        raise UserError(f"{query}: {error}") from None


def _open(path: Path) -> Found:
    if (path / RECORD).exists():
        return Found(read(path), None)
    if (path / "manifest.json").exists() or re.fullmatch(r"epoch_\d+_step_\d+", path.name):
        if (path.parent.parent / RECORD).exists():
            return Found(read(path.parent.parent), path.name)
        raise UserError(f"{path} is a checkpoint without its run: {path.parent.parent} has no {RECORD}.")
    raise UserError(f"{path} is neither a run (it has no {RECORD}) nor a checkpoint (it has no manifest.json).")


def _by_id(name: str, runs: list[Run]) -> Run | None:
    """Find the one run whose id or tracker id is `name` or begins with it. runs: newest first."""
    exact = [run for run in runs if name in (run.id, run.tracker_id)]
    matches = exact or [
        run for run in runs if _begins(run.id, name, MIN_ID) or _begins(run.tracker_id, name, MIN_TRACKER_ID)
    ]
    ids = list(dict.fromkeys(run.id for run in matches))
    if len(ids) > 1:
        raise UserError(f"{name} could be any of {short_list(ids)}. Give more characters.")
    if len(matches) > 1:
        places = short_list([str(run.directory) for run in matches])
        raise UserError(f"Run {name} has been copied. Give one of its directories: {places}.")
    if not matches and len(name) < MIN_ID:
        raise UserError(f"The id {name} is too short. Give at least {MIN_ID} characters of it.")
    return matches[0] if matches else None


def _begins(id: str | None, prefix: str, shortest: int) -> bool:
    return id is not None and len(prefix) >= shortest and id.startswith(prefix)


def _by_tracker(name: str, repository: Path, settings: TrackerSettings | None) -> Run | None:
    """Ask the tracker where the run lies, and fetch it if it is not there. This is slow, so it comes last.

    A directory that the tracker names counts only if the run in it has the id that the tracker gave it.
    """
    if not re.fullmatch(r"[0-9A-Za-z-]{6,64}", name, re.ASCII):
        return None
    if settings is None:
        composed, _ = read_settings(compose([], repository / "conf"))
        settings = composed.tracker if composed else None
    found = settings and trackers.find_run(settings, repository=repository, text=name)
    if not found or not found.run_id or not settings:
        return None
    if found.run_dir and (Path(found.run_dir) / RECORD).exists():
        run = read(Path(found.run_dir))
        if run.id == found.run_id:
            return run
    return fetch(found, repository, settings)


def _title(run: Run) -> str:
    return f"{run.id} ({run.record.get('name')})" if run.record.get("name") else run.id
