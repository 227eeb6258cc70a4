"""Serve runs in the tracker's process: do their duties in turn, note what failed, and try it again later."""

import contextlib
import importlib
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers import kinds
from savepoint.trackers.mirror import Mirror, SupersededError, take_turn
from savepoint.trackers.points import FILES, Follower
from savepoint.trackers.process import Message
from savepoint.trackers.store import Store

RETRY_SECONDS = 10.0

Say = Callable[..., None]


class Connection:
    """The store, opened once for all runs. If opening fails, it is tried again after `RETRY_SECONDS`."""

    def __init__(self, order: Message) -> None:
        self.order = order
        self._store: Store | None = None
        self._error: Exception | None = None
        self._retry_at = 0.0  # on the clock of time.monotonic

    def open(self, *, now: bool = False) -> Store:
        """Return the store. now: try again even if it failed a moment ago. Raises: whatever the store raises."""
        if self._store is None:
            if self._error is not None and not now and time.monotonic() < self._retry_at:
                raise self._error
            try:
                self._store = kinds.load(self.order["kind"]).connect(self.order)
            except Exception as error:
                self._error, self._retry_at = error, time.monotonic() + RETRY_SECONDS
                raise
        return self._store


class Rounds:
    """Does the duties of one run's mirror in turn. A duty that fails is reported once and tried again; others go on.

    failures: duty -> why it fails at present. status: how the run ended, or None before its end.
    done: whether the run has ended and nothing is left to store.
    """

    def __init__(self, order: Message, connection: Connection, say: Say) -> None:
        self.failures: dict[str, str] = {}
        self.status: str | None = None
        self.done = False
        self._order, self._connection, self._say = order, connection, say
        self._start: Message | None = None
        self._note: str | None = None
        self._ended = 0.0
        self._followers = [Follower(Path(order["run_dir"], name)) for name in FILES]
        self._turn: system.files.Lock | None = None
        self._mirror: Mirror | None = None
        self._retry_at: dict[str, float] = {}  # duty -> when to try again, on the clock of time.monotonic

    def start(self, order: Message) -> None:
        """Take the order to start. This opens the files of points, so the caller must have cut them back before."""
        self._start = order
        for follower in self._followers:
            follower.open()

    def close(self, order: Message) -> None:
        """Take the order to close, which says how the run ended."""
        self.status, self._note, self._ended = order["status"], order["note"], order["ended"]

    def run(self, *, last: bool = False) -> None:
        """Do every duty once. last: do also the duties that failed a moment ago, because this is the last round."""
        with contextlib.suppress(SupersededError):
            self.done = self._round(last)
            return
        self.done = True

    def end(self) -> None:
        """Let go of the run, so that another process can serve it."""
        for follower in self._followers:
            follower.close()
        if self._mirror:
            self._do("let go of the run", self._mirror.close, last=True)
        if self._turn:
            self._turn.release()

    def _round(self, last: bool) -> bool:
        """Try each duty once. Returns: whether the run has ended and all duties are done."""
        if not self._do("connect", lambda: self._connection.open(now=last), last):
            return False
        if self._start is None:
            # Import it while there is time: a short run would otherwise wait for this import at its end.
            self._do("draw", lambda: importlib.import_module("savepoint.trackers.plot"), last)
            return False
        if not self._do("open the run", self._open, last):
            return False
        mirror, status = self._mirror, self.status
        assert mirror is not None
        if not self._do("store points", mirror.send_points, last):
            return False
        ended = status is not None
        done = [ended]
        if status is not None:
            # The status first, because it matters most: the other duties may take long or fail for lack of space.
            done.append(self._do("set the status", lambda: mirror.set_status(status, self._ended), last))
            done.append(self._do("store the note", lambda: mirror.set_note(self._note), last))
        done += [
            self._do("store evaluations", mirror.send_evaluations, last),
            self._do("store documents", mirror.send_documents, last),
            self._do("store checkpoints", lambda: mirror.send_checkpoints(now=ended), last),
            self._do("store figures", mirror.send_figures, last),
            self._do("draw", lambda: mirror.send_plot(now=ended), last),
        ]
        if status is not None:
            done.append(self._do("store the model", lambda: mirror.send_model(status), last))
        return all(done)

    def _open(self) -> None:
        if self._mirror is None:
            assert self._start is not None
            self._turn = self._turn or take_turn(Path(self._order["run_dir"]), since=self._order["since"])
            run = self._connection.open().open_run(self._order, self._start)
            self._mirror = Mirror(run, self._order, self._start, followers=self._followers, say=self._say)

    def _do(self, duty: str, act: Callable[[], Any], last: bool) -> bool:
        """Try to do a duty, unless it failed a moment ago. Returns: whether it is done."""
        if time.monotonic() < self._retry_at.get(duty, 0) and not last:
            return False
        try:
            act()
        except SupersededError:
            raise
        except Exception as error:  # whatever a store and its back ends raise, the other duties go on
            why = describe(error, self._order)
            if self.failures.get(duty) != why:
                sys.stderr.write(redact(traceback.format_exc()))
                self._say("trouble", text=f"cannot {duty}: {why}")
            self.failures[duty] = why
            self._retry_at[duty] = time.monotonic() + RETRY_SECONDS
            return False
        self.failures.pop(duty, None)
        return True


class Service:
    """All runs that this process serves, by their own ids."""

    def __init__(self, first: Message, say: Say) -> None:
        self._connection, self._say = Connection(first), say
        self._sweep: str | None = first["sweep"] and first["sweep"]["id"]
        self._runs: dict[str, Rounds] = {}
        self._failed: dict[str, dict[str, str]] = {}  # run id -> failures, of runs that could not be let go

    def take(self, order: Message) -> None:
        """Take an order about one run: follow, start, close or drop."""
        run_id = order["run_id"]
        if order["do"] == "follow":
            self._runs[run_id] = Rounds(order, self._connection, lambda *a, **b: self._say(*a, run_id=run_id, **b))
            return
        match order["do"]:
            case "start":
                self._runs[run_id].start(order)
            case "close":
                self._runs[run_id].close(order)
            case "drop":
                self._let_go(run_id)

    def work(self) -> None:
        """Do one round for each run."""
        for run_id, run in [*self._runs.items()]:
            run.run()
            if run.done and self._let_go(run_id):
                self._say("closed", run_id=run_id)

    def finish(self, order: Message) -> None:
        """Do the last round for each run, finish the order's sweep if it has one, and say what is not stored."""
        for run_id, run in [*self._runs.items()]:
            if run.status is None:
                run.close({"status": "interrupted", "note": None, "ended": time.time()})
            run.run(last=True)
            if run.done:
                self._let_go(run_id)
        failed = {run_id: run.failures for run_id, run in self._runs.items() if run.failures}
        self._say("done", failed=self._failed | failed, **finish_sweep(self._connection, order))

    def abandon(self) -> None:
        """Do the last round for each run, because the training process is gone."""
        self.finish({"sweep_id": self._sweep, "status": "interrupted", "table": None})

    def _let_go(self, run_id: str) -> bool:
        """Let go of a run. Returns: whether that succeeded. It may fail, because some stores write only now."""
        run = self._runs.pop(run_id)
        run.end()
        if run.failures:
            self._failed[run_id] = run.failures
        return not run.failures


def finish_sweep(connection: Connection, order: Message) -> Message:
    """Set the status of a sweep's parent run and store its table.

    Returns: `sweep_failed`, the reason if that failed, and `sweep_path`, the path of the sweep's page. Both are None if
    the order is about no sweep.
    """
    path, why, table = None, None, order["table"]
    try:
        if order["sweep_id"] is not None:
            there = Path(table) if table and Path(table).is_file() else None
            path = connection.open(now=True).finish_sweep(order["sweep_id"], status=order["status"], table=there)
    except Exception as error:  # as above
        sys.stderr.write(redact(traceback.format_exc()))
        why = describe(error, connection.order)
    return {"sweep_failed": why, "sweep_path": path}


def describe(error: Exception, order: Message) -> str:
    """Return one line that tells a person what went wrong. order: names the store."""
    text = redact(" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, UserError):
        return text
    if explained := kinds.load(order["kind"]).explain(error, order):
        return redact(explained)
    if "Max retries exceeded" in text or "timed out" in text.lower():
        return f"{redact(order['uri'])} does not answer"
    return text if len(text) <= 200 else text[:200] + " …"


def redact(text: str) -> str:
    """Remove the user and the password from addresses. The environment may name a store by an address that has them."""
    return re.sub(r"://[^/@\s]+@", "://", text)
