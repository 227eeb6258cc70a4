"""Whether a resume gives the same bits, proved on a run's own config: `python -m savepoint verify RUN --exact`.

Three short trainings, each in an interpreter of its own: one from start to end, the same again, and one that resumes
the first in the middle of its second epoch. Everything that they compute is compared. The first two can only differ in
what no seed decides; the third differs where a checkpoint does not hold all that matters.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import config, lookup, plain, run
from savepoint.errors import UserError
from savepoint.exact import explain
from savepoint.exact.explain import Difference, Trace
from savepoint.exact.workplace import FailedError, Workplace, workplace

AHEAD = 115 * 86400 + 7 * 3600  # seconds: another day of the week, another month, another hour
LIMIT = 3  # causes that are shown


def main(text: str, repository: Path, *, say: Callable[[str], None]) -> int:
    """Exit code: 0 if nothing differs, 1 if something does or the run's own code fails. Raises: UserError."""
    chosen = _config(text, repository)
    with workplace(repository, chosen) as place:
        try:
            return _prove(place, say)
        except FailedError as failed:
            if failed.status == 2:
                raise UserError(failed.output.removeprefix("error: ")) from None
            say(failed.output)
            say("This training fails by itself, so nothing could be compared.")
            return 1


def _config(text: str, repository: Path) -> dict[str, Any]:
    """The config of a run, of its checkpoint after @, or of the newest where there is no run around it; not tracked."""
    from savepoint import verify

    path = Path(text)
    if path.is_dir() and not (path / run.RECORD).exists():
        found = verify.find(text, repository)
        path = found.run.directory if found.run else found.root / found.names[-1]
    else:
        named = lookup.find(text, repository)
        path = named.run.directory
        if named.checkpoint is not None:
            found = verify.find(text, repository)
            path = found.root / found.names[-1]
    try:
        chosen = plain.parse((path / run.CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{path / run.CONFIG} cannot be read: {error.strerror}.") from error
    config.check(chosen, source=repository / "src")
    chosen |= {"tracker": {"kind": "none"}, "init_from": None}
    # Both checkpoints of a short run have to stay.
    chosen["checkpoint"] = chosen.get("checkpoint", {}) | {"keep_last": 9, "upload": False}
    config.check(chosen, source=repository / "src")
    return chosen


def _prove(place: Workplace, say: Callable[[str], None]) -> int:
    say("training for two short epochs, and the same again in another process …")
    a, c = _twice(place)
    if found := explain.first(a, c):
        say(f"not exact: two runs of the same seed differ first {_where(found.at)}: {explain.what(found, a.about)}")
        _say(_unseeded(place, a, c, found), place, say)
        return 1
    workers = place.config["data"].get("num_workers", 0)
    say("resuming the first one in a third …")
    place.begin("third", hash_seed=3, of="first", workers=workers)
    try:
        b = place.end("third")
    except FailedError as failed:
        if failed.status < 0:  # killed
            raise
        if not workers or _refused(place, a):
            return _resume_fails(place, failed, say)
        say(f"not exact: with data.num_workers={workers} the resume is refused, and with 0 workers it gives the same.")
        _say([("the data set", "gives other samples in a loading worker", _WORKERS)], place, say)
        return 1
    return _compare_resumed(place, a, b, workers, say)


def _twice(place: Workplace) -> tuple[Trace, Trace]:
    """Two runs of the same seed, side by side, or one after the other if memory is too small for both."""
    pair = (("first", 1, 0), ("second", 2, AHEAD))
    try:
        for name, hash_seed, ahead in pair:
            place.begin(name, hash_seed=hash_seed, ahead=ahead)
        return place.end("first"), place.end("second")
    except FailedError as failed:
        if failed.status != -signal.SIGKILL and "out of memory" not in failed.output:
            raise
    for name, _, _ in pair:
        place.clear(name)
    traces = []
    for name, hash_seed, ahead in pair:
        place.begin(name, hash_seed=hash_seed, ahead=ahead)
        traces.append(place.end(name))
    return traces[0], traces[1]


def _refused(place: Workplace, a: Trace) -> bool:
    """Whether the resume without workers fails, or differs."""
    try:
        return _resumed(place, a, "fourth") is not None
    except FailedError:
        return True


def _resume_fails(place: Workplace, failed: FailedError, say: Callable[[str], None]) -> int:
    """The training goes through from start to end, and what was saved of it cannot be gone on with."""
    say("not exact: the run goes through from its beginning, and a resume of it fails:")
    say(failed.output.removeprefix("error: ").replace(f"{place.root / 'third'}{os.sep}", ""))
    if "does not fit the model" in failed.output:
        say(f"  to do: {_SHAPES}")
    return 1


_SHAPES = (
    "let the constructor make every parameter and buffer in the shape that it keeps; for what grows in training: "
    f"{explain.REGISTER}"
)


def _compare_resumed(place: Workplace, a: Trace, b: Trace, workers: int, say: Callable[[str], None]) -> int:
    at = b.records[0]["at"]
    tail = a.since(at)
    found = explain.first(tail, b)
    if found is None:
        updates, count = _updates(a), a.count * 2 + b.count
        say(f"exact: {updates} updates in 2 epochs, and again in another process, and resumed {_where(at)} in a third: "
            f"{count:,} values compared, none differs.")  # fmt: skip
        for name, words in _unused(tail, b, workers):
            say(f"  not in the checkpoint, though nothing depended on it in these updates: {name}: {words}")
        return 0
    say(f"not exact: resumed {_where(at)}, the run differs first {_where(found.at)}: {explain.what(found, a.about)}")
    if workers and found.kind == "batch" and _resumed(place, a, "fourth") is None:
        causes = [("the data set", f"gives other samples with {workers} workers than with none", _WORKERS)]
    else:
        suspects = explain.suspects(tail, b, found, here="there", there="after the resume")
        causes = [(name, words, explain.advice(name, words, found)) for name, words in suspects] or [
            _unexplained(place, found, resumed=True)
        ]
    _say(causes, place, say)
    return 1


_WORKERS = "let a sample depend on its index alone, not on get_worker_info() or on what a worker has loaded before"


def _resumed(place: Workplace, a: Trace, name: str) -> Difference | None:
    """What differs first if the resume is done without workers."""
    place.begin(name, hash_seed=1, of="first", workers=0)
    b = place.end(name)
    return explain.first(a.since(b.records[0]["at"]), b)


def _unseeded(place: Workplace, a: Trace, c: Trace, found: Difference) -> list[tuple[str, str, str]]:
    """Why two runs of the same seed differ: (place or name, what is there, what to do)."""
    own, every = explain.hashes(a.about, explain.responsible(found, a.about))
    notes = explain.noted(a, c, found)
    if any("id()" not in use for _, use in (own if notes else every)):
        # Both ways, so that what only happens now and then is not taken for it.
        place.begin("as first", hash_seed=1, ahead=AHEAD)
        place.begin("as second", hash_seed=2)
        pairs = [explain.first(a, place.end("as first")), explain.first(c, place.end("as second"))]
        if all(each is None or each.index > found.index for each in pairs):
            words = "with the same PYTHONHASHSEED the two are equal here"
            return [(where, f"{use}: {words}", _HASH) for where, use in own or every if "id()" not in use]
    causes = [(where, f"calls {words}", _CLOCK if "the clock" in words else explain.remedy(found))
              for where, words in notes]  # fmt: skip
    suspects = explain.suspects(a, c, found, here="in the first", there="in the second")
    # Beside such a line an attribute is only what came of it.
    addresses = [(where, use, _HASH) for where, use in own if "id()" in use and not notes]
    causes += addresses
    # No state to be saved: it is another in every process from its beginning.
    hint = causes[0][2] if causes else _SURROUNDINGS
    causes += [(name, words, explain.remedy(found) if explain.GENERATOR in words else hint) for name, words in suspects]
    return causes or [_unexplained(place, found)]


_HASH = "sort a set before you go through it, and take savepoint.rng.fold_in(text) in place of hash(text) or id(thing)"
_CLOCK = "take the epoch, the step or the sample's index in place of the time"


_SURROUNDINGS = (
    "let it come from the config, the seed or the sample's index: not from a file's time, an address, the order of "
    "threads or anything else that is another in every process"
)
_OPERATION = "an operation that is not deterministic, or that reads memory nobody has written: nothing else explains it"
_ELSEWHERE = f"look for state that a library keeps, and make it state of the run: {explain.REGISTER}"


def _unexplained(place: Workplace, found: Difference, *, resumed: bool = False) -> tuple[str, str, str]:
    if resumed:  # two whole runs were equal, so it is no chance
        return (
            "cause",
            "state that no checkpoint holds, and that no attribute or global of the project shows",
            _ELSEWHERE,
        )
    if not place.config.get("trainer", {}).get("deterministic", True):
        return ("trainer.deterministic", "is false", "set trainer.deterministic=true")
    if found.kind in ("input", "output", "gradient", "loss"):
        return ("cause", _OPERATION, "replace the operation; torch lists some at use_deterministic_algorithms")
    return ("cause", "no attribute, generator or clock of the project explains it", _SURROUNDINGS)


def _unused(tail: Trace, b: Trace, workers: int) -> list[tuple[str, str]]:
    """What the two keep outside of their state at the end, and is not equal though all else is."""
    last = Difference(tail.records[-1]["at"], "course", [], 0)
    here, there = (Trace(each.about, each.records[-1:]) for each in (tail, b))
    found = explain.suspects(here, there, last, here="there", there="after the resume")
    torch_own = ("optimizer.", "scheduler.")
    unlike = ("data.", "project.data.") if workers else ()
    return [each for each in found if not each[0].startswith(torch_own + unlike)][:LIMIT]


def _updates(a: Trace) -> int:
    return int(a.records[-1]["step"])


def _where(at: str) -> str:
    return f"after {at}" if at.startswith("update") else f"at {at}"


def _say(causes: list[tuple[str, str, str]], place: Workplace, say: Callable[[str], None]) -> None:
    """The causes, and what to do about each kind of them."""
    for where, words, _ in causes[:LIMIT]:
        near = where.removeprefix(f"{place.repository}{os.sep}")
        say(plain.printable(f"  {near}{' ' if words.startswith(('calls', 'makes', 'gives', 'is ')) else ': '}{words}"))
    if len(causes) > LIMIT:
        say(f"  and {len(causes) - LIMIT} more")
    for hint in dict.fromkeys(hint for _, _, hint in causes[:LIMIT]):
        say(f"  to do: {hint}")
