"""Something happens to a training at its n-th moment: a signal, or the death of one of its loading workers.

A moment is the entry into a function of the loop, of what it calls, or of the project's models and tasks, and the exit
from it, in the main thread. They are counted from the start of training, resuming included, and are the same ones each
time: what depends on the clock (how many batches are loaded ahead) is not counted. So a number says where, within a
batch, a window, a validation or a save, and a trial can be repeated.

`moments.py '{"at": 17, "how": "kill"}' train.py …` does it in an interpreter of its own; tests/tools/zygote.py in a fork.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"
COUNTED = tuple(
    str(SOURCE / "savepoint" / "training" / f"{name}.py")
    for name in ("loop", "step", "own_update", "evaluation", "logbook", "state", "saves")
)
OWN = tuple(str(SOURCE / "project" / name) for name in ("models", "tasks"))
OFTEN = ("_extra", "_holds", "_misfit")  # called for each tensor: they would be most of all moments
_NAMES = {"kill": "SIGKILL", "term": "SIGTERM", "usr1": "SIGUSR1", "ctrl-c": "SIGINT"}
SIGNALS = {
    how: getattr(signal, name) for how, name in _NAMES.items() if hasattr(signal, name)
}  # Windows has two of them


@dataclass(frozen=True)
class Strike:
    """at: the moment, counted from 1; None: only count.

    how: one of SIGNALS, or `worker`: one is killed as soon as there is one. of: only the calls of this function are
    moments: `step.update`. again: moments from then to a second signal. count: a file that holds the number of moments
    once all is over. where: a file that gets the name of the function, a line for each that was struck.
    """

    at: int | None = None
    how: str = "kill"
    _: KW_ONLY
    of: str | None = None
    again: int | None = None
    count: str | None = None
    where: str | None = None


class Moments:
    """Counts, and strikes."""

    def __init__(self, strike: Strike) -> None:
        self._strike, self._number = strike, 0
        self._counts: dict[CodeType, bool] = {}
        self._events = ("call",) if strike.of else ("call", "return")
        self._times = {strike.at, strike.at + strike.again} if strike.at and strike.again else {strike.at}

    def install(self) -> None:
        """From the start of training on: what comes before takes other ways through other libraries each time."""
        from savepoint import training

        session = training.session

        @contextlib.contextmanager
        def counted(job: Any) -> Iterator[None]:
            with session(job):
                sys.setprofile(self._moment)
                try:
                    yield
                finally:
                    sys.setprofile(None)
                    if self._strike.count:
                        Path(self._strike.count).write_text(str(self._number))

        training.session = counted

    def _moment(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        counts = self._counts.get(code)
        if counts is None:
            counts = self._counts[code] = self._counted(code)
        if not counts or event not in self._events:
            return
        self._number += 1
        if self._number in self._times:
            self._act(_name(code))

    def _counted(self, code: CodeType) -> bool:
        if self._strike.of:
            return _name(code) == self._strike.of and code.co_filename.startswith(str(SOURCE))
        return code.co_filename.startswith((*COUNTED, *OWN)) and not code.co_name.startswith(("<", *OFTEN))

    def _act(self, within: str) -> None:
        workers = multiprocessing.active_children() if self._strike.how == "worker" else []
        if self._strike.how == "worker" and not workers:
            self._times.add(self._number + 1)
            return
        if self._strike.where:
            with open(self._strike.where, "a") as file:
                file.write(f"{within}\n")
        struck = workers[self._number % len(workers)].pid if workers else os.getpid()
        os.kill(struck, SIGNALS.get(self._strike.how, signal.SIGKILL))


def _name(code: CodeType) -> str:
    return f"{Path(code.co_filename).stem}.{code.co_name}"


def main() -> int:
    strike, *sys.argv = sys.argv[1:]
    sys.path.insert(0, str(SOURCE.parent))
    script = importlib.import_module(Path(sys.argv[0]).stem)
    Moments(Strike(**json.loads(strike))).install()
    return script.main()


if __name__ == "__main__":
    sys.exit(main())
