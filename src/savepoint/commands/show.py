"""Show what is known of a run, or what is inside a checkpoint: `python -m savepoint show`. Changes no file.

All of it may come from a stranger, so nothing is printed that could move a terminal's cursor.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import checkpoint, runs, trust
from savepoint.commands import options, overview, places, tables
from savepoint.errors import CheckpointError, UserError

USAGE = "usage: python -m savepoint show <run>[@best] [--json]"
TABLES = ("checkpoints", "files", "evaluations", "provenance", "config")  # what is not printed in one line
_MOST = 2**48  # no tensor has a longer dimension
_LEVELS = 4  # levels of nesting that are printed; --json has all


def show_run(repository: Path, arguments: list[str]) -> int:
    """Print a run, or the checkpoint that is named by `@` or by its directory. Returns: 0.

    arguments: as typed after `show`.
    Raises: UserError if there is no such run, CheckpointError if the files of a checkpoint cannot be read.
    """
    given = options.parse(arguments, USAGE, flags=("--json",))
    query = given.run()
    place = places.find(query, repository)
    try:
        if place.run is not None and not place.chosen:
            found = [_run(place.run, place.names, repository)]
        else:
            found = [_checkpoint(place.root / name, place.run) for name in place.names]
    except OSError as error:
        raise UserError(f"{query} cannot be read: {error.strerror}.") from error
    if "--json" in given.flags:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
        return 0
    for facts in found:
        _print(facts)
    print(f"\nWhether the checkpoints are sound was not checked. To do that: python -m savepoint verify {query}")
    return 0


def _run(run: runs.Run, names: list[str], repository: Path) -> dict[str, Any]:
    """Gather what is known of a run, under the keys of --json. What cannot be read is None, and named in `faults`."""
    row, faults = overview.sum_up(run, overview.groups(repository)).to_json(), []

    def tried(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except UserError as error:
            faults.append(str(error))
            return None

    provenance = tried(lambda: _json(run.checkpoints / names[-1] / checkpoint.PROVENANCE)) if names else None
    history = tried(lambda: runs.read_history(run.metrics))
    return {
        **{key: row[key] for key in ("id", "name", "status", "started", "directory")},
        "command": (provenance or {}).get("command"),
        "overrides": row["overrides"],
        "parents": row["parents"],
        "forked_from": run.record.get("forked_from"),
        "children": [each.id for each in runs.all_runs(repository) if run.id in each.origins],
        "tracker": run.record["tracker"],
        "sweep": row["sweep"],
        "last": _last(history or []),
        "best": row["best"],
        "evaluations": [each.to_json() for each in runs.read_evaluations(run.directory)],
        "checkpoints": [_saved(run.checkpoints / name) for name in names],
        "provenance": provenance,
        "config": tried(lambda: runs.read_config(run.directory)),
        "faults": faults,
    }


def _last(history: list[dict[str, object]]) -> dict[str, object] | None:
    """Return the line of the last evaluation, or the last line of all if there was none, without the time."""
    evaluated = [line for line in history if any(key == "train/loss" or key.startswith("val/") for key in line)]
    last = (evaluated or history)[-1:]
    return {key: value for key, value in last[0].items() if key != "time"} if last else None


def _saved(path: Path) -> dict[str, Any]:
    step, epoch = checkpoint.position(path.name)
    return {"name": path.name, "epoch": epoch, "step": step, "size": tables.size_of(path)}


def _checkpoint(path: Path, run: runs.Run | None) -> dict[str, Any]:
    """Gather what is inside a checkpoint, under the keys of --json. Of its tensor files only the headers are read."""
    digests = checkpoint.digests(path)
    state, provenance = _json(path / checkpoint.STATE), _json(path / checkpoint.PROVENANCE)
    tensors = {name: _tensors(path / name) for names in checkpoint.tensor_files(digests).values() for name in names}
    optimizers, rng = state.get("optimizers"), state.get("rng")
    named = optimizers if isinstance(optimizers, dict) else {}
    return {
        "name": path.name,
        "directory": str(path),
        "run": provenance.get("run_id") if run is None else run.id,
        **{key: state.get(key) for key in ("epoch", "step", "batch", "evaluated", "metrics", "best")},
        "learning_rates": [*_rates(state), *(rate for one in named.values() for rate in _rates(one))],
        "generators": [name for name, each in rng.items() if each] if isinstance(rng, dict) else [],
        "files": [
            {"name": name, "size": (path / name).lstat().st_size, "sha256": digest, **tensors.get(name, {})}
            for name, digest in digests.items()
        ],
        "provenance": provenance,
    }


def _json(path: Path) -> dict[str, Any]:
    return trust.parse_json(trust.read_file(path, at_most=trust.MAX_JSON), path)


def _rates(optimizer: Any) -> list[Any]:
    rates = optimizer.get("learning_rates") if isinstance(optimizer, dict) else None
    return rates if isinstance(rates, list) else []


def _tensors(path: Path) -> dict[str, Any]:
    """Count the tensors and the values in a file, and list their dtypes. Only its header is read."""
    if path.is_symlink() or not path.is_file():  # opening a pipe would wait for a writer
        raise CheckpointError(f"{path}: missing, or not a plain file.")
    with open(path, "rb") as file:
        start = file.read(8)
        header = start + file.read(min(int.from_bytes(start, "little"), checkpoint.MAX_HEADER))
    entries = checkpoint.read_header(header, name=str(path)).entries.values()
    try:
        if any(type(size) is not int or not 0 <= size < _MOST for entry in entries for size in entry["shape"]):
            raise ValueError("not a shape")
        values = sum(math.prod(entry["shape"]) for entry in entries)
        return {"tensors": len(entries), "values": values, "dtypes": sorted({str(entry["dtype"]) for entry in entries})}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a tensor is described wrongly ({error}).") from error


def _print(facts: dict[str, Any]) -> None:
    """Print a line for each fact, then the tables and the config. Facts without a value are left out."""
    for key, value in facts.items():
        if key not in TABLES and value not in (None, [], {}, ""):
            _print_fact(key, tables.local_time(value) if key == "started" else value)
    for each in facts.get("evaluations", []):
        _print_fact("evaluation", each)
    if facts.get("checkpoints"):
        cells = [[*_cells(each, "name", "epoch", "step"), tables.size(each["size"])] for each in facts["checkpoints"]]
        print()
        tables.write(("checkpoint", "epoch", "step", "size"), cells, right=frozenset({"epoch", "step", "size"}))
    if "files" in facts:
        counts = ("tensors", "values", "dtypes", "sha256")
        cells = [[each["name"], tables.size(each["size"]), *_cells(each, *counts)] for each in facts["files"]]
        print()
        tables.write(("file", "size", *counts), cells, right=frozenset({"size", "tensors", "values"}))
    if facts["provenance"]:
        print("\nprovenance")
        for key, value in facts["provenance"].items():
            _print_fact(f"  {key}", value)
    if facts.get("config"):
        print(f"\nconfig\n{trust.printable(trust.dump_config(facts['config']))}", end="")


def _print_fact(key: str, value: Any) -> None:
    print(tables.safe(f"{key.replace('_', ' '):<16}  {_line(value)}"))


def _cells(row: dict[str, Any], *keys: str) -> list[str]:
    return [_line(row[key]) if key in row else "" for key in keys]


def _line(value: Any, level: int = 0) -> str:
    """Write a nested value in one line.

    >>> _line({"epoch": 3, "best": {"val/loss": 0.123456789}, "dirty": False, "hidden": [8, 8]})
    'epoch 3, best (val/loss 0.123457), dirty no, hidden 8 8'
    """
    if isinstance(value, dict | list) and level == _LEVELS:
        return "…"
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_line(each, level + 1)}" for key, each in value.items())
        return f"({text})" if level else text
    if isinstance(value, list):
        return " ".join(_line(each, level + 1) for each in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
