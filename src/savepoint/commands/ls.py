"""List runs: `python -m savepoint ls`."""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import config, runs, system
from savepoint.commands import options, overview, tables
from savepoint.commands.overview import Overview
from savepoint.errors import UserError, short_list

USAGE = "usage: python -m savepoint ls [text|key=value …] [--sweep SWEEP] [--sort KEY] [--json]"
STATUSES = ("running", "finished", "interrupted", "failed", "killed")
CHOICES_WIDTH = 48  # columns; --json has all of it
# Sort keys. Runs that lack a value come first: a terminal shows the end of the list, which then has values.
SORTS: dict[str, Callable[[Overview], Any]] = {
    "started": lambda row: row.started,
    "id": lambda row: row.id,
    "name": lambda row: row.name or "",
    "choices": lambda row: row.choices,
    "status": lambda row: row.status,
    "epoch": lambda row: -1 if row.epoch is None else row.epoch,
    "best": lambda row: (row.best["metric"], row.best["value"]) if row.best else ("", 0.0),
    "commit": lambda row: row.commit or "",
}


def list_runs(repository: Path, arguments: list[str]) -> int:
    """Print a row for each run under runs/ and sweeps/ that passes every filter, the newest last. Returns: 0.

    arguments: as typed after `ls`.
    Raises: UserError for an option, a sort key, a filter or a sweep that does not exist.
    """
    given = options.parse(arguments, USAGE, flags=("--json",), values=("--sweep", "--sort"))
    key = given.values.get("--sort", "started")
    if key not in SORTS:
        raise UserError(f"--sort {key}: there are {', '.join(SORTS)}.")
    with system.memory.growing():
        there = runs.all_runs(repository)
        if "--sweep" in given.values:
            there = _jobs(given.values["--sweep"], there)
        groups = overview.groups(repository)
        rows = [overview.sum_up(run, groups) for run in there]
    for text in given.arguments:
        rows = _filtered(rows, text)
    rows.sort(key=lambda row: (SORTS[key](row), row.started, row.id))
    if "--json" in given.flags:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    elif rows:
        _print(rows)
    elif there:
        print(f"None of {len(there)} runs matches {' '.join(given.arguments)}.")
    else:
        print(f"There are no runs yet under {repository}. Start one: python train.py")
    return 0


def _jobs(query: str, there: list[runs.Run]) -> list[runs.Run]:
    """Return the runs of a sweep. query: its directory, its id, or a beginning that only its id has."""
    directory = Path(query)
    if directory.is_dir():
        jobs = [run for run in runs.runs_in(map(str, sorted(directory.iterdir()))) if run.record["sweep"] is not None]
        if not jobs:
            raise UserError(f"--sweep {query}: no run of a sweep lies in this directory.")
        return jobs
    ids = list(dict.fromkeys(str(run.record["sweep"]) for run in reversed(there) if run.record["sweep"] is not None))
    found = [query] if query in ids else [each for each in ids if each.startswith(query)]
    if len(found) > 1:
        raise UserError(f"--sweep {query} could be any of {short_list(found)}. Give more characters.")
    if not found:
        raise UserError(f"--sweep {query}: no run is of such a sweep. The newest sweeps: {short_list(ids)}.")
    return [run for run in there if run.record["sweep"] == found[0]]


def _filtered(rows: list[Overview], text: str) -> list[Overview]:
    """Keep the rows that a filter lets through. Raises: UserError for a status or a key that does not exist."""
    key, equals, pattern = text.partition("=")
    if not equals:
        sought = text.lower()
        return [row for row in rows if any(sought in each.lower() for each in (row.id, row.name or "", *row.overrides))]
    if key == "name":
        return [row for row in rows if fnmatch.fnmatchcase(row.name or "", pattern)]
    if key == "status":
        if pattern not in STATUSES:
            raise UserError(f"status={pattern}: there are {', '.join(STATUSES)}.")
        return [row for row in rows if row.status == pattern]
    held = [(row, _values(row, key)) for row in rows]
    if rows and not any(values for _, values in held):
        known = {"name", "status"} | {overview.typed(each)[0] for row in rows for each in row.overrides}
        hint = config.closest(key, known)
        there = short_list(sorted(known), most=12)
        raise UserError(f"{text}: no run has the key {key}.{hint} There are the keys of the configs, and {there}.")
    return [row for row, values in held if any(_equal(value, pattern) for value in values)]


def _values(row: Overview, key: str) -> list[Any]:
    """Return the values of a run at a key, any of which a filter may match; [] if the run has no such key.

    A config does not say which option of a group was chosen. If nobody typed it, the names of the group's class and of
    the class's module stand for it.
    """
    typed = dict(map(overview.typed, row.overrides))
    if key in typed and "." not in key:
        return [typed[key]]
    try:
        value: Any = runs.read_config(Path(row.directory))
    except UserError:
        return []
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return [typed[key]] if key in typed else []
        value = value[part]
    if isinstance(value, dict):
        module, _, name = str(value.get("_target_")).rpartition(".")
        return [module.rpartition(".")[2].lower(), name.lower()]
    return [value]


def _equal(value: Any, pattern: str) -> bool:
    """Whether a value is what a person wrote. Text may have `*` and `?`; numbers are compared as numbers.

    >>> _equal(0.001, "1e-3"), _equal("cnn", "c*"), _equal([8, 8], "[8,8]"), _equal(None, "null"), _equal(True, "1")
    (True, True, True, True, False)
    """
    if isinstance(value, str) and fnmatch.fnmatchcase(value, pattern):
        return True
    try:
        wanted = json.loads(pattern)
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return False
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _print(rows: list[Overview]) -> None:
    metrics = {row.best["metric"] for row in rows if row.best}
    # If all runs have the same metric, its name stands in the header.
    best = f"best {next(iter(metrics))}" if len(metrics) == 1 else "best"
    header = ("id", "name", "choices", "status", "epoch", best, "started", "commit", "parents")
    cells = [
        (
            row.id,
            row.name or "",
            row.choices if len(row.choices) <= CHOICES_WIDTH else f"{row.choices[: CHOICES_WIDTH - 1]}…",
            row.status,
            "" if row.epoch is None else str(row.epoch),
            _best(row, named=len(metrics) > 1),
            tables.local_time(row.started),
            f"{(row.commit or '')[:7]}{'+' if row.dirty else ''}",
            " ".join(row.parents),
        )
        for row in rows
    ]
    tables.write(header, cells, right=frozenset({"epoch", best}))


def _best(row: Overview, *, named: bool) -> str:
    if row.best is None:
        return ""
    value = f"{row.best['value']:.4g}"
    return f"{row.best['metric']} {value}" if named else value
