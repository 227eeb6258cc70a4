"""Print how two runs or two checkpoints differ, section by section: config, code, versions, metrics, tensors, state."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from savepoint import checkpoint, runs, trust
from savepoint.checkpoint import Checkpoint
from savepoint.commands import diff, places
from savepoint.config import differences
from savepoint.errors import ConfigError, HostileError, UserError

USAGE = """\
usage: python -m savepoint diff <run>[@best|@last|@<step>|@<name>] <run>[@…] [--json]

Each may also be a checkpoint directory. Two whole runs are compared by their newest sound checkpoints, and by every
line that they logged. The exit code is 0 if the weights, the state and these lines are equal bit by bit. Differences of
config, code and versions are printed too, and do not change the exit code."""
MOST_LINES = 40  # of a section
DECISIVE = ("tensors", "state", "history")  # the sections that decide the exit code


def compare(repository: Path, arguments: list[str]) -> int:
    """Print what differs between two runs or checkpoints. arguments: as typed after `diff`. Returns: the exit code.

    Raises: UserError if one of the two names no run and no checkpoint, or names a damaged one.
    """
    if {"-h", "--help"} & {*arguments}:
        print(USAGE)
        return 0
    queries = [each for each in arguments if each != "--json"]
    if len(queries) != 2 or any(each.startswith("-") for each in queries):
        raise UserError(f"Which two? {USAGE.splitlines()[0]}")
    (a, run_a), (b, run_b) = (_load(query, repository) for query in queries)
    sections = _sections(a, b)
    if run_a and run_b:
        sections["history"] = diff.diff_histories(run_a, run_b)
        if a.path.name != b.path.name:
            sections["state"].insert(0, f"checkpoint: {a.path.name}, {b.path.name}")
    identical = not any(sections.get(name) for name in DECISIVE)
    if "--json" in arguments:
        ends = [{"checkpoint": str(each.path), "run": each.provenance.get("run_id")} for each in (a, b)]
        print(json.dumps({"identical": identical, "a": ends[0], "b": ends[1], **sections}, allow_nan=False))
    else:
        print("\n".join([*_text(sections), "identical" if identical else "different"]))
    return 0 if identical else 1


def _load(query: str, repository: Path) -> tuple[Checkpoint, runs.Run | None]:
    """Load the checkpoint that a query means. Returns: it, and its run if the query means the whole run."""
    place = places.find(query, repository)
    whole = place.run if place.names == checkpoint.names(place.root) and not _names_one(query) else None
    return places.load_newest(place, query), whole


def _names_one(query: str) -> bool:
    """Whether a query means one checkpoint, and not the run around it."""
    path = Path(query)
    return (path / checkpoint.MANIFEST).exists() if path.exists() else "@" in query


def _sections(a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    """Return what differs, by section. Config and metrics map each key to both values; the others are lines."""
    tensors, state = diff.diff_contents(a, b, magnitudes=True)
    versions = runs.provenance_differences(a.provenance, b.provenance)
    commits = [each for each in versions if each.startswith("git commit ")]
    return {
        "config": _configs(a, b),
        "code": commits + _patches(a, b),
        "versions and hardware": [each for each in versions if each not in commits],
        "metrics": _pairs(_metrics(a), _metrics(b)),
        "tensors": tensors,
        "state": state,
    }


def _configs(a: Checkpoint, b: Checkpoint) -> dict[str, list[Any]]:
    try:
        return _pairs(trust.parse_config(a.config), trust.parse_config(b.config))
    except (ConfigError, HostileError):  # nothing is built from these configs here, so their texts are compared
        digests = [f"SHA-256 {hashlib.sha256(each.config.encode()).hexdigest()[:12]}" for each in (a, b)]
        return {checkpoint.CONFIG: digests} if digests[0] != digests[1] else {}


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """Return both values of each key that differs, as JSON has them."""
    return {key: [_plain(each) for each in pair] for key, pair in differences(a, b).items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _patches(a: Checkpoint, b: Checkpoint) -> list[str]:
    found = [_patch_digest(each) for each in (a, b)]
    return [] if found[0] == found[1] else [f"uncommitted changes {found[0]} → {found[1]}"]


def _patch_digest(one: Checkpoint) -> str:
    path = one.path / checkpoint.PATCH
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "none"


def _metrics(one: Checkpoint) -> dict[str, Any]:
    """Return what was logged at the last evaluation, and the best value so far."""
    last, best = (one.state.get(name) for name in ("metrics", "best"))
    found = {str(key): value for key, value in last.items()} if isinstance(last, dict) else {}
    if isinstance(best, dict):
        found[f"best {best.get('metric')}"] = best.get("value")
    return {key: value for key, value in found.items() if value is None or isinstance(value, int | float | str)}


def _text(sections: dict[str, Any]) -> list[str]:
    """Return the sections as lines for people, each with a heading, in at most `MOST_LINES` lines."""
    lines = []
    for title, found in sections.items():
        if isinstance(found, dict):
            width = max(map(len, found), default=0)
            found = [f"{key.ljust(width)}  {pair[0]} → {pair[1]}" for key, pair in found.items()]
        if found:
            lines += [title, *(f"  {trust.printable(each, limit=400)}" for each in found[:MOST_LINES])]
        if len(found) > MOST_LINES:
            lines.append(f"  and {len(found) - MOST_LINES} more differences")
    return lines
