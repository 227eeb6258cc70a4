"""Run short trainings of one config, each in its own interpreter, in a temporary directory that is removed at the end.

A fork would not do: it shares the order of sets and the addresses of objects with the process it was forked from.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import runs, system, trust
from savepoint.exact import explain
from savepoint.exact.explain import Trace

LINES = 40  # of a failed run's output that are shown


@dataclass(frozen=True)
class Workplace:
    """The directory of the short runs. config: what all of them train. processes: by the name of the short run."""

    root: Path
    repository: Path
    config: dict[str, Any]
    processes: dict[str, "subprocess.Popen[bytes]"]

    def begin(
        self, name: str, *, hash_seed: int, clock_offset: int = 0, resumes: str | None = None, workers: int = 0
    ) -> None:
        """Start a short run.

        hash_seed: PYTHONHASHSEED. clock_offset: see `traps.Traps`. resumes: the short run from whose middle it goes on;
        None to begin anew. workers: `data.num_workers`.
        """
        directory = self.root / name
        if resumes is None:
            config = trust.dump_config(self.config)
            runs.create(directory, id=runs.new_id(), name=f"exact {name}", config=config, overrides=[])
        else:
            shutil.copytree(self.root / resumes, directory)
            *_, last = sorted((directory / runs.CHECKPOINTS).iterdir())
            shutil.rmtree(last)
        files = {key: str(self.root / f"{name}.{key}") for key in ("trace", "notes")}
        order = {"directory": str(directory), "repository": str(self.repository), "clock_offset": clock_offset, **files}
        path = self.root / f"{name}.json"
        text = json.dumps(order | {"resume": resumes is not None, "workers": workers})
        path.write_text(text, encoding="utf-8")
        with (self.root / f"{name}.output").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "savepoint.exact.trace", str(path)],
                env=os.environ | {"PYTHONPATH": self._search_path(), "PYTHONHASHSEED": str(hash_seed)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the short runs
            )

    def _search_path(self) -> str:
        """Return PYTHONPATH for a short run. This repository's own code comes first, as in train.py."""
        own = [str(self.repository / "src"), str(self.repository)]
        return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])

    def end(self, name: str) -> Trace:
        """Wait for a short run and return what it recorded. Raises: FailedError if it did not reach its end."""
        process = self.processes[name]
        status = process.wait()
        system.signals.kill(process)  # and its loading workers, if any are left
        if status:
            printed = (self.root / f"{name}.output").read_text(encoding="locale", errors="replace")
            raise FailedError(status, printed.strip())
        return explain.read(self.root / f"{name}.trace", self.root / f"{name}.notes")

    def clear(self, name: str) -> None:
        """End a short run and remove its files."""
        system.signals.kill(self.processes[name])
        self.processes.pop(name).wait()
        for path in self.root.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class FailedError(Exception):
    """A short run that did not reach its end.

    status: its exit code, or the negative number of the signal that killed it. output: what it printed.
    """

    def __init__(self, status: int, output: str) -> None:
        super().__init__(output)
        self.status, self.output = status, output

    def __str__(self) -> str:
        """Describe the end of the run: its signal or exit code, then the last lines of what it printed."""
        try:
            ended = f"was killed by {signal.Signals(-self.status).name}"
        except ValueError:
            ended = f"ended with exit code {self.status}"
        lines = self.output.splitlines()[-LINES:]
        return "\n".join([f"The training {ended}. " + ("Its last lines:" if lines else "It printed nothing."), *lines])


@contextlib.contextmanager
def workplace(repository: Path, config: dict[str, Any]) -> Iterator[Workplace]:
    """Make a workplace for short runs of `config`. At the end its processes are killed and its files removed."""
    root = Path(tempfile.mkdtemp(prefix="savepoint-exact-"))
    place = Workplace(root, repository, config, {})
    try:
        with system.signals.stoppable():
            yield place
    finally:
        for process in place.processes.values():
            system.signals.kill(process)
            process.wait()
        shutil.rmtree(root, ignore_errors=True)
