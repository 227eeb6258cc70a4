"""What each kind of tracker has stored, read without the engine's own code, and in the same form for all kinds."""

import importlib.util
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from savepoint.config import TrackerSettings
from tools.stores import query

# Of a fixture's parameter: pytest then has one line in its summary for all tests of a file. `skipif` would give one each.
_skip = pytest.mark.skip(reason="aim is not installed: pip install 'aim>=3.29,<4'")
needs_aim = () if importlib.util.find_spec("aim") else (_skip,)


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


class MlflowStore:
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


class AimStore:
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


class NoStore:
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
