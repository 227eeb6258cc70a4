"""Write runs as offline sessions of ClearML's, which `Task.import_offline_session` later sends to a server."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from savepoint.errors import UserError
from savepoint.trackers.clearml import contents
from savepoint.trackers.clearml.contents import CONFIG, DATA, OWN, RUN, SWEEP
from savepoint.trackers.notes import description
from savepoint.trackers.points import Point
from savepoint.trackers.process import Message

_UNREADABLE = "an offline session cannot be read back. Import it into a server: Task.import_offline_session(<zip>)"


class OfflineStore:
    """A directory for offline sessions. `savepoint.trackers.store.Store` documents the methods."""

    def __init__(self, order: Message) -> None:
        self._directory = Path(order["offline"])

    def open_run(self, order: Message, start: Message) -> "OfflineRun":
        return OfflineRun(self._directory, order, start)

    def finish_sweep(self, sweep_id: str, *, status: str, table: Path | None) -> str | None:
        """Do nothing: each job has a session of its own."""
        return None

    def find_runs(self, text: str) -> list[tuple[str, str | None, str | None]]:
        return []

    def get_run(self, stored_id: str) -> "OfflineRun":
        raise UserError(_UNREADABLE)


class OfflineRun:
    """A run that `close` writes as one whole session, so that a resumed run has each point once.

    `savepoint.trackers.store.StoredRun` documents the methods.
    """

    def __init__(self, directory: Path, order: Message, start: Message) -> None:
        self.id = order["run_id"]
        self.path = f"{self.id}.zip"
        self._session, self._run_dir = directory / self.path, Path(order["run_dir"])
        for left in directory.glob(f".{self.id}-*"):  # left by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._place = Path(tempfile.mkdtemp(dir=directory, prefix=f".{self.id}-"))
        self._points = (self._place / "points.jsonl").open("w", encoding="utf-8")
        self._parents, self._note = start["parents"], ""
        sweep = [SWEEP.format(order["sweep"]["id"])] if order["sweep"] else []
        self._about: Message = {
            "project": contents.allowed(order["experiment"]),
            "name": contents.allowed(start["name"] or order["run_id"]),
            "tags": [RUN.format(order["run_id"]), *sweep],
            "hyperparams": {CONFIG: start["params"], DATA: contents.datasets(start["datasets"])},
        }
        self._own = contents.own(order, start) | {"began": contents.at(order["since"])}
        self._files: dict[str, str] = {}  # path among the artifacts -> file

    def key(self, key: str) -> str:
        return contents.normalised(key)

    def history(self) -> set[tuple[str, int]]:
        return set()

    def log_points(self, points: Sequence[Point]) -> None:
        self._points.writelines(f"{json.dumps(event)}\n" for event in contents.scalars(points))

    def set_status(self, status: str, ended: float) -> None:
        self._own |= {"ended": contents.at(ended), "status": status}

    def set_note(self, note: str) -> None:
        self._note = note

    def put_model(self, checkpoint: Path, *, example: Path, repository: Path, register_as: str | None) -> None:
        """Do nothing: ClearML 2.1 cannot register a model offline. The checkpoint's files are among the artifacts."""

    def names(self, folder: str) -> set[str]:
        return set()

    def put(self, file: Path, folder: str) -> None:
        path = f"{folder}/{file.name}" if folder else file.name
        if not file.is_relative_to(self._run_dir):  # a temporary file, gone when this call returns
            file = Path(shutil.copy(file, self._place / file.name))
        self._files[path] = str(file)

    def delete(self, path: str) -> None:
        self._files = {each: at for each, at in self._files.items() if each != path and not each.startswith(f"{path}/")}

    def download(self, path: str, to: Path) -> None:
        raise UserError(_UNREADABLE)

    def close(self) -> None:
        """Write the session, in place of an older one. Raises: RuntimeError with the last line that the SDK printed."""
        self._points.close()
        origin = [f"run {each}" for each in self._parents]
        note = description("", origin=origin, outcome=("", self._note))
        about = self._about | {"note": note, "files": self._files}
        about["hyperparams"][OWN] = self._own
        order = self._place / "order.json"
        order.write_text(json.dumps(about), encoding="utf-8")
        wrote = subprocess.run(
            [sys.executable, "-P", "-m", "savepoint.trackers.clearml.session", str(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if wrote.returncode != 0:
            last = wrote.stdout.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise RuntimeError(f"no offline session was written ({''.join(last)})")
        os.replace(self._place / "session.zip", self._session)
        shutil.rmtree(self._place, ignore_errors=True)
