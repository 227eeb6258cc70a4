"""Short runs of one config, each in an interpreter of its own, in a temporary directory that nothing is left of.

A fork would not do: it shares the order of sets and the addresses of objects with what it was forked from.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import plain, run, signals
from savepoint.exact import explain
from savepoint.exact.explain import Trace


@dataclass(frozen=True)
class Workplace:
    """Where the short runs lie. config: theirs. processes: those that were started, by name."""

    root: Path
    repository: Path
    config: dict[str, Any]
    processes: dict[str, "subprocess.Popen[bytes]"]

    def begin(self, name: str, *, hash_seed: int, ahead: int = 0, of: str | None = None, workers: int = 0) -> None:
        """Start a short run; of: the one that it resumes, from its checkpoint in the middle."""
        directory = self.root / name
        if of is None:
            text = plain.dump(self.config)
            run.create(directory, id=run.new_id(), name=f"exact {name}", config=text, overrides=[])
        else:
            shutil.copytree(self.root / of, directory)
            *_, last = sorted((directory / run.CHECKPOINTS).iterdir())
            shutil.rmtree(last)
        files = {key: str(self.root / f"{name}.{key}") for key in ("trace", "notes")}
        order = {"directory": str(directory), "repository": str(self.repository), "ahead": ahead, **files}
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(order | {"resume": of is not None, "workers": workers}))
        with (self.root / f"{name}.output").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "savepoint.exact.trace", str(path)],
                env=os.environ | {"PYTHONPATH": self._places(), "PYTHONHASHSEED": str(hash_seed)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for this process, which ends them
            )

    def _places(self) -> str:
        """Where modules are looked for: as in train.py, this repository's own first."""
        own = [str(self.repository / "src"), str(self.repository)]
        return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])

    def end(self, name: str) -> Trace:
        """What a short run recorded. Raises: FailedError if it did not come to its end."""
        process = self.processes[name]
        status = process.wait()
        _kill(process)  # what is left of its group: loading workers
        if status:
            raise FailedError(status, (self.root / f"{name}.output").read_text(errors="replace").strip())
        return explain.read(self.root / f"{name}.trace", self.root / f"{name}.notes")

    def clear(self, name: str) -> None:
        """End a short run, and forget it."""
        _kill(self.processes[name])
        self.processes.pop(name).wait()
        for path in self.root.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class FailedError(Exception):
    """A short run's exit status, and what it said."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(output)
        self.status, self.output = status, output


@contextlib.contextmanager
def workplace(repository: Path, chosen: dict[str, Any]) -> Iterator[Workplace]:
    root = Path(tempfile.mkdtemp(prefix="savepoint-exact-"))
    place = Workplace(root, repository, chosen, {})
    try:
        with _stoppable():
            yield place
    finally:
        for process in place.processes.values():
            _kill(process)
            process.wait()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and a terminal that is closed end this process as Ctrl-C does: nothing is left of it."""

    def stop(number: int, _frame: Any) -> None:
        raise signals.Interrupted(number, "Stopped.")

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """With its loading workers, where there are process groups."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
