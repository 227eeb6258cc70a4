"""Report on a run's checkpoints: whether each is sound, and from which one a resume would begin. Changes no file."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from savepoint import checkpoint, runs, trust
from savepoint.checkpoint import SUPERSEDED
from savepoint.commands import tables
from savepoint.commands.places import Place, find
from savepoint.commands.soundness import DAMAGED, GONE, NEWER, REFUSED, SOUND, Verdict, judge, shorten
from savepoint.errors import ConfigError, HostileError, UserError, short_list


def verify_run(repository: Path, query: str) -> int:
    """Print a line for each checkpoint that `query` names. Returns: the exit code; 0 if all are sound."""
    try:
        # Flushed, since reading the next checkpoint may take a minute.
        say = functools.partial(print, flush=True)
        sound = report(find(query, repository), source=repository / "src", say=say)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{query} cannot be read: {error.strerror}.") from error
    return 0 if sound else 1


def report(place: Place, *, source: Path, say: Callable[[str], None]) -> bool:
    """Say a line for each checkpoint as soon as it is known, and a last one that sums up.

    source: the directory that holds the `project` package. Returns: whether all checkpoints are sound.
    """
    width = max((len(name) for name in place.names), default=0)
    if place.names:
        say(f"{'checkpoint':<{width}}  {'epoch':>6}  {'step':>9}  {'size':>9}")
    verdicts = []
    for name in place.names:
        size = tables.size(tables.size_of(place.root / name))
        verdict = judge(place.root / name, run=place.run, source=source)
        verdicts.append(verdict)
        epoch, step = _numbers(name)
        say(f"{_line(name):<{width}}  {epoch:>6}  {step:>9}  {size:>9}  {_words(verdict)}")
    for line in _hidden(place.root):
        say(line)
    refused = _refused(place.run.directory / runs.CONFIG, source) if place.run else None
    if refused:
        say(f"refused: {runs.CONFIG} of the run: {refused}")
    if place.run is None:
        say(f"There is no {runs.RECORD} with them: whether they are of one run, and its history, was not checked.")
    say(_summary(place, verdicts, refused))
    return not refused and all(verdict.kind in (SOUND, NEWER, GONE) for verdict in verdicts)


def _words(verdict: Verdict) -> str:
    words = {SOUND: "sound", GONE: "deleted meanwhile"}
    return words.get(verdict.kind, f"{verdict.kind}: {verdict.fault}")


def _refused(path: Path, source: Path) -> str | None:
    """Return why the run's own config is refused; None if it is not. A resume reads it before any checkpoint."""
    try:
        trust.check_config(trust.parse_config(path.read_bytes()), source=source)
    except OSError as error:
        return str(error.strerror)
    except (ConfigError, HostileError) as error:
        return shorten(error, path)
    return None


def _hidden(root: Path) -> Iterator[str]:
    """Yield a line for each kind of hidden checkpoint: half replaced, set aside as damaged, half written or deleted."""
    names = sorted(entry.name for entry in os.scandir(root)) if root.is_dir() else []
    aside = [_line(name) for name in names if name.startswith(".damaged-")]
    if hidden := [_line(name) for name in _half_replaced(names)]:
        yield f"half replaced, given its name back when the run next starts: {short_list(hidden, most=4)}"
    stale = [_line(name) for name in names if name.startswith(".tmp-") and not name.startswith(SUPERSEDED)]
    if aside:
        yield f"set aside as damaged before: {short_list(aside, most=4)}"
    if stale:
        yield f"half written or half deleted, removed when the run next starts: {short_list(stale, most=4)}"


def _half_replaced(names: list[str]) -> list[str]:
    """Return the checkpoints that a killed process had hidden, to replace them, and had not replaced."""
    hidden = [name.removeprefix(SUPERSEDED) for name in names if name.startswith(SUPERSEDED)]
    return [name for name in hidden if name not in names]


def _summary(place: Place, verdicts: list[Verdict], refused: str | None) -> str:
    words = {SOUND: "sound", DAMAGED: "damaged", REFUSED: "refused", NEWER: "of a newer format", GONE: "deleted"}
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in words}
    counted = ", ".join(f"{count} {words[kind]}" for kind, count in counts.items() if count)
    noun = "checkpoint" if len(verdicts) == 1 else "checkpoints"
    summary = f"{len(verdicts)} {noun}" + (f": {counted}" if counted else "")
    if place.run is None or place.names != checkpoint.names(place.root):
        return summary  # a part of the checkpoints does not tell where a resume would begin
    if not refused and place.root.is_dir() and (half := _half_replaced(sorted(os.listdir(place.root)))):
        return f"{summary}; resume would first give {_line(half[-1])} its name back"
    return f"{summary}; " + (f"resume would refuse the run's {runs.CONFIG}" if refused else _outlook(verdicts))


def _outlook(verdicts: list[Verdict]) -> str:
    """Say what resume.py would do. It passes over what is damaged, and refuses what is not allowed or not known."""
    if not verdicts:
        return f"resume would start over from {runs.CONFIG}"
    for verdict in reversed(verdicts):
        if verdict.resume == "begin":
            return f"resume would begin from {verdict.name}"
        if verdict.resume == "refuse":
            return f"resume would refuse {verdict.name}"
    return "resume would refuse: none can be loaded"


def _line(name: str) -> str:
    """Return a name that a stranger chose, fit for one line of a terminal."""
    return trust.printable(name, limit=400).replace("\n", "\\n")


def _numbers(name: str) -> tuple[str, str]:
    """Return the epoch and the step in a checkpoint's name; two empty texts for another name."""
    parts = name.split("_")
    whole = len(parts) == 4 and parts[1].isdecimal() and parts[3].isdecimal()
    return (str(int(parts[1])), str(int(parts[3]))) if whole else ("", "")
