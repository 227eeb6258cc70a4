"""Run short trainings of one config, each in new interpreters, in a temporary directory that is removed at the end.

A config with `trainer.processes` is trained by as many processes, its ranks, and each of them records a trace.

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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import parallel, runs, system, trust
from savepoint.exact import explain
from savepoint.exact.explain import Trace

LINES = 40  # of a failed run's output that are shown
PATIENCE_SECONDS = 30.0  # that the other ranks get to end once one has failed


@dataclass(frozen=True)
class Workplace:
    """The directory of the short runs.

    config: what all of them train. processes: those of each short run, by rank. boards: where the ranks of each short
    run leave notes for each other.
    """

    root: Path
    repository: Path
    config: dict[str, Any]
    processes: dict[str, "list[subprocess.Popen[bytes]]"] = field(default_factory=dict)
    boards: dict[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """The number of processes that train each short run."""
        return self.config["trainer"].get("processes") or 1

    def begin(
        self, name: str, *, hash_seed: int, clock_offset: int = 0, resumes: str | None = None, workers: int = 0
    ) -> None:
        """Start a short run.

        hash_seed: PYTHONHASHSEED. clock_offset: see `traps.Traps`. resumes: the short run from whose middle it goes on;
        None to begin anew. workers: `data.num_workers`.
        """
        directory = self.root / name
        for rank in range(self.ranks):
            if resumes is None:
                config, own = trust.dump_config(self.config), self.root / _of(name, rank)
                runs.create(own, id=runs.new_id(), name=f"exact {name}", config=config, overrides=[])
            else:
                shutil.copytree(self.root / _of(resumes, rank), self.root / _of(name, rank))
        if resumes is not None:
            *_, last = sorted((directory / runs.CHECKPOINTS).iterdir())
            shutil.rmtree(last)
        environments: list[dict[str, str]] = [{}]
        if self.ranks > 1:
            self.boards[name], environments = parallel.host(self.ranks)
        about = {"repository": str(self.repository), "clock_offset": clock_offset, "workers": workers}
        about["resumes"] = str(directory) if resumes else None
        started = self.processes[name] = []
        for rank, environment in enumerate(environments):
            started.append(self._start(_of(name, rank), about, environment | {"PYTHONHASHSEED": str(hash_seed)}))

    def _start(self, name: str, about: dict[str, Any], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        files = {key: str(self.root / f"{name}.{key}") for key in ("trace", "notes")}
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(about | files | {"directory": str(self.root / name)}), encoding="utf-8")
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.ranks))} if self.ranks > 1 else {}
        with (self.root / f"{name}.output").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "savepoint.exact.trace", str(path)],
                env=threads | os.environ | {"PYTHONPATH": self._search_path()} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the short runs
            )

    def _search_path(self) -> str:
        """Return PYTHONPATH for a short run. This repository's own code comes first, as in train.py."""
        own = [str(self.repository / "src"), str(self.repository)]
        return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])

    def end(self, name: str) -> list[Trace]:
        """Wait for a short run. Returns: what each rank recorded. Raises: FailedError if it did not reach its end."""
        statuses = self._wait(name)
        for process in self.processes[name]:
            system.signals.kill(process)  # and its loading workers, if any are left
        if failed := [rank for rank, status in enumerate(statuses) if status]:
            # A rank that ends because another one has failed ends with 2.
            rank = min(failed, key=lambda rank: statuses[rank] == 2)
            printed = (self.root / f"{_of(name, rank)}.output").read_text(encoding="locale", errors="replace")
            raise FailedError(statuses[rank] or 0, printed.strip())
        own = [_of(name, rank) for rank in range(self.ranks)]
        return [explain.read(self.root / f"{each}.trace", self.root / f"{each}.notes") for each in own]

    def _wait(self, name: str) -> list[int | None]:
        """Wait until all ranks have ended, or one has failed and the others do not notice. Returns: exit codes."""
        until = None
        while None in (statuses := [process.poll() for process in self.processes[name]]):
            if any(statuses):
                until = until or time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > until:
                    break
            time.sleep(0.02)
        return statuses

    def clear(self, name: str) -> None:
        """End a short run and remove its files."""
        for process in self.processes.pop(name):
            system.signals.kill(process)
            process.wait()
        for path in self.root.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _of(name: str, rank: int) -> str:
    """Return the name of what a rank has of a short run: rank 0 has the name itself."""
    return f"{name}.rank-{rank}" if rank else name


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
    place = Workplace(root, repository, config)
    try:
        with system.signals.stoppable():
            yield place
    finally:
        for process in [each for ranks in place.processes.values() for each in ranks]:
            system.signals.kill(process)
            process.wait()
        shutil.rmtree(root, ignore_errors=True)
