"""Which run a person means, also where its directory lies elsewhere and only the tracker knows of it."""

from pathlib import Path

from savepoint import compose, run, settings, trackers


def find(text: str, repository: Path, *, tracker: settings.Tracker | None = None) -> run.Found:
    """As `run.find`; and an id that is none of a run under runs/ and sweeps/ is looked for in the tracker.

    It is believed if the run in the directory that it names has the id that it names. tracker: None for that of conf/.
    Raises: UserError that says what there is, if it names no run or more than one.
    """
    try:
        return run.find(text, repository)
    except run.UnknownRunError as unknown:
        # Slow, and only here.
        asked = tracker or _local(repository)
        name, mark, checkpoint = text.rpartition("@")
        there = asked and trackers.find_run(asked, repository=repository, text=name if mark else text)
        if there and there.run_dir and (Path(there.run_dir) / run.RECORD).exists():
            believed = run.read(Path(there.run_dir))
            if believed.id == there.run_id:
                return run.Found(believed, checkpoint if mark else None)
        raise unknown


def _local(repository: Path) -> settings.Tracker | None:
    composed, _ = settings.read(compose.compose([], repository / "conf"))
    return composed.tracker if composed else None
