"""The process beside a training process that copies runs into a tracker's store: `python -m savepoint.trackers.worker`.

It takes orders as JSON lines on stdin and answers on stdout. It copies what lies in run directories, so an order may
come late or get lost, and whatever was not stored can still be read from the files. It serves one run, or one after
the other all runs of a sweep, and outlives its parent by `LAST_SECONDS` at most.
"""

import contextlib
import importlib
import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers import artifacts, kinds
from savepoint.trackers.mirror import Mirror, SupersededError, take_turn
from savepoint.trackers.points import Follower
from savepoint.trackers.process import Message
from savepoint.trackers.store import Store

LAST_SECONDS = 20.0  # to store what a killed parent left behind
POLL_SECONDS, WAKE_SECONDS, RETRY_SECONDS = 1.0, 0.2, 10.0

Inbox = queue.SimpleQueue[Message]
Say = Callable[..., None]


class Connection:
    """The store, opened once for all runs. Where that fails, it is tried again after `RETRY_SECONDS`."""

    def __init__(self, order: Message) -> None:
        self._order = order
        self._store: Store | None = None
        self._error: Exception | None = None
        self._retry_at = 0.0  # on the clock of time.monotonic

    def open(self, *, now: bool = False) -> Store:
        """Return the store. now: try again even if it failed a moment ago. Raises: whatever the store raises."""
        if self._store is None:
            if self._error is not None and not now and time.monotonic() < self._retry_at:
                raise self._error
            try:
                self._store = kinds.load(self._order["kind"]).connect(self._order)
            except Exception as error:
                self._error, self._retry_at = error, time.monotonic() + RETRY_SECONDS
                raise
        return self._store


class Rounds:
    """Does the duties of one run's mirror in turn. One that fails is reported once and tried again; the others go on.

    failures: why a duty fails at present, by its name. status: how the run ended, once it has. done: whether it has
    ended and nothing is left to store.
    """

    def __init__(self, order: Message, connection: Connection, say: Say) -> None:
        self.failures: dict[str, str] = {}
        self.status: str | None = None
        self.done = False
        self._order, self._connection, self._say = order, connection, say
        self._start: Message | None = None
        self._note: str | None = None
        self._ended = 0.0
        self._follower = Follower(Path(order["run_dir"], "metrics.jsonl"))
        self._turn: system.files.Lock | None = None
        self._mirror: Mirror | None = None
        self._retry_at: dict[str, float] = {}  # duty -> when to try again, on the clock of time.monotonic

    def start(self, order: Message) -> None:
        """Take the order to start. From now on metrics.jsonl is held open, so it must have been cut back before."""
        self._start = order
        self._follower.open()

    def close(self, order: Message) -> None:
        """Take the order to close: how the run ended."""
        self.status, self._note, self._ended = order["status"], order["note"], order["ended"]

    def run(self, *, last: bool = False) -> None:
        """Do every duty once. last: also those that failed a moment ago, because there is no other round."""
        with contextlib.suppress(SupersededError):
            self.done = self._round(last)
            return
        self.done = True

    def end(self) -> None:
        """Let go of the run, so that another process can serve it."""
        self._follower.close()
        if self._turn:
            self._turn.release()

    def _round(self, last: bool) -> bool:
        """Return whether the run has ended and all duties are done."""
        if not self._do("connect", lambda: self._connection.open(now=last), last):
            return False
        if self._start is None:
            # A short run would have to wait for this import at its end.
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
            # First, because what follows may take long or fail for want of space, and the status matters more.
            done.append(self._do("set the status", lambda: mirror.set_status(status, self._ended), last))
            done.append(self._do("store the note", lambda: mirror.set_note(self._note), last))
        done += [
            self._do("store evaluations", mirror.send_evaluations, last),
            self._do("store documents", mirror.send_documents, last),
            self._do("store checkpoints", lambda: mirror.send_checkpoints(now=ended), last),
            self._do("store figures", mirror.send_figures, last),
            self._do("draw", lambda: mirror.send_plot(now=ended), last),
        ]
        return all(done)

    def _open(self) -> None:
        if self._mirror is None:
            assert self._start is not None
            self._turn = self._turn or take_turn(Path(self._order["run_dir"]), since=self._order["since"])
            run = self._connection.open().open_run(self._order, self._start)
            self._mirror = Mirror(run, self._order, self._start, follower=self._follower, say=self._say)

    def _do(self, duty: str, act: Callable[[], Any], last: bool) -> bool:
        """Try to do a duty, unless it failed a moment ago. Returns: whether it is done."""
        if time.monotonic() < self._retry_at.get(duty, 0) and not last:
            return False
        try:
            act()
        except SupersededError:
            raise
        except Exception as error:  # whatever a store and its back ends raise, the other duties go on
            why = describe(error, self._order["uri"])
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
            if run.done:
                self._let_go(run_id)
                self._say("closed", run_id=run_id)

    def finish(self, order: Message) -> None:
        """Do the last round for each run, and end the sweep, if the order is about one. Says what is not stored."""
        for run_id, run in [*self._runs.items()]:
            if run.status is None:
                run.close({"status": "interrupted", "note": None, "ended": time.time()})
            run.run(last=True)
            if run.done:
                self._let_go(run_id)
        failed = {run_id: run.failures for run_id, run in self._runs.items() if run.failures}
        self._say("done", failed=failed, **finish_sweep(self._connection, order))

    def abandon(self) -> None:
        """Do the last round for each run, of a training process that is gone."""
        self.finish({"sweep_id": self._sweep, "status": "interrupted", "table": None})

    def _let_go(self, run_id: str) -> None:
        self._runs.pop(run_id).end()


def finish_sweep(connection: Connection, order: Message) -> Message:
    """Set the status of a sweep's parent run and store its table.

    Returns: `sweep_failed`, why not, and `sweep_path`, that of its page; both None where the order is about no sweep.
    """
    path, why, table = None, None, order["table"]
    try:
        if order["sweep_id"] is not None:
            there = Path(table) if table and Path(table).is_file() else None
            path = connection.open(now=True).finish_sweep(order["sweep_id"], status=order["status"], table=there)
    except Exception as error:  # as above
        sys.stderr.write(redact(traceback.format_exc()))
        why = describe(error, order.get("uri", ""))
    return {"sweep_failed": why, "sweep_path": path}


def serve(first: Message, inbox: Inbox, say: Say) -> None:
    """Mirror runs until all are finished or the parent is gone."""
    service = Service(first, say)
    service.take(first)
    while True:
        service.work()
        ended = time.monotonic()
        due = ended + POLL_SECONDS
        while (left := due - time.monotonic()) > 0:
            try:
                order = inbox.get(timeout=left)
            except queue.Empty:
                break
            if order["do"] == "finish":
                service.finish(order)
                return
            if order["do"] == "gone":
                service.abandon()
                return
            if order["do"] != "look":
                service.take(order)
            # Not at once: the lines of many quick steps are stored in one transaction.
            due = ended + (0 if order["do"] == "follow" else WAKE_SECONDS)


def answer(order: Message, say: Say) -> None:
    """Answer one question. `failed` is None, or says why there is no answer."""
    try:
        store = kinds.load(order["kind"]).connect(order)
        match order["do"]:
            case "find_runs":
                found: Message = {"runs": store.find_runs(order["text"])}
            case "fetch":
                found = {"fetched": artifacts.fetch(store.get_run(order["stored_id"]), Path(order["to"]))}
            case "finish_sweep":
                table = Path(order["table"])
                there = table if table.is_file() else None
                found = {"path": store.finish_sweep(order["sweep_id"], status=order["status"], table=there)}
        say("done", failed=None, **found)
    except Exception as error:  # whatever a store and its back ends raise
        sys.stderr.write(redact(traceback.format_exc()))
        say("done", failed=describe(error, order["uri"]))


def describe(error: Exception, uri: str) -> str:
    """Return one line that tells a person what went wrong."""
    text = redact(" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, UserError):
        return text
    if "Max retries exceeded" in text or "timed out" in text.lower():
        return f"{redact(uri)} does not answer"
    return text if len(text) <= 200 else text[:200] + " …"


def redact(text: str) -> str:
    """Remove the user and the password from addresses. Only the environment may give a store's address with them."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def listen(inbox: Inbox, *, parent: int) -> None:
    """Pass orders on, and make sure that this process ends: a call to a server that hangs cannot be interrupted."""

    def end_within(seconds: float) -> None:
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def parent_gone() -> None:
        end_within(LAST_SECONDS)
        inbox.put({"do": "gone"})

    def read_orders() -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if message["do"] == "finish":
                end_within(message["timeout_seconds"] + 1)
            inbox.put(message)
        parent_gone()

    def watch_parent() -> None:
        # stdin may stay open: a forked worker that loads data inherits the pipe, and may survive its killed parent.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        time.sleep(POLL_SECONDS)  # the other thread reads what the parent has written
        parent_gone()

    for watcher in (read_orders,) if os.name == "nt" else (read_orders, watch_parent):
        threading.Thread(target=watcher, daemon=True).start()


def main() -> None:
    """Read the first order, then do what it says."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The training process decides what they mean: it
    # may finish its step and save, and that is still to be stored. Here SIGTERM only means: look at the files now.
    inbox: Inbox = queue.SimpleQueue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: inbox.put({"do": "look"}))
    if os.name != "nt":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A library may print to stdout, which is reserved for answers here.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # tracker.log is for troubles. MLflow 3.2, unlike 3.17, prints there how it sets up its database.
    logging.disable(logging.INFO)

    def say(message: str, **details: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, so nobody listens
            print(json.dumps({"say": message, **details}), file=answers, flush=True)

    first = sys.stdin.buffer.readline()
    if first:
        order: Message = json.loads(first)
        listen(inbox, parent=order["parent"])
        if order["do"] == "follow":
            serve(order, inbox, say)
        else:
            answer(order, say)
    os._exit(0)  # without waiting for MLflow's threads, which have nothing left to write


if __name__ == "__main__":
    main()
