"""A run's checkpoints and figures as artifacts in a store. What retention deletes on the disk is deleted there, too."""

import contextlib
import csv
import re
from pathlib import Path

from savepoint.trackers.store import StoredRun

# The file of a checkpoint that is written and uploaded last. Without it the checkpoint does not exist.
MANIFEST = "manifest.json"
# The files, besides the checkpoints, from which a run can be restored.
RECORD = ("run.json", "metrics.jsonl", "evaluations.jsonl", "system.jsonl")


class CheckpointMirror:
    """Keeps a run's artifacts under `checkpoints/` equal to its directory of checkpoints."""

    def __init__(self, root: Path, run: StoredRun) -> None:
        self._root, self._run = root, run
        self._stored: dict[str, bool] | None = None  # name -> whether the upload is complete

    def sync(self) -> None:
        """Upload new checkpoints, and delete those that are gone from the disk."""
        if not self._root.is_dir():
            return  # the directory is not created yet, or out of reach: delete nothing
        if self._stored is None:
            names = self._run.names("checkpoints")
            self._stored = {name: MANIFEST in self._run.names(f"checkpoints/{name}") for name in names}
        local = {path.parent.name for path in self._root.glob(f"[!.]*/{MANIFEST}")}
        for name in sorted(local):
            if not self._stored.get(name):
                self._stored[name] = False
                self._stored[name] = self._upload(name)
        for name in sorted(self._stored):
            if not (self._root / name).is_dir():
                self._run.delete(f"checkpoints/{name}")
                del self._stored[name]

    def _upload(self, name: str) -> bool:
        """Upload a checkpoint. Returns: whether the upload is complete; False if retention deleted it meanwhile."""
        source = self._root / name
        try:
            # The manifest goes last: an upload without it was cut short.
            for path in sorted(source.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
                self._run.put(path, f"checkpoints/{name}")
        except FileNotFoundError:
            if source.is_dir():
                raise
            return False
        return True


class FigureMirror:
    """Keeps a run's artifacts under `figures/` equal to its directory of figures, where old figures are deleted."""

    def __init__(self, root: Path, run: StoredRun) -> None:
        self._root, self._run = root, run
        self._stored: set[str] | None = None  # paths below figures/

    def sync(self) -> None:
        """Upload new figures, and delete those that are gone from the disk."""
        if not self._root.is_dir():
            return
        if self._stored is None:
            folders = self._run.names("figures")
            self._stored = {f"{name}/{file}" for name in folders for file in self._run.names(f"figures/{name}")}
        local = {path.relative_to(self._root).as_posix() for path in self._root.glob("*/epoch_*")}
        for name in sorted(local - self._stored):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, because there are newer ones
                self._run.put(self._root / name, f"figures/{name.rpartition('/')[0]}")
                self._stored.add(name)
        for name in sorted(self._stored - local):
            self._run.delete(f"figures/{name}")
            self._stored.remove(name)


def as_markdown(table: Path, *, limit: int = 50) -> str:
    """Return the first rows of a CSV file as a table in Markdown."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in csv.reader(file)]
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest[:limit]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + (f"\n\n… {len(rest)} in all" if rest[limit:] else "")


def fetch(run: StoredRun, to: Path) -> list[str]:
    """Download a run's files, its figures, and each checkpoint whose upload was completed, into the directory `to`.

    Returns: the paths below `to`.
    """

    def names(folder: str) -> list[str]:
        # Leave out other names: a store may list any, and nothing may be written outside of `to`.
        return sorted(name for name in run.names(folder) if re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII))

    there = names("")
    wanted = [name for name in (*RECORD, "config.yaml", "changes.patch", "figures") if name in there]
    if "checkpoints" in there:
        found = [f"checkpoints/{name}" for name in names("checkpoints")]
        wanted += [path for path in found if MANIFEST in names(path)]
    for path in wanted:
        run.download(path, to)
    return wanted
