"""One trial of the promise: a run that nothing interrupts, and the same one interrupted and resumed, must be equal."""

import collections
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import runs
from savepoint.commands import diff
from savepoint.runs import history
from tools import ranked
from tools.draws import Interruption, Trial
from tools.moments import Strike
from tools.processes import REPOSITORY, Ended, Zygote

# Ways in which a process may end: 2 says why, and SIGTERM ends at once what has not begun to train.
ENDS = (0, 2, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
NO_SPACE = 28
NOT_POINTS = ("step", "time")  # of a line of metrics.jsonl; all else is a point in the tracker


@dataclass
class Outcome:
    """What came of a trial.

    refused: why there was nothing to interrupt. struck: the interruptions that came before the end of training, and the
    functions that they came in, as far as they were struck from within. differences: none, or the promise is broken.
    """

    refused: str | None = None
    struck: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Whole:
    """What an uninterrupted process went through: moments of training, moments at the disk, seconds.

    part: those moments at the disk that belong to its part of a checkpoint, where each rank writes one.
    """

    moments: int
    disk: int
    part: int
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Where a trial takes place: an empty folder."""

    trial: Trial
    zygote: Zygote
    folder: Path

    def hold(self) -> Outcome:
        outcome = Outcome()
        whole = self._uninterrupted(outcome)
        if whole is None:
            return outcome
        for interruption in self.trial.interruptions:
            ended = self._interrupted(interruption, whole)
            if ended.status != 0:
                outcome.struck.append(interruption.how)
            if fault := _fault(ended):
                outcome.differences.append(f"{interruption}: {fault}")
                return outcome
        ended = self._go(self.trial.last)
        if ended.status != 0:
            outcome.differences.append(f"the last process ended with {ended.status}: {ended.output}")
            return outcome
        pair = runs.read(self.folder / "whole"), runs.read(self.folder / "broken")
        outcome.differences += diff.diff_runs(*pair)
        if self.trial.fresh:
            outcome.differences += self._tracked(pair[1])
        if (within := self.folder / "where").exists():
            outcome.within = within.read_text().split()
        return outcome

    def _uninterrupted(self, outcome: Outcome) -> _Whole | None:
        directory, counts, log = self.folder / "whole", self.folder / "moments", self.folder / "disk.log"
        command = (*self.trial.config, "trainer.threads=1", "tracker=none", f"hydra.run.dir={directory}")
        started = time.monotonic()
        watched: Any = {"strike": Strike(count=str(counts)), "disk": directory, "log": str(log)}
        ended = self._run("train.py", *command, **watched)
        if ended.status == 0:
            seconds = time.monotonic() - started
            lines = log.read_text().splitlines()
            return _Whole(int(counts.read_text()), len(lines), sum(".rank_00000" in each for each in lines), seconds)
        told = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        if told and _fault(ended) is None and not (directory / runs.RECORD).exists():
            outcome.refused = told[0].removeprefix("error: ")
        else:
            outcome.differences.append(f"the uninterrupted run ended with {ended.status}: {ended.output}")
        return None

    def _interrupted(self, what: Interruption, whole: _Whole) -> Ended:
        rank = what.rank % self.trial.ranks if self.trial.in_parts else 0
        disk: Any = {"disk": self.folder / "broken"} | ({"disk_of": rank} if rank else {})
        moments = whole.part if rank else whole.disk
        match what.how:
            case "disk full":
                at = 1 + int(what.at * moments / 2)  # of the calls: each has two moments
                return self._go(what.changes, at=at, error=NO_SPACE, calls=None, **disk)
            case "kill at the disk":
                return self._go(what.changes, at=1 + int(what.at * moments), **disk)
            case "kill by the clock":
                return self._go(what.changes, kill_after=what.at * whole.seconds)
            case "kill in a save":
                turn = what.rank % (self.trial.ranks + 1)
                only = turn if turn < self.trial.ranks else None
                save = ranked.InSave(self.folder / "broken" / "checkpoints", what.again / 2000, only)
                return self._go(what.changes, kill_after=what.at * whole.seconds, in_save=save)
        again = what.again if what.how == "ctrl-c twice" else None
        at = 1 + int(what.at * whole.moments)
        strike = Strike(at, what.how.removesuffix(" twice"), again=again, where=str(self.folder / "where"))
        return self._go(what.changes, strike=strike, rank=what.rank % self.trial.ranks)

    def _go(self, changes: tuple[str, ...], **happens: Any) -> Ended:
        """Resume the run, or start it if it was interrupted before it was one."""
        directory = self.folder / "broken"
        if (directory / runs.RECORD).exists():
            script, arguments = "resume.py", (f"run={directory}", *changes)
        else:
            end = ("trainer.threads=1", f"hydra.run.dir={directory}", *changes)
            script, arguments = "train.py", (*self.trial.config, *end)
        if not self.trial.fresh:
            return self._run(script, *arguments, "tracker=none", **happens)
        strike = happens.get("strike", Strike())
        return _fresh(script, *arguments, "tracker=mlflow", f"tracker.uri={self._store()}", strike=strike)

    def _run(self, script: str, *arguments: str, rank: int = 0, strike: Strike | None = None, **happens: Any) -> Ended:
        """Returns: how the process ended, or of several ranks rank 0."""
        strikes = {rank: strike} if strike else None
        ranks = self.trial.ranks
        return ranked.run(self.zygote, self.folder / "ranks", ranks, script, *arguments, strikes=strikes, **happens)[0]

    def _store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def _tracked(self, done: runs.Run) -> list[str]:
        """What the tracker lacks of the points of metrics.jsonl, and what it has twice."""
        lines = history.read_history(done.metrics)
        logged = collections.Counter((key, line["step"]) for line in lines for key in line if key not in NOT_POINTS)
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            shown = collections.Counter(database.execute("select key, step from metrics").fetchall())
            runs = database.execute("select count(*) from runs").fetchone()[0]
        differing = [
            f"tracker: {found} in it, {logged[found]} times logged" for found in shown if shown[found] != logged[found]
        ]
        lacking = [f"tracker: {point} is not in it" for point in logged if point not in shown]
        return differing + lacking + ([] if runs == 1 else [f"tracker: {runs} runs"])


def _fault(ended: Ended) -> str | None:
    """What a person must never see of an interruption."""
    if ended.status not in ENDS:
        return f"ended with {ended.status}: {ended.output}"
    return f"a traceback: {ended.output}" if "Traceback (most recent" in ended.output else None


def _fresh(script: str, *arguments: str, strike: Strike) -> Ended:
    """As a person does it, in another interpreter each time."""
    command = [
        sys.executable,
        str(REPOSITORY / "tests" / "tools" / "moments.py"),
        json.dumps(vars(strike)),
        script,
        *arguments,
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HYDRA_"))}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return Ended(done.returncode, 0.0, done.stdout)
