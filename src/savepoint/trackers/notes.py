"""Write the description of a run in a tracker: its origin, its outcome and its forks, each in a paragraph."""

from collections.abc import Sequence


def description(shown: str, *, origin: Sequence[str], outcome: tuple[str, str], fork: str | None = None) -> str:
    """Return a run's description after a change. A description that a person has written is kept.

    shown: the present description. origin: links to the runs that this one was forked from. outcome: the text about the
    run's results, as it was written last and as it is now. fork: a link to a new fork of this run, to be added.

    >>> first = description("", origin=["run a"], outcome=("", "Best 1."))
    >>> first
    'Started from run a.\\n\\nBest 1.'
    >>> second = description(first, origin=["run a"], outcome=("Best 1.", "Best 1."), fork="run c")
    >>> description(second, origin=["run a"], outcome=("Best 1.", "Best 2."))
    'Started from run a.\\n\\nBest 2.\\n\\nForked as run c.'
    >>> description("Mine.", origin=["run a"], outcome=("Best 1.", "Best 2."), fork="run c")
    'Mine.'
    """
    before, after = outcome
    start = f"Started from {', '.join(origin)}." if origin else ""
    forks = [part for part in shown.split("\n\n") if part.startswith("Forked as ")]
    if shown not in ("", _joined(start, before, *forks)):
        return shown
    added = f"Forked as {fork}." if fork else ""
    return _joined(start, after, *forks, "" if added in forks else added)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
