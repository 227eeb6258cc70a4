"""Prove on a run's own config that a resume gives the same bits: `python -m savepoint verify RUN --exact`.

Three short trainings run, each in its own interpreter. The first two train the same from start to end. The third
resumes the first in the middle of its second epoch. Everything that they compute is compared. The first two can only
differ in what no seed decides. The third differs if a checkpoint does not hold all that matters.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from savepoint import trust
from savepoint.errors import UserError
from savepoint.exact import explain
from savepoint.exact.explain import Difference, Trace
from savepoint.exact.workplace import FailedError, Workplace, workplace

CLOCK_OFFSET = 115 * 86400 + 7 * 3600  # seconds: another day of the week, another month, another hour
LIMIT = 3  # causes that are shown
_KILLED = -9  # the status of a process that SIGKILL ended, a name that Windows lacks

_SHAPES = (
    "let the constructor make every parameter and buffer in the shape that it keeps; for what grows in training: "
    f"{explain.REGISTER}"
)
_WORKERS = "let a sample depend on its index alone, not on get_worker_info() or on what a worker has loaded before"
_HASH = (
    "sort a set before you go through it, and take savepoint.system.rng.fold_in(text) in place of hash(text) or "
    "id(thing)"
)
_CLOCK = "take the epoch, the step or the sample's index in place of the time"
_SURROUNDINGS = (
    "let it come from the config, the seed or the sample's index: not from a file's time, an address, the order of "
    "threads or anything else that is another in every process"
)
_OPERATION = "an operation that is not deterministic, or that reads memory nobody has written: nothing else explains it"
_ELSEWHERE = f"look for state that a library keeps, and make it state of the run: {explain.REGISTER}"


class Cause(NamedTuple):
    """One likely cause of a difference. where: a file and line, or a name. words: what is there. hint: what to do."""

    where: str
    words: str
    hint: str


def prove(config: dict[str, Any], repository: Path, *, say: Callable[[str], None]) -> int:
    """Train three short runs of `config`, compare them, and say line by line what was found.

    config: a checked config that is not tracked and keeps every checkpoint.
    Returns: the exit code; 0 if nothing differs, 1 if something does or if the run's own code fails.
    Raises: UserError if the run's own code refuses to train.
    """
    with workplace(repository, config) as place:
        try:
            return _prove(place, say)
        except FailedError as failed:
            if failed.status == 2:
                raise UserError(failed.output.removeprefix("error: ")) from None
            say(trust.printable(str(failed)))
            say("This training fails by itself, so nothing could be compared.")
            return 1


def _prove(place: Workplace, say: Callable[[str], None]) -> int:
    say("training for two short epochs, and the same again in another process …")
    first, second = _train_twice(place)
    if found := explain.first_of_ranks(first, second):
        what = explain.what(found, first[0].about)
        say(f"not exact: two runs of the same seed differ first {_place(found, place)}: {what}")
        _say(_unseeded(place, first, second, found), place, say)
        return 1
    workers = place.config["data"].get("num_workers", 0)
    say("resuming the first one in a third …")
    place.begin("third", hash_seed=3, resumes="first", workers=workers)
    try:
        resumed = place.end("third")
    except FailedError as failed:
        if failed.status < 0:  # killed, which says nothing about the checkpoint
            raise
        if not workers or not _equal_without_workers(place, first):
            return _report_failed_resume(place, failed, say)
        say(f"not exact: with data.num_workers={workers} the resume is refused, and with 0 workers it gives the same.")
        _say([Cause("the data set", "gives other samples in a loading worker", _WORKERS)], place, say)
        return 1
    return _compare_resumed(place, first, resumed, workers, say)


def _train_twice(place: Workplace) -> tuple[list[Trace], list[Trace]]:
    """Train two runs of the same seed side by side, or one after the other if memory is too small for both."""
    pair = (("first", 1, 0), ("second", 2, CLOCK_OFFSET))
    try:
        for name, hash_seed, clock_offset in pair:
            place.begin(name, hash_seed=hash_seed, clock_offset=clock_offset)
        return place.end("first"), place.end("second")
    except FailedError as failed:
        if failed.status != _KILLED and "out of memory" not in failed.output:
            raise
    for name, _, _ in pair:
        place.clear(name)
    traces = []
    for name, hash_seed, clock_offset in pair:
        place.begin(name, hash_seed=hash_seed, clock_offset=clock_offset)
        traces.append(place.end(name))
    return traces[0], traces[1]


def _equal_without_workers(place: Workplace, first: list[Trace]) -> bool:
    """Whether a resume without loading workers goes through and equals the uninterrupted run."""
    place.begin("fourth", hash_seed=1, resumes="first", workers=0)
    try:
        resumed = place.end("fourth")
    except FailedError:
        return False
    return explain.first_of_ranks(_tails(first, resumed), resumed) is None


def _tails(first: list[Trace], resumed: list[Trace]) -> list[Trace]:
    """Return what the ranks of the uninterrupted run recorded from where the resumed run begins."""
    return [each.since(resumed[0].records[0]["at"]) for each in first]


def _report_failed_resume(place: Workplace, failed: FailedError, say: Callable[[str], None]) -> int:
    say("not exact: the run goes through from its beginning, and a resume of it fails:")
    message = failed.output.removeprefix("error: ") if failed.status == 2 else str(failed)
    say(trust.printable(message.replace(f"{place.root / 'third'}{os.sep}", "")))
    if "does not fit the model" in failed.output:
        say(f"  to do: {_SHAPES}")
    return 1


def _compare_resumed(
    place: Workplace, first: list[Trace], resumed: list[Trace], workers: int, say: Callable[[str], None]
) -> int:
    at, tails = resumed[0].records[0]["at"], _tails(first, resumed)
    found = explain.first_of_ranks(tails, resumed)
    if found is None:
        updates, ranks = int(first[0].records[-1]["step"]), f" by {place.ranks} ranks" if place.ranks > 1 else ""
        count = sum(each.count for each in (*first, *first, *resumed))
        say(
            f"exact: {updates} updates in 2 epochs{ranks}, and again in another process, and resumed {_where(at)} in a "
            f"third: {count:,} values compared, none differs."
        )
        unused = dict(each for pair in zip(tails, resumed) for each in _unused(place, *pair, workers))
        for name, words in [*unused.items()][:LIMIT]:
            say(f"  not in the checkpoint, though nothing depended on it in these updates: {name}: {words}")
        return 0
    rank = found.ranks[0]
    what = explain.what(found, first[0].about)
    say(f"not exact: resumed {_where(at)}, the run differs first {_place(found, place)}: {what}")
    if workers and found.kind == "batch" and _equal_without_workers(place, first):
        causes = [Cause("the data set", f"gives other samples with {workers} workers than with none", _WORKERS)]
    else:
        suspects = explain.suspects(tails[rank], resumed[rank], found, here="there", there="after the resume")
        causes = [Cause(name, words, explain.advice(name, words, found)) for name, words in suspects] or [
            # Two whole runs were equal, so chance is not the cause.
            Cause(
                "cause", "state that no checkpoint holds, and no attribute or global of the project shows", _ELSEWHERE
            )
        ]
    _say(causes, place, say)
    return 1


def _unseeded(place: Workplace, firsts: list[Trace], seconds: list[Trace], found: Difference) -> list[Cause]:
    """List the likely causes of a difference between two runs of the same seed."""
    rank = found.ranks[0]
    first, second = firsts[rank], seconds[rank]
    own, every = explain.hashes(first.about, explain.responsible(found, first.about))
    notes = explain.noted(first, second, found)
    if any("id()" not in use for _, use in (own if notes else every)):
        # Swap the hash seeds of the two runs. One swap alone could take a rare difference for an effect of the seed.
        place.begin("as first", hash_seed=1, clock_offset=CLOCK_OFFSET)
        place.begin("as second", hash_seed=2)
        again = [place.end(name)[rank] for name in ("as first", "as second")]
        pairs = [explain.first(first, again[0]), explain.first(second, again[1])]
        if all(each is None or each.index > found.index for each in pairs):
            words = "with the same PYTHONHASHSEED the two are equal here"
            return [Cause(where, f"{use}: {words}", _HASH) for where, use in own or every if "id()" not in use]
    causes = [Cause(where, words, _CLOCK if "the clock" in words else explain.remedy(found)) for where, words in notes]
    suspects = explain.suspects(first, second, found, here="in the first", there="in the second")
    if not notes:
        causes += [Cause(where, use, _HASH) for where, use in own if "id()" in use]
    # An attribute that differs is only a consequence of the cause above it, so it gets the same hint.
    hint = causes[0].hint if causes else _SURROUNDINGS
    causes += [
        Cause(name, words, explain.remedy(found) if explain.GENERATOR in words else hint) for name, words in suspects
    ]
    return causes or [_unexplained(place, found)]


def _unexplained(place: Workplace, found: Difference) -> Cause:
    if not place.config.get("trainer", {}).get("deterministic", True):
        return Cause("trainer.deterministic", "is false", "set trainer.deterministic=true")
    if found.kind in ("input", "output", "gradient", "loss"):
        hint = "replace the operation; torch lists some at use_deterministic_algorithms"
        return Cause("cause", _OPERATION, hint)
    return Cause("cause", "no attribute, generator or clock of the project explains it", _SURROUNDINGS)


def _unused(place: Workplace, tail: Trace, resumed: Trace, workers: int) -> list[tuple[str, str]]:
    """List values outside the saved state that differ at the end although every compared value is equal."""
    last = Difference(tail.records[-1]["at"], "course", [], 0)
    ended, again = (Trace(each.about, each.records[-1:]) for each in (tail, resumed))
    found = explain.suspects(ended, again, last, here="there", there="after the resume")
    # torch's own counters, and what a loading worker does in its own process.
    package = trust.package(place.repository / "src")
    ignored = ("optimizer.", "scheduler.", *(("data.", f"{package}.data.") if workers else ()))
    return [each for each in found if not each[0].startswith(ignored)]


def _where(at: str) -> str:
    return f"after {at}" if at.startswith("update") else f"at {at}"


def _place(found: Difference, place: Workplace) -> str:
    """Say where in training a difference is, and in which rank unless all have it."""
    some = len(found.ranks) < place.ranks
    return _where(found.at) + (f", in rank {' and '.join(map(str, found.ranks))}" if some else "")


def _say(causes: list[Cause], place: Workplace, say: Callable[[str], None]) -> None:
    """Say the first few causes, and once for each kind what to do about it."""
    for where, words, _ in causes[:LIMIT]:
        near = where.removeprefix(f"{place.repository}{os.sep}")
        mark = " " if words.startswith(("calls", "makes", "gives", "is ")) else ": "
        say(trust.printable(f"  {near}{mark}{words}"))
    if len(causes) > LIMIT:
        say(f"  and {len(causes) - LIMIT} more")
    for hint in dict.fromkeys(cause.hint for cause in causes[:LIMIT]):
        say(f"  to do: {hint}")
