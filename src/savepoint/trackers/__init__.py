"""Trackers: where people watch a run. A tracker mirrors the run directory, and training never waits for it.

`metrics.jsonl` and `checkpoints/` hold the original data. A tracker follows those files, so no call logs a value.
Another process talks to the tracker's store, and the training process never imports the tracker's library. So neither
that import nor a server that is slow or down costs training time. Importing this package is cheap, too.

Rooms, in reading order:
    protocol   what a tracker can do
    none       the tracker that does nothing
    mirrored   a tracker that gives orders to another process
    process    start that process, send it orders, read its answers
    questions  one question to a store, outside of any run
    worker     the tracker's process: take orders, end in time
    service    the runs that this process serves: their duties, what failed, when to try again
    mirror     one run's copy in a store
    artifacts  the run's checkpoints and figures in the store
    points     metrics.jsonl as points: key, step, value, time
    notes      a run's description in a tracker: its origin, its results, its forks
    plot       the picture of losses and learning rates that a tracker shows
    store      the methods that a store must have
    kinds      describe each kind of tracker without importing its library
    mlflow     MLflow
    aim        Aim
    clearml    ClearML
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from savepoint.config import TrackerSettings, compose, read_settings
from savepoint.errors import ConfigError
from savepoint.trackers import mirrored, questions
from savepoint.trackers.kinds import Kind
from savepoint.trackers.none import NoTracker
from savepoint.trackers.points import Point
from savepoint.trackers.process import Message
from savepoint.trackers.protocol import Dataset, Found, Page, Server, Sweep, Tracker
from savepoint.trackers.store import Store, StoredRun

__all__ = [
    "Dataset",
    "Found",
    "Kind",
    "Message",
    "NoTracker",
    "Page",
    "Point",
    "Server",
    "Store",
    "StoredRun",
    "Sweep",
    "Tracker",
    "fetch_run",
    "find_page",
    "find_run",
    "find_server",
    "finish_sweep",
    "local_settings",
    "open",
]


def open(  # noqa: A001 - read as `trackers.open`, like `gzip.open`
    settings: TrackerSettings,
    *,
    run_dir: Path,
    run_id: str,
    repository: Path,
    sweep: Sweep | None = None,
    shared: bool = False,
    known_run_id: str | None = None,
    upload: bool = True,
    warn: Callable[[str], None] = print,
    inform: Callable[[str], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> Tracker:
    """Prepare a tracker. It warms up in the background, so call this early; only `start` creates a run in the tracker.

    run_dir: an existing directory. shared: whether one process serves all runs of the sweep. `Tracker.close` then waits
    for nothing, and the caller has to call `finish_sweep`.
    known_run_id: the tracker's id of this run, if the run has been tracked before.
    upload: copy checkpoints too. warn: called with one line when the tracker first fails.
    inform: called with one line that names the tracker's run, unless the run has ended. announce: called with the
    tracker's id of the run as soon as the id is known. The methods of this tracker call these three functions; with
    `shared`, the methods of a later run's tracker may call them.
    Raises: ConfigError if the store's address cannot be used.
    """
    if settings.kind == "none":
        return NoTracker()
    return mirrored.MirroredTracker(
        settings,
        run_dir=run_dir,
        run_id=run_id,
        repository=repository,
        sweep=sweep,
        shared=shared,
        known_run_id=known_run_id,
        upload=upload,
        warn=warn,
        inform=inform,
        announce=announce,
    )


def local_settings(kind: object, conf: Path, overrides: Sequence[str] = ()) -> TrackerSettings:
    """Compose the tracker's settings from conf/ and the command line.

    A run's config may come from a stranger, so it never decides where data goes. It only says which kind of tracker
    the run had.

    kind: the tracker's kind in the run's config, if there is one. overrides: the tracker's overrides.
    Raises: ConfigError that names every fault of the settings.
    """
    if kind == "none" and not overrides:
        return TrackerSettings(kind="none")  # composing would double the time in which a small run resumes
    choice = [f"tracker={kind}"] if isinstance(kind, str) and (conf / "tracker" / f"{kind}.yaml").is_file() else []
    settings, faults = read_settings(compose([*choice, *overrides], conf))
    if settings is None:
        raise ConfigError("\n".join(faults))
    return settings.tracker


def finish_sweep(
    settings: TrackerSettings,
    *,
    repository: Path,
    sweep: Sweep,
    table: Path,
    status: str,
    timeout_seconds: float = 60,
) -> tuple[list[str], Page | None]:
    """Wait until the runs of a sweep are stored, store its table of results, and set the status of its parent run.

    Returns: a line for each thing that is not stored, and the sweep's page, or None if no run of the sweep was tracked.
    """
    if settings.kind == "none":
        return [], None
    return mirrored.finish_sweep(
        settings, repository=repository, sweep=sweep, table=table, status=status, timeout_seconds=timeout_seconds
    )


def find_run(settings: TrackerSettings, *, repository: Path, text: str, timeout_seconds: float = 30) -> Found | None:
    """Look up a run by the tracker's run id or a unique prefix of 6 or more characters, else by the run's own id.

    Raises: UserError if several runs match, or if the tracker does not answer.
    """
    if settings.kind == "none":
        return None
    return questions.find_run(settings, repository=repository, text=text, timeout_seconds=timeout_seconds)


def fetch_run(
    settings: TrackerSettings, *, repository: Path, found: Found, to: Path, timeout_seconds: float = 3600
) -> list[str]:
    """Download what the tracker has of a run into the directory `to`: its record, config, figures and checkpoints.

    Nothing is verified here.
    Returns: the paths below `to`. Raises: UserError if the tracker does not answer, or the download fails.
    """
    return questions.fetch_run(settings, repository=repository, found=found, to=to, timeout_seconds=timeout_seconds)


def find_page(settings: TrackerSettings, *, repository: Path) -> Page:
    """Return the tracker's web page, without asking a server.

    Raises: ConfigError if there is no tracker, or its address cannot be used.
    """
    if settings.kind == "none":
        raise ConfigError("tracker=none has no web page. Choose a tracker in conf/config.yaml.")
    return questions.find_page(settings, repository=repository)


def find_server(settings: TrackerSettings, *, repository: Path, port: str) -> Server:
    """Return the server of a page whose `Page.store` is not None: the command that runs it on this machine.

    Raises: ConfigError if the store's address cannot be used; UserError if the server cannot work.
    """
    return questions.find_server(settings, repository=repository, port=port)
