"""What each kind of tracker has stored, read without the engine's own code, and in the same form for all kinds."""

import contextlib
import importlib.util
import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from savepoint.config import TrackerSettings
from tools.stores import query

# Of a fixture's parameter: pytest then has one line in its summary for all tests of a file. `skipif` would give one each.
_skip = pytest.mark.skip(reason="aim is not installed: pip install 'aim>=3.29,<4'")
needs_aim = () if importlib.util.find_spec("aim") else (_skip,)
_skip_clearml = pytest.mark.skip(reason="clearml is not installed: pip install 'clearml>=2.1,<3'")
needs_clearml = () if importlib.util.find_spec("clearml") else (_skip_clearml,)


@dataclass(frozen=True)
class Kept:
    """A run in a store. id: the store's own. ended: in milliseconds; None while the run goes on.

    points: (step, value, milliseconds) of train/loss, by step. belongs_to: the name of the run of its sweep.
    files: the paths of its artifacts.
    """

    id: str
    name: str
    status: str
    began: int
    ended: int | None
    params: dict[str, str]
    points: list[tuple[int, float, int]]
    note: str
    belongs_to: str | None
    files: set[str]


class LocalStore:
    """A store on the disk, at `place`. environment: what names it to the tracker."""

    environment: ClassVar[dict[str, str]] = {}
    place: Path

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        """Keep the store from the tracker for a while."""
        aside = self.place.with_name("aside")
        self.place.rename(aside)
        if aside.is_dir():
            self.place.write_text("in the way")
        else:
            self.place.mkdir()
        yield
        if aside.is_dir():
            self.place.unlink()
        else:
            self.place.rmdir()
        aside.rename(self.place)

    def close(self) -> None:
        pass


class MlflowStore(LocalStore):
    kind = "mlflow"
    settings = TrackerSettings(kind="mlflow")

    def __init__(self, root: Path, empty: Path) -> None:
        """empty: a store without runs, which is copied: making one takes seconds."""
        self.root, self.place = root, root / "mlflow.db"
        shutil.copy(empty, self.place)

    def runs(self) -> list[Kept]:
        words = {"FINISHED": "finished", "KILLED": "interrupted", "FAILED": "failed", "RUNNING": "running"}
        rows = query(self.root, "select run_uuid, name, status, start_time, end_time from runs")
        names = {row[0]: row[1] for row in rows}
        found = []
        for stored, name, status, began, ended in rows:
            tags = dict(query(self.root, "select key, value from tags where run_uuid = ?", stored))
            points = (
                "select step, value, timestamp from metrics where key = 'train/loss' and run_uuid = ? order by step"
            )
            params = dict(query(self.root, "select key, value from params where run_uuid = ?", stored))
            files = _files(self.root.glob(f"mlartifacts/{stored}/artifacts"))
            note, parent = tags.get("mlflow.note.content", ""), names.get(tags.get("mlflow.parentRunId", ""))
            kept = query(self.root, points, stored)
            found.append(Kept(stored, name, words[status], began, ended, params, kept, note, parent, files))
        return found

    def write_note(self, id: str, text: str) -> None:
        """Do what a person does on the page."""
        query(self.root, "update tags set value = ? where key = 'mlflow.note.content' and run_uuid = ?", text, id)


class AimStore(LocalStore):
    kind = "aim"
    settings = TrackerSettings(kind="aim")

    def __init__(self, root: Path, empty: Path) -> None:
        self.root, self.place = root, root / ".aim"
        shutil.copytree(empty, self.place)

    def runs(self) -> list[Kept]:
        folders = self.place / "meta" / "chunks"
        names = {row[0]: row for row in self._rows()}
        return [self._read(path.name, names) for path in folders.glob("*")]

    def _rows(self, text: str = "select hash, name, description from run", *values: object) -> list[tuple]:
        return query(self.root, text, *values, database=".aim/run_metadata.sqlite")

    def _read(self, id: str, names: dict[str, tuple]) -> Kept:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Aim's own, of SQLAlchemy
            from aim import Repo

            repo = Repo.from_path(str(self.root))
            seqs = repo.request_tree("seqs", id, read_only=True, skip_read_optimization=True)
            meta = repo.request_tree("meta", id, read_only=True, skip_read_optimization=True)
            run = meta.subtree(("meta", "chunks", id)).collect()
            began = repo.request_props(id, read_only=True).creation_time
            points = []
            for context, keys in run.get("traces", {}).items():
                if "train/loss" in keys:
                    series = seqs.subtree(("seqs", "v2", "chunks", id, context, "train/loss"))
                    columns = [dict(series.array(name).items()) for name in ("step", "val", "time")]
                    points += [(int(columns[0][at]), columns[1][at], round(columns[2][at] * 1000)) for at in columns[0]]
        attrs: dict[str, Any] = run["attrs"]
        own = attrs.pop("savepoint")
        ended = run["end_time"] and int(run["end_time"] * 1000)
        parent = names[own["sweep_run"]][1] if "sweep_run" in own else None
        _, name, note = names[id]
        files = _files([self.root / "aimartifacts" / id])
        assert files == {*run.get("artifacts", {})}, "Aim's list of artifacts names those that are there"
        facts = (name, own["status"], int(began * 1000), ended, _flat(attrs), sorted(points), note or "", parent)
        return Kept(id, *facts, files)

    def write_note(self, id: str, text: str) -> None:
        self._rows("update run set description = ? where hash = ?", text, id)


class ClearmlStore:
    """ClearML's server, in a stand-in. place: its address."""

    kind = "clearml"
    settings = TrackerSettings(kind="clearml")

    def __init__(self, root: Path, empty: Path) -> None:
        from tools.clearml_server import ClearmlServer

        self.root, self.server = root, ClearmlServer()
        self.place, self.environment = self.server.address, self.server.environment

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        self.server.stop()
        yield
        self.server.start()

    def close(self) -> None:
        self.server.stop()
        assert self.server.refused == [], "the tracker sends nothing that a server does not take"

    def runs(self) -> list[Kept]:
        return [self._read(task) for task in [*self.server.tasks.values()]]

    def _read(self, task: dict[str, Any]) -> Kept:
        words = {"completed": "finished", "stopped": "interrupted", "in_progress": "running"}
        params = {
            name: {key: each["value"] for key, each in section.items()}
            for name, section in task.get("hyperparams", {}).items()
        }
        own = params.get("properties", {})
        events = [each for each in [*self.server.events.values()] if each["task"] == task["id"]]
        points = [
            (each["iter"], each["value"], each["timestamp"])
            for each in events
            if (each["type"], each["metric"], each["variant"]) == ("training_stats_scalar", "loss", "train")
        ]
        files = {each["key"]: each["uri"] for each in task.get("execution", {}).get("artifacts", [])}
        there = {path for path in self.server.files if task["id"] in path}
        if task["status"] != "in_progress":  # or a file may be on its way
            assert there == {uri.removeprefix(self.place) for uri in files.values()}, "those of the list, and no other"
        parent = self.server.tasks[task["parent"]]["name"] if "parent" in task else None
        times = (_milliseconds(own.get("began")) or 0, _milliseconds(own.get("ended")))
        facts = (task["name"], words.get(task["status"], task["status"]), *times, params.get("config", {}))
        return Kept(task["id"], *facts, sorted(points), task.get("comment", ""), parent, {*files})

    def write_note(self, id: str, text: str) -> None:
        self.server.tasks[id]["comment"] = text


def offline_session(path: Path) -> Kept:
    """Read an offline session of ClearML's, a ZIP file, as a run."""
    with zipfile.ZipFile(path) as session:
        task = json.loads(session.read("task.json"))
        lines = [json.loads(line) for line in session.read("metrics.jsonl").splitlines()]
        files = {each["key"]: Path(each["uri"]).name for each in task["execution"]["artifacts"]}
        there = {Path(name).name for name in session.namelist() if name.startswith("data/") and name[-1] != "/"}
    assert there == {*files.values()}, "the files of the list, and no other"
    params = {
        name: {key: each["value"] for key, each in section.items()} for name, section in task["hyperparams"].items()
    }
    own = params["properties"]
    events = [event for line in lines for event in line if event["type"] == "training_stats_scalar"]
    loss = [event for event in events if (event["metric"], event["variant"]) == ("loss", "train")]
    points = [(event["iter"], event["value"], event["timestamp"]) for event in loss]
    times = (_milliseconds(own["began"]) or 0, _milliseconds(own["ended"]))
    return Kept(
        task["id"],
        task["name"],
        own["status"],
        *times,
        params.get("config", {}),
        points,
        task["comment"],
        None,
        {*files},
    )


class NoStore(LocalStore):
    kind = "none"
    settings = TrackerSettings(kind="none")

    def __init__(self, root: Path, empty: Path) -> None:
        self.root = root


def _files(roots: Any) -> set[str]:
    return {path.relative_to(root).as_posix() for root in roots for path in root.rglob("*") if path.is_file()}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _milliseconds(time: str | None) -> int | None:
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else None
