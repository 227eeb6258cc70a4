"""Remember which weights were loaded while a run was built, and load the very same when it is built again.

A task that asks for the weights of `latest` or `@best` would otherwise get others after a resume.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from savepoint.errors import CheckpointError
from savepoint.weights.reading import Origin


@dataclass
class _Trace:
    run: str | None
    known: dict[str, Origin]
    loaded: list[dict[str, Any]] = field(default_factory=list)


_open: list[_Trace] = []


@contextlib.contextmanager
def tracing(recorded: object = None, *, run: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Collect the origins of all weights that are loaded in this block. Yields: the list of them, as values for JSON.

    recorded: the list that was collected when the run was first built. The same queries then give the same weights.
    run: the id of the run that is built, or of its sweep.
    """
    origins = [_parse(each) for each in recorded] if isinstance(recorded, list) else []
    _open.append(_Trace(run, {each.query: each for each in origins}))
    try:
        yield _open[-1].loaded
    finally:
        _open.pop()


def _parse(value: Any) -> Origin:
    """Read a record, which may come from a stranger's checkpoint. Raises: CheckpointError if it is malformed."""
    try:
        origin = Origin(**value)
        texts = [origin.query, *origin.sha256, *origin.sha256.values()]
        texts += [each for each in (origin.run, origin.checkpoint) if each is not None]
        if not all(isinstance(each, str) for each in texts):
            raise TypeError("not text")
    except (TypeError, AttributeError) as error:
        raise CheckpointError("The record of the weights that the run began with cannot be read.") from error
    return origin


def known(query: str) -> Origin | None:
    """Return where the weights of a query came from when the run was first built; None if they were not loaded then."""
    return _open[-1].known.get(query) if _open else None


def being_built() -> str | None:
    """Return the id of the run or sweep that is being built, so that `latest` does not mean it; None if none is."""
    return _open[-1].run if _open else None


def note(origin: Origin) -> None:
    """Record that weights were loaded. Raises: CheckpointError if the same query gave other weights before."""
    if not _open:
        return
    before = _open[-1].known.get(origin.query)
    if before is not None and before.sha256 != origin.sha256:
        raise CheckpointError(
            f"{origin.query}: these are not the weights that the run began with. Their digests were "
            f"{_digests(before)}, and are {_digests(origin)}. Bring the former file back."
        )
    if asdict(origin) not in _open[-1].loaded:
        _open[-1].loaded.append(asdict(origin))


def _digests(origin: Origin) -> str:
    return ", ".join(f"{name} {digest:.12}…" for name, digest in sorted(origin.sha256.items()))
