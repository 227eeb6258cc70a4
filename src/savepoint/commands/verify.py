"""Whether each checkpoint of a run is sound, and from which one resume would begin. Changes nothing on the disk.

It asks what `checkpoint.load` asks, and what resuming needs besides: that a checkpoint is the one that its name says,
of this run, and that its config may be built here. Nothing that a config names is imported.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import checkpoint, exact, runs, trust
from savepoint.errors import CheckpointError, ConfigError, HostileError, UserError, short_list

SOUND, DAMAGED, REFUSED, NEWER, GONE = "sound", "damaged", "refused", "newer", "gone"


@dataclass(frozen=True)
class Place:
    """Where checkpoints lie. names: those that were asked for, oldest first. run: None for checkpoints without one."""

    root: Path
    names: list[str]
    run: runs.Run | None


@dataclass(frozen=True)
class Verdict:
    """What is to say about one checkpoint. fault: what is wrong, without the checkpoint's own path.

    kind: of the worst fault. resume: what resume.py would do here, which passes over some faults that are told.
    """

    name: str
    kind: str
    fault: str
    resume: str


# Flushed: the next line may take a minute.
_print = functools.partial(print, flush=True)


def verify_run(repository: Path, query: str) -> int:
    """Print a line for each checkpoint that `query` names. Returns: the exit code; 0 if all are sound."""
    try:
        sound = report(find(query, repository), source=repository / "src", say=_print)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{query} cannot be read: {error.strerror}.") from error
    return 0 if sound else 1


def verify_exact(repository: Path, query: str, *, say: Callable[[str], None] = _print) -> int:
    """Prove on the config of the run or checkpoint `query` that a resume gives the same bits.

    Returns: the exit code; 0 if it does.
    """
    return exact.prove(_exact_config(repository, query), repository, say=say)


def _exact_config(repository: Path, query: str) -> dict[str, Any]:
    """Read the config of a run, of its checkpoint after @, or of the newest checkpoint where there is no run."""
    path = Path(query)
    if path.is_dir() and not (path / runs.RECORD).exists():
        found = find(query, repository)
        path = found.run.directory if found.run else found.root / found.names[-1]
    else:
        named = runs.find(query, repository)
        path = named.run.directory
        if named.checkpoint is not None:
            found = find(query, repository)
            path = found.root / found.names[-1]
    try:
        chosen = trust.parse_config((path / runs.CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{path / runs.CONFIG} cannot be read: {error.strerror}.") from error
    trust.check_config(chosen, source=repository / "src")
    chosen |= {"tracker": {"kind": "none"}, "init_from": None}
    # Both checkpoints of a short run have to stay.
    chosen["checkpoint"] = chosen.get("checkpoint", {}) | {"keep_last": 9, "upload": False}
    trust.check_config(chosen, source=repository / "src")
    return chosen


def find(text: str, repository: Path) -> Place:
    """The checkpoints that a person's words mean; a directory that holds some needs no run around it.

    Raises: UserError if there is no such run, or no such checkpoint.
    """
    path = Path(text)
    if path.is_dir() and not (path / runs.RECORD).exists():
        inside = next((each for each in (path, path / runs.CHECKPOINTS) if checkpoint.names(each)), None)
        beside = path.resolve().parent  # a copy that lies elsewhere in a run is not the checkpoint of that name
        of_a_run = beside.name == runs.CHECKPOINTS and (beside.parent / runs.RECORD).exists()
        if (path / checkpoint.MANIFEST).exists() and not of_a_run:
            return Place(beside, [path.resolve().name], None)
        if inside is not None:
            around = inside.resolve().parent
            its = runs.read(around) if (around / runs.RECORD).exists() else None
            return Place(inside, checkpoint.names(inside), its)
    found = runs.find(text, repository)
    root = found.run.checkpoints
    names = checkpoint.names(root) if found.checkpoint is None else [_chosen(found.run, found.checkpoint)]
    return Place(root, names, found.run)


def _chosen(of: runs.Run, choice: str) -> str:
    """The name that `@best`, `@last`, `@<step>` or `@<name>` means, sound or not."""
    there = checkpoint.names(of.checkpoints)
    if choice == "last":
        found = there[-1:]
    elif choice == "best":
        found = _best(of)[:1]
    elif choice.isdecimal():
        found = [name for name in there if int(name.rpartition("_")[2]) == int(choice)][-1:]
    else:  # also one that was set aside, whose directory was given
        found = [choice] if Path(choice).name == choice != ".." and (of.checkpoints / choice).is_dir() else []
    if not found:
        raise UserError(f"No checkpoint @{choice} in run {of.id}. There are: {short_list(there[::-1])}.")
    return found[0]


def _best(of: runs.Run) -> list[str]:
    try:
        kept = trust.parse_config((of.directory / runs.CONFIG).read_bytes()).get("checkpoint")
    except OSError as error:
        raise UserError(f"{of.directory / runs.CONFIG} cannot be read: {error.strerror}.") from error
    kept = kept if isinstance(kept, dict) else {}
    monitor = kept.get("monitor", "val/loss")
    mode = kept.get("mode", "min")
    return checkpoint.best(of.checkpoints, monitor=monitor, mode=mode) if isinstance(monitor, str) else []


def report(place: Place, *, source: Path, say: Callable[[str], None]) -> bool:
    """Say line after line, each as soon as it is known; the last one sums up. Returns: whether all are sound.

    source: the directory that holds the `project` package.
    """
    width = max((len(name) for name in place.names), default=0)
    if place.names:
        say(f"{'checkpoint':<{width}}  {'epoch':>6}  {'step':>9}  {'size':>9}")
    verdicts = []
    for name in place.names:
        size = _readable(_size(place.root / name))
        verdict = judge(place.root / name, of=place.run, source=source)
        verdicts.append(verdict)
        epoch, step = _numbers(name)
        say(f"{_line(name):<{width}}  {epoch:>6}  {step:>9}  {size:>9}  {_told(verdict)}")
    for line in _hidden(place.root):
        say(line)
    refused = _refused(place.run.directory / runs.CONFIG, source) if place.run else None
    if refused:
        say(f"refused: {runs.CONFIG} of the run: {refused}")
    if place.run is None:
        say(f"There is no {runs.RECORD} with them: whether they are of one run, and its history, was not checked.")
    say(_summary(place, verdicts, refused))
    return not refused and all(verdict.kind in (SOUND, NEWER, GONE) for verdict in verdicts)


def _refused(path: Path, source: Path) -> str | None:
    """Why the run's own config could not be trained: resume reads it before any checkpoint."""
    try:
        trust.check_config(trust.parse_config(path.read_bytes()), source=source)
    except OSError as error:
        return str(error.strerror)
    except (ConfigError, HostileError) as error:
        return _short(error, path)
    return None


def _told(verdict: Verdict) -> str:
    words = {SOUND: "sound", GONE: "deleted meanwhile"}
    return words.get(verdict.kind, f"{verdict.kind}: {verdict.fault}")


def judge(path: Path, *, of: runs.Run | None, source: Path) -> Verdict:
    """What is wrong with one checkpoint, if anything is. Reads every byte of it."""
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        kind = DAMAGED if os.path.lexists(path) else GONE  # by the retention of a run in training
        return Verdict(path.name, kind, _short(error, path), "pass over")
    except checkpoint.NewerFormatError as error:
        return Verdict(path.name, NEWER, _short(error, path), "refuse")
    try:
        trust.check_config(trust.parse_config(loaded.config), source=source)
    except (ConfigError, HostileError) as error:
        return Verdict(path.name, REFUSED, f"{checkpoint.CONFIG}: {_short(error, path)}", "refuse")
    unlogged = dict(_unlogged(loaded, of))
    faults = [*_untraceable(loaded, of), *unlogged]
    resume = "refuse" if "refuse" in unlogged.values() else "begin"
    return Verdict(path.name, DAMAGED if faults else SOUND, _short("; ".join(faults), path), resume)


def _untraceable(loaded: checkpoint.Checkpoint, of: runs.Run | None) -> Iterator[str]:
    """What provenance.json, the header of model.safetensors, config.yaml and run.json say of each other."""
    metadata = _metadata(loaded.path / checkpoint.MODEL)
    digest = hashlib.sha256(loaded.config.encode()).hexdigest()
    git = loaded.provenance.get("git")
    commit = git.get("commit") if isinstance(git, dict) else None
    own_id = loaded.provenance.get("run_id")
    if loaded.provenance.get("config_sha256") != digest:
        yield f"{checkpoint.PROVENANCE}: its config_sha256 is not that of {checkpoint.CONFIG}"
    for key, value in {"run_id": own_id, "git_commit": commit or "", "config_sha256": digest}.items():
        if metadata.get(f"savepoint.{key}") != value:
            yield f"{checkpoint.MODEL}: its savepoint.{key} is not that of the other files"
    if of is not None and own_id != of.id:
        yield f"{checkpoint.PROVENANCE}: of run {own_id}, and this is {of.id}"


def _metadata(path: Path) -> dict[str, str]:
    """Of a file that was just read whole; the header alone is read again."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            header = start + file.read(min(int.from_bytes(start, "little"), checkpoint.MAX_HEADER))
    except OSError:
        return {}
    return checkpoint.read_header(header, name=str(path)).metadata


def _unlogged(loaded: checkpoint.Checkpoint, of: runs.Run | None) -> Iterator[tuple[str, str]]:
    """The history that the checkpoint counts on: resuming cuts it back to that many lines, and reads those.

    Yields: what is wrong, and what resume.py would do.
    """
    if of is None:
        return
    needed = loaded.state.get("history_lines")
    if type(needed) is not int or needed < 0:
        yield f"{checkpoint.STATE}: history_lines is {needed!r}", "begin"
        return
    try:
        lines = of.metrics.read_bytes().split(b"\n")[:-1] if needed else []
    except OSError as error:
        resume = "begin" if isinstance(error, FileNotFoundError) else "refuse"
        yield f"{runs.METRICS}: {error.strerror}, and {checkpoint.STATE} counts on {needed} lines of it", resume
        return
    if len(lines) < needed:
        yield f"{runs.METRICS}: {len(lines)} lines, and {checkpoint.STATE} counts on {needed}", "begin"
    for number, line in enumerate(lines[:needed], start=1):
        try:
            trust.parse_json(bytearray(line), of.metrics)
        except CheckpointError:
            yield f"{runs.METRICS}: line {number} is no line of a history", "refuse"
            return


def _hidden(root: Path) -> Iterator[str]:
    there = sorted(entry.name for entry in os.scandir(root)) if root.is_dir() else []
    aside = [name for name in there if name.startswith(".damaged-")]
    stale = [name for name in there if name.startswith(".tmp-")]
    if aside:
        yield f"set aside as damaged before: {_listed(aside)}"
    if stale:
        yield f"half written or half deleted, removed when the run next starts: {_listed(stale)}"


def _listed(names: list[str], *, most: int = 4) -> str:
    rest = len(names) - most
    return _line(", ".join(names[:most]), limit=400) + (f" and {rest} more" if rest > 0 else "")


def _summary(place: Place, verdicts: list[Verdict], refused: str | None) -> str:
    words = {SOUND: "sound", DAMAGED: "damaged", REFUSED: "refused", NEWER: "of a newer format", GONE: "deleted"}
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in words}
    counted = ", ".join(f"{count} {words[kind]}" for kind, count in counts.items() if count)
    noun = "checkpoint" if len(verdicts) == 1 else "checkpoints"
    told = f"{len(verdicts)} {noun}" + (f": {counted}" if counted else "")
    whole = place.run is not None and place.names == checkpoint.names(place.root)
    outlook = f"resume would refuse the run's {runs.CONFIG}" if refused else _outlook(verdicts)
    return f"{told}; {outlook}" if whole else told


def _outlook(verdicts: list[Verdict]) -> str:
    """What resume.py does: damaged falls back, and what is not allowed or not known here is refused outright."""
    if not verdicts:
        return f"resume would start over from {runs.CONFIG}"
    for verdict in reversed(verdicts):
        if verdict.resume == "begin":
            return f"resume would begin from {verdict.name}"
        if verdict.resume == "refuse":
            return f"resume would refuse {verdict.name}"
    return "resume would refuse: none can be loaded"


def _short(error: object, path: Path) -> str:
    """In one line, without the path that the table's first column says, and fit for a terminal."""
    text = str(error).replace(f"{path}{os.sep}", "").removeprefix(f"{path}: ").removeprefix(f"{path} ")
    return trust.printable(text.replace("\n", "; "), limit=300).removesuffix(".")


def _line(name: str, *, limit: int | None = None) -> str:
    """A name that a stranger chose, fit for a terminal and for one line of it."""
    return trust.printable(name, limit=limit).replace("\n", "\\n")


def _numbers(name: str) -> tuple[str, str]:
    parts = name.split("_")
    whole = len(parts) == 4 and parts[1].isdecimal() and parts[3].isdecimal()
    return (str(int(parts[1])), str(int(parts[3]))) if whole else ("", "")


def _size(path: Path) -> int | None:
    """Of the files that lie in it, in bytes; None where that cannot be told."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(path))
    except OSError:
        return None


def _readable(size: int | None) -> str:
    """
    >>> [_readable(size) for size in (None, 0, 999, 1000, 77_360, 999_950, 2_500_000_000, 10**18)]
    ['?', '0 B', '999 B', '1.0 kB', '77.4 kB', '1.0 MB', '2.5 GB', '1000000.0 TB']
    """
    if size is None or size < 1000:
        return "?" if size is None else f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if round(value, 1) < 1000 or unit == "TB":
            break
    return f"{value:.1f} {unit}"
