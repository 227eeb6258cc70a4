"""Copy one run into a store. A method that raised can be called again, and then goes on where it stopped."""

import functools
import itertools
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from savepoint import system
from savepoint.trackers.artifacts import MANIFEST, RECORD, CheckpointMirror, FigureMirror
from savepoint.trackers.points import Follower, evaluation_points
from savepoint.trackers.process import Message
from savepoint.trackers.store import StoredRun

PLOT_SECONDS = 30.0


class Mirror:
    """A run directory and its run in a store.

    order: the worker's order to follow the run. start: the order to start. followers: they read the run's points.
    say: sends a message to the training process.
    """

    def __init__(
        self, run: StoredRun, order: Message, start: Message, *, followers: Sequence[Follower], say: Callable[..., None]
    ) -> None:
        self._run, self._say, self._followers = run, say, followers
        say("opened", stored_id=run.id, path=run.path)
        # (key, step) of the points that the store had before this process.
        self._history = run.history()
        self._latest: dict[str, int] = {}  # key -> step of the newest point that this process has read
        self._points = 0
        self._documents = [Path(document) for document in start["documents"]]
        self._environment_stored = False
        self._run_dir, self._upload = Path(order["run_dir"]), order["upload"]
        self._checkpoints = CheckpointMirror(self._run_dir / "checkpoints", run)
        self._figures = FigureMirror(self._run_dir / "figures", run)
        self._model = {"repository": Path(order["repository"]), "register_as": order["register_as"]}
        self._recorded = ""
        self._title = start["name"] or order["run_id"]
        self._series: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/loss": [], "lr": []}
        self._drawn, self._drawn_at = 0, time.monotonic()

    def send_points(self) -> None:
        """Send the points that the files have gained, except those that the store has already."""
        for points in itertools.chain.from_iterable(follower.read() for follower in self._followers):
            latest = dict(self._latest)
            fresh = []
            for point in points:
                key = self._run.key(point.key)
                # A key has one value per step: the first in the file, so that all processes choose the same one.
                if (key, point.step) not in self._history and latest.get(key) != point.step:
                    fresh.append(point._replace(key=key))
                latest[key] = point.step
            self._run.log_points(fresh)
            self._latest = latest
            self._points += len(points)
            for point in points:
                if point.key in self._series:
                    self._series[point.key].append((point.step, point.value))
            self._say("stored", points=self._points)

    def send_evaluations(self) -> None:
        """Send the values of evaluations.jsonl, which were measured apart from training, each value once."""
        path = self._run_dir / "evaluations.jsonl"
        fresh = [point._replace(key=self._run.key(point.key)) for point in evaluation_points(path)]
        fresh = [point for point in fresh if (point.key, point.step) not in self._history]
        self._run.log_points(fresh)
        self._history |= {(point.key, point.step) for point in fresh}

    def set_status(self, status: str, ended: float) -> None:
        """Set how the run ended, "finished", "interrupted" or "failed", and when, in seconds since 1970."""
        self._run.set_status(status, ended)

    def set_note(self, note: str | None) -> None:
        """Set the run's note, which tells its results in Markdown. None leaves the note as it is."""
        if note is not None:
            self._run.set_note(note)

    def send_documents(self) -> None:
        """Store the documents that are not stored yet, and the list of installed packages."""
        while self._documents:
            if self._documents[0].is_file():
                self._run.put(self._documents[0], "")
            del self._documents[0]
        if not self._environment_stored:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory, "environment.txt")
                path.write_text(_environment(), encoding="utf-8")
                self._run.put(path, "")
            self._environment_stored = True

    def send_checkpoints(self, *, now: bool) -> None:
        """Make the uploaded checkpoints equal to those on the disk, if uploads are asked for.

        First send the files named in `RECORD`, so that the run can be restored from the store.
        now: send these files even if there is no new checkpoint since the last call.
        """
        newest = max((path.name for path in (self._run_dir / "checkpoints").glob("[!.]*")), default="")
        if newest != self._recorded or now:
            for name in RECORD:
                if (self._run_dir / name).is_file():
                    self._run.put(self._run_dir / name, "")
            self._recorded = newest
        if self._upload:
            self._checkpoints.sync()

    def send_model(self, status: str) -> None:
        """Store the model of the newest checkpoint if the run has finished and uploads are asked for."""
        names = [path.parent.name for path in (self._run_dir / "checkpoints").glob(f"[!.]*/{MANIFEST}")]
        if status == "finished" and self._upload and names:
            example = self._run_dir / "example.safetensors"
            self._run.put_model(self._run_dir / "checkpoints" / max(names), example=example, **self._model)

    def send_figures(self) -> None:
        """Make the uploaded figures equal to those on the disk."""
        self._figures.sync()

    def send_plot(self, *, now: bool) -> None:
        """Draw and store loss.png if there are new points. now: draw even if the last picture is less than 30 s old."""
        drawable = sum(len(series) for series in self._series.values())
        if drawable == self._drawn or not (now or time.monotonic() - self._drawn_at > PLOT_SECONDS):
            return
        from savepoint.trackers import plot

        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "loss.png")
            if plot.draw(path, title=self._title, series=self._series):
                self._run.put(path, "")
        self._drawn, self._drawn_at = drawable, time.monotonic()

    def close(self) -> None:
        """Let go of the run in the store. If that fails, count no point as stored: some stores write only now."""
        try:
            self._run.close()
        except Exception:  # whatever a store raises, which is reported
            self._say("stored", points=0)
            raise


@functools.cache
def _environment() -> str:
    """List the installed packages, as `pip freeze` does. The training process has the same environment."""
    # From the folders' names: reading the metadata in them takes a third of a second.
    folders = (path.stem for entry in sys.path for path in Path(entry).glob("*.dist-info"))
    found = {"==".join(folder.split("-", 1)) for folder in folders}
    lines = [f"# Python {platform.python_version()}, {platform.platform()}", *sorted(found, key=str.lower)]
    return "\n".join(lines) + "\n"


class SupersededError(Exception):
    """A younger worker has served the run. It has stored everything and has set the status."""


def take_turn(run_dir: Path, *, since: float) -> system.files.Lock:
    """Wait until no other worker serves this run. All points of that worker are then in the history fetched next.

    since: when the run's tracker was opened, in seconds since 1970.
    Raises: SupersededError if a younger worker has had its turn already.
    """
    lock = system.files.Lock(run_dir / ".tracker.lock")
    while not lock.acquire():
        time.sleep(0.05)
    turn = run_dir / ".tracker.turn"
    if turn.exists() and float(turn.read_text(encoding="utf-8") or 0) > since:
        lock.release()
        raise SupersededError
    turn.write_text(repr(since), encoding="utf-8")
    return lock
