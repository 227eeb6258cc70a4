"""Ask a tracker's store one question, or send it one order, outside of any run. Each starts a process of its own."""

import re
import tempfile
from pathlib import Path

from savepoint.config import TrackerSettings
from savepoint.errors import UserError
from savepoint.trackers import kinds
from savepoint.trackers.process import LOG, Message, Worker
from savepoint.trackers.protocol import Found, Page, Server, Sweep


def finish_sweep(
    settings: TrackerSettings, repository: Path, sweep: Sweep, about: Message, timeout_seconds: float
) -> tuple[list[str], Page | None]:
    """Finish a sweep whose jobs other processes have run. about: `sweep_id`, `status` and `table`.

    Returns: what `trackers.finish_sweep` returns.
    """
    kind = kinds.load(settings.kind)
    order = kind.locate(settings, repository, sweep.dir) | {"do": "finish_sweep", "kind": settings.kind} | about
    if kind.absent(order):
        return [], None
    try:
        worker = Worker(order, log=sweep.dir / LOG, environment=kind.environment)
        answer = worker.ask(timeout_seconds)
    except (TimeoutError, RuntimeError) as error:
        answer = {"failed": str(error)}
    if answer["failed"] is not None:
        return [unstored_table(kind, answer["failed"], Path(about["table"]))], None
    return [], None if answer["path"] is None else kind.page(order, answer["path"])


def unstored_table(kind: kinds.Kind, why: str, table: Path) -> str:
    """Return one line that says that a sweep's table is not stored."""
    return f"{kind.title} has not stored the sweep's table ({why.rstrip('.')}). It is complete in {table}."


def find_run(settings: TrackerSettings, *, repository: Path, text: str, timeout_seconds: float) -> Found | None:
    """Do what `trackers.find_run` promises."""
    kind = kinds.load(settings.kind)
    with tempfile.TemporaryDirectory() as lock_dir:
        order = kind.locate(settings, repository, Path(lock_dir)) | {"do": "find_runs", "kind": settings.kind}
        if kind.absent(order) or not re.fullmatch(r"[0-9A-Za-z-]{6,64}", text):
            return None
        title = f"{kind.title} was asked for the run {text}"
        answer = _ask(kind, order | {"text": text}, timeout_seconds, title)
    runs = [Found(*run) for run in answer["runs"]]
    if len(runs) > 1:
        ids = ", ".join(run.tracker_run_id for run in runs)
        raise UserError(f"several of {kind.title}'s runs begin with {text}: {ids}. Give more characters.")
    return runs[0] if runs else None


def fetch_run(
    settings: TrackerSettings, *, repository: Path, found: Found, to: Path, timeout_seconds: float
) -> list[str]:
    """Do what `trackers.fetch_run` promises."""
    kind = kinds.load(settings.kind)
    order = kind.locate(settings, repository, to) | {"do": "fetch", "kind": settings.kind}
    order |= {"stored_id": found.tracker_run_id, "to": str(to.absolute())}
    title = f"{kind.title}'s run {found.tracker_run_id} cannot be fetched"
    fetched: list[str] = _ask(kind, order, timeout_seconds, title)["fetched"]
    return fetched


def find_page(settings: TrackerSettings, *, repository: Path) -> Page:
    """Do what `trackers.find_page` promises."""
    kind = kinds.load(settings.kind)
    return kind.front(kind.locate(settings, repository, repository))


def find_server(settings: TrackerSettings, *, repository: Path, port: str) -> Server:
    """Do what `trackers.find_server` promises."""
    kind = kinds.load(settings.kind)
    return kind.serve(kind.locate(settings, repository, repository), port)


def _ask(kind: kinds.Kind, order: Message, timeout_seconds: float, title: str) -> Message:
    """Ask a new process one question. Raises: UserError that begins with `title`, if there is no answer."""
    try:
        answer = Worker(order, log=None, environment=kind.environment).ask(timeout_seconds)
    except (TimeoutError, RuntimeError) as error:
        answer = {"failed": str(error)}
    if answer["failed"] is not None:
        raise UserError(f"{title}: {answer['failed'].rstrip('.')}.")
    return answer
