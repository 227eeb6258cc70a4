"""Aim's SDK as a store. Only the tracker's process imports it, inside functions, because it is seldom installed."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.aim.contents import allowed, merged, nested, stored_id
from savepoint.trackers.artifacts import as_markdown
from savepoint.trackers.notes import description
from savepoint.trackers.points import Point
from savepoint.trackers.process import Message

# The key of our own entries among a run's params: ids, tags, data sets, status.
OURS = "savepoint"
# These settings switch off what Aim would do in the background.
OFF = {"system_tracking_interval": None, "log_system_params": False, "capture_terminal_logs": False}
PICTURES = (".png", ".jpg", ".jpeg")
PATIENCE_SECONDS = 15.0  # how long to wait for a server


def connect(order: Message) -> "AimStore":
    """Open the store that an order names. If a local store does not exist, one process of many creates it."""
    from aim import Repo

    if order["root"] is None:
        try:
            return AimStore(Repo.from_path(order["uri"]), order)
        except RuntimeError as error:  # Aim's own message names no address
            raise TimeoutError("timed out") from error
    root = Path(order["root"])
    with system.files.locked(Path(order["lock"])):
        if not Path(order["uri"]).exists():
            _create(root)
    if Repo.check_repo_status(str(root)).name == "UPDATE_REQUIRED":
        use = "Move it away, or set tracker.uri or AIM_REPO to another store"
        raise UserError(f"{order['uri']} was not made by Aim 3, or its making was cut short. {use}")
    return AimStore(Repo.from_path(str(root)), order)


def _create(root: Path) -> None:
    """Create a repository of Aim's, whole or not at all. Aim takes seconds for it, and cannot repair a partial one."""
    from aim import Repo

    with tempfile.TemporaryDirectory(dir=root, prefix=".aim-new-") as fresh:
        repo = Repo(fresh, init=True)
        repo.structured_db.engine.dispose()
        repo.close()
        os.rename(Path(fresh, ".aim"), root / ".aim")


class AimStore:
    """A store of Aim's. `savepoint.trackers.store.Store` documents the methods."""

    def __init__(self, repo: Any, order: Message) -> None:
        self.repo, self.remote = repo, order["root"] is None
        self.artifacts, self.lock = Path(order["artifacts"]), Path(order["lock"])
        self._experiment = order["experiment"]

    def open_run(self, order: Message, start: Message) -> "AimRun":
        self._experiment = order["experiment"]  # a sweep's runs may be in several experiments
        own = {"run_id": order["run_id"], "run_dir": order["run_dir"], "status": "running"}
        if order["sweep"]:
            own |= {
                "sweep": order["sweep"]["id"],
                "sweep_run": self._sweep_parent(order["sweep"], began=order["since"]),
            }
        run = self._open(stored_id("run", order["run_id"]), start["name"] or order["run_id"], began=order["since"])
        own |= {"parents": start["parents"]} if start["parents"] else {}
        own["tags"] = {allowed(key.removeprefix("mlflow.")): allowed(text) for key, text in start["tags"].items()}
        data = {each["split"]: {key: each[key] for key in each if key != "split"} for each in start["datasets"]}
        run.set_own(own | ({"datasets": data} if data else {}))
        run.add_params(start["params"])
        for parent in start["parents"]:
            if stored_id("run", parent) in self.ids():
                AimRun(self, stored_id("run", parent)).describe(fork=f"{run.name} ({run.path})")
        run.describe()
        return run

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        if (found := stored_id("sweep", sweep_id)) not in self.ids():
            return None
        with system.files.locked(self.lock):
            run = self._open(found, "")
            run.set_status(status, datetime.now(UTC).timestamp())
            if table is not None:
                run.put(table, "")
                run.write_description(as_markdown(table))
            run.close()
        return run.path

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        ids = self.ids()
        found = sorted(each for each in ids if each.startswith(text)) or [stored_id("run", text)]
        owns = [(each, self.own(each)) for each in found[:5] if each in ids]
        return [(each, own.get("run_id"), own.get("run_dir")) for each, own in owns]

    def get_run(self, stored_id: str) -> "AimRun":
        return AimRun(self, stored_id)

    def ids(self) -> set[str]:
        """Return Aim's ids of all runs."""
        self.repo._all_run_hashes.cache_clear()  # Aim caches the list for half a second
        return set(self.repo.list_all_runs())

    def own(self, run: str) -> dict[str, Any]:
        """Return our own entries among a run's params, as they are stored now."""
        # Not by a read-only Run, which reads an index. The server of Aim's page makes that index, and only later.
        options = {} if self.remote else {"skip_read_optimization": True}  # the optimization would wait for the writer
        tree = self.repo.request_tree("meta", run, read_only=True, **options)
        found = tree.subtree("meta").subtree("chunks").subtree(run).get(("attrs", OURS), {})
        return dict(found)

    def link(self, own_id: str) -> str:
        """Return a text that names a run, with the path of its page if the run is in the store."""
        there = stored_id("run", own_id)
        return f"run {own_id} (runs/{there})" if there in self.ids() else f"run {own_id}"

    def _open(self, run: str, name: str, *, began: float | None = None) -> "AimRun":
        """Open a run for writing, and create it if it does not exist. began: its start, in seconds since 1970."""
        if run not in self.ids():
            # Create the run here, because Aim would choose an id and a start. A run that exists keeps its own.
            self.repo.request_tree("meta", run, read_only=False)
            start = None if began is None else datetime.fromtimestamp(began, UTC)
            self.repo.request_props(run, read_only=False, created_at=start)
            self._await(run)
        from aim import Run

        if not self.remote:
            # Any lock here is left by a killed process: a living one would hold the run directory's lock, or ours.
            self.repo._lock_manager.release_locks(run, force=True)
        opened = Run(run, repo=self.repo, force_resume=self.remote, **OFF)
        if opened.get(OURS) is None:
            opened.name, opened.experiment = allowed(name), allowed(self._experiment)
            opened[OURS] = {"status": "running"}
        return AimRun(self, run, opened)

    def _await(self, run: str) -> None:
        """Wait until Aim lists a new run. A server caches the list of runs for half a second."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while run not in self.ids() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _sweep_parent(self, sweep: Message, *, began: float) -> str:
        """Return Aim's id of the run that stands for a sweep. Create that run if it does not exist."""
        parent = stored_id("sweep", sweep["id"])
        with system.files.locked(self.lock):
            if parent not in self.ids():
                run = self._open(parent, sweep["name"], began=began)
                run.set_own({"sweep": sweep["id"]})
                run.close()
        return parent


class AimRun:
    """A run in Aim. `savepoint.trackers.store.StoredRun` documents the methods.

    run: Aim's object, opened for writing. Without it only reading and `describe` work.
    """

    def __init__(self, store: AimStore, id: str, run: Any = None) -> None:
        self.id, self.path = id, f"runs/{id}"
        self._store, self._run = store, run
        self._folder = store.artifacts / id
        if run is not None:
            # Otherwise closing would set the run's end to now. `set_status` sets it if the run has ended.
            run._resources.set_run_end_time = lambda: None
            run.set_artifacts_uri(store.artifacts.as_uri())

    @property
    def name(self) -> str:
        return str(self._run.name)

    def key(self, key: str) -> str:
        return allowed(key)

    def history(self) -> set[tuple[str, int]]:
        stored = set()
        for key, context, _ in self._run.iter_sequence_info_by_type(("float", "int")):
            points = self._run.series_run_trees[2].subtree((context.idx, key))
            stored |= {(key, int(step)) for step in points.array("step", dtype="int64").values()}
        return stored

    def log_points(self, points: Sequence[Point]) -> None:
        for point in points:
            # Not `Run.track`, which would store the present time instead of the point's.
            self._run._tracker._track(float(point.value), point.milliseconds / 1000, point.key, point.step)
        self._settle()

    def set_own(self, values: Mapping[str, Any]) -> None:
        """Set values among our own entries of the params."""
        for key, value in values.items():
            self._run[OURS, key] = value

    def add_params(self, params: Mapping[str, str]) -> None:
        """Store the params that the run does not have yet."""
        fresh = nested(params)
        kept = {key: self._run.get(key) for key in fresh}
        for key, value in fresh.items():
            self._run[key] = value if kept[key] is None else merged(kept[key], value)

    def set_status(self, status: str, ended: float) -> None:
        self.set_own({"status": status})
        self._run.meta_run_tree["end_time"] = ended
        self._settle()

    def set_note(self, note: str) -> None:
        self.describe(note)

    def describe(self, note: str | None = None, *, fork: str | None = None) -> None:
        """Change the description: set the note with the run's results, or add a link to a fork of the run."""
        with system.files.locked(self._store.lock):  # a fork and its parent may change it at the same time
            self.write_description(note, fork=fork)
        self._settle()

    def write_description(self, note: str | None = None, *, fork: str | None = None) -> None:
        """Do what `describe` does. The caller holds the store's lock."""
        own = self._store.own(self.id) if self._run is None else self._run.get(OURS)
        last = str(own.get("note", ""))
        outcome = (last, last if note is None else note)
        origin = [self._store.link(parent) for parent in own.get("parents", [])]
        props = self._store.repo.request_props(self.id, read_only=False)
        props.description = description(props.description or "", origin=origin, outcome=outcome, fork=fork)
        if note is not None:
            self.set_own({"note": note})

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        """Do nothing: Aim keeps no models."""

    def names(self, folder: str) -> set[str]:
        place = self._folder / folder
        return {path.name for path in place.iterdir()} if place.is_dir() else set()

    def put(self, file: Path, folder: str) -> None:
        name = f"{folder}/{file.name}" if folder else file.name
        self._run.log_artifact(str(file), name, block=True)
        if file.suffix.lower() in PICTURES:
            from aim import Image

            digits = file.stem.rpartition("_")[2]  # a figure's name ends with its step
            picture, step = Image(str(file)), int(digits) if digits.isdecimal() else 0
            self._run._tracker._track(picture, file.stat().st_mtime, folder or file.name, step)
        self._settle()

    def delete(self, path: str) -> None:
        # Aim's own method deletes only folders, and leaves the names in its list of artifacts.
        place = self._folder / path
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        listed = self._run.meta_run_tree.subtree("artifacts")
        names = [*listed.keys()]
        for name in names:
            if name == path or name.startswith(f"{path}/"):
                del listed[name]

    def download(self, path: str, to: Path) -> None:
        place, copy = self._folder / path, to / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.copytree(place, copy, dirs_exist_ok=True)
        else:
            shutil.copy(place, copy)

    def close(self) -> None:
        self._run.close()

    def _settle(self) -> None:
        """Wait until a server has everything that was sent. Aim sends in the background, and itself waits for ever.

        Raises: TimeoutError if the server takes too long.
        """
        if self._store.remote:
            queue = self._store.repo._client.get_queue()._queue
            deadline = time.monotonic() + PATIENCE_SECONDS
            while queue.unfinished_tasks:
                if time.monotonic() > deadline:
                    raise TimeoutError("timed out")
                time.sleep(0.01)
