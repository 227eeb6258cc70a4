"""Judge one checkpoint: whether it is sound, what is wrong with it, and what resume.py would do.

This checks what `checkpoint.load` checks, and what a resume needs besides: that the checkpoint is the one that its name
says, that it belongs to this run, and that its config may be built here. Nothing that a config names is imported.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from savepoint import checkpoint, runs, trust
from savepoint.errors import CheckpointError, ConfigError, HostileError

SOUND, DAMAGED, REFUSED, NEWER, GONE = "sound", "damaged", "refused", "newer", "gone"


@dataclass(frozen=True)
class Verdict:
    """The result for one checkpoint.

    kind: SOUND, or the kind of its worst fault. fault: what is wrong, without the checkpoint's own path. resume: what
    resume.py would do: `begin` from it, `pass over` it, or `refuse`. Some faults are reported although it would begin.
    """

    name: str
    kind: str
    fault: str
    resume: str


def judge(path: Path, *, run: runs.Run | None, source: Path) -> Verdict:
    """Read every byte of a checkpoint and judge it. run: the run around it. source: holds the `project` package."""
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        # The retention of a run in training may have deleted it meanwhile.
        kind = DAMAGED if os.path.lexists(path) else GONE
        return Verdict(path.name, kind, shorten(error, path), "pass over")
    except checkpoint.NewerFormatError as error:
        return Verdict(path.name, NEWER, shorten(error, path), "refuse")
    try:
        trust.check_config(trust.parse_config(loaded.config), source=source)
    except (ConfigError, HostileError) as error:
        return Verdict(path.name, REFUSED, f"{checkpoint.CONFIG}: {shorten(error, path)}", "refuse")
    unlogged = dict(_history_faults(loaded, run))
    faults = [*_identity_faults(loaded, run), *unlogged]
    resume = "refuse" if "refuse" in unlogged.values() else "begin"
    return Verdict(path.name, DAMAGED if faults else SOUND, shorten("; ".join(faults), path), resume)


def shorten(error: object, path: Path) -> str:
    """Reduce an error to one printable line, without the path, which the table's first column has."""
    text = str(error).replace(f"{path}{os.sep}", "").removeprefix(f"{path}: ").removeprefix(f"{path} ")
    return trust.printable(text.replace("\n", "; "), limit=300).removesuffix(".")


def _identity_faults(loaded: checkpoint.Checkpoint, run: runs.Run | None) -> Iterator[str]:
    """Compare what provenance.json, the header of model.safetensors, config.yaml and run.json say of each other."""
    weights = checkpoint.tensor_files(checkpoint.digests(loaded.path))[checkpoint.MODEL][0]
    metadata = _header_metadata(loaded.path / weights)
    digest = hashlib.sha256(loaded.config.encode()).hexdigest()
    git = loaded.provenance.get("git")
    commit = git.get("commit") if isinstance(git, dict) else None
    run_id = loaded.provenance.get("run_id")
    if loaded.provenance.get("config_sha256") != digest:
        yield f"{checkpoint.PROVENANCE}: its config_sha256 is not that of {checkpoint.CONFIG}"
    for key, value in {"run_id": run_id, "git_commit": commit or "", "config_sha256": digest}.items():
        if metadata.get(f"savepoint.{key}") != value:
            yield f"{weights}: its savepoint.{key} is not that of the other files"
    if run is not None and run_id != run.id:
        yield f"{checkpoint.PROVENANCE}: of run {run_id}, and this is {run.id}"


def _header_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file that was checked before."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            header = start + file.read(min(int.from_bytes(start, "little"), checkpoint.MAX_HEADER))
    except OSError:
        return {}
    return checkpoint.read_header(header, name=str(path)).metadata


def _history_faults(loaded: checkpoint.Checkpoint, run: runs.Run | None) -> Iterator[tuple[str, str]]:
    """Check the lines of metrics.jsonl that the checkpoint counts on. A resume cuts the file to them and reads them.

    Yields: what is wrong, and what resume.py would do.
    """
    if run is None:
        return
    needed = loaded.state.get("history_lines")
    if type(needed) is not int or needed < 0:
        yield f"{checkpoint.STATE}: history_lines is {needed!r}", "begin"
        return
    try:
        lines = run.metrics.read_bytes().split(b"\n")[:-1] if needed else []
    except OSError as error:
        resume = "begin" if isinstance(error, FileNotFoundError) else "refuse"
        yield f"{runs.METRICS}: {error.strerror}, and {checkpoint.STATE} counts on {needed} lines of it", resume
        return
    if len(lines) < needed:
        yield f"{runs.METRICS}: {len(lines)} lines, and {checkpoint.STATE} counts on {needed}", "begin"
    for number, line in enumerate(lines[:needed], start=1):
        try:
            trust.parse_json(bytearray(line), run.metrics)
        except CheckpointError:
            yield f"{runs.METRICS}: line {number} is no line of a history", "refuse"
            return
