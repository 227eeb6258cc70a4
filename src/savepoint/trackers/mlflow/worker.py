"""The process beside a training process that copies a run into MLflow: `python -m savepoint.trackers.mlflow.worker`.

It takes orders as JSON lines on stdin and answers on stdout. It copies what lies in the run directory, so an order may
come late or get lost, and whatever was not stored can still be read from the files. It outlives its parent by
`LAST_SECONDS` at most.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import queue
import re
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.trackers.mlflow.process import Message
from savepoint.trackers.points import Follower

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from savepoint.trackers.mlflow.mirror import Mirror

LAST_SECONDS = 20.0  # to store what a killed parent left behind
POLL_SECONDS, WAKE_SECONDS, RETRY_SECONDS = 1.0, 0.2, 10.0

Inbox = queue.SimpleQueue[Message]
Say = Callable[..., None]


class Rounds:
    """Runs the duties of a run's mirror in turn. One that fails is reported once and tried again; the others go on."""

    def __init__(self, order: Message, say: Say) -> None:
        self.failures: dict[str, str] = {}  # duty -> why it fails at present
        self._order, self._say = order, say
        self._start: Message | None = None
        self._follower = Follower(Path(order["run_dir"], "metrics.jsonl"))
        self._client: MlflowClient | None = None
        self._turn: system.files.Lock | None = None
        self._mirror: Mirror | None = None
        self._retry_at: dict[str, float] = {}  # duty -> when to try again, on the clock of time.monotonic
        self._last = False

    def start(self, order: Message) -> None:
        """Take the order to start. From now on metrics.jsonl is held open, so it must have been cut back before."""
        self._start = order
        self._follower.open()

    def run(self, *, status: str | None = None) -> None:
        """Run every duty once. status: how the run ended. With it this is the last round, and nothing waits."""
        self._last = status is not None
        if not self._done("connect", self._connect):
            return
        if self._start is None:
            # A short run would have to wait for this import at its end.
            self._done("draw", lambda: importlib.import_module("savepoint.trackers.plot"))
            return
        if not self._done("open the run", self._open):
            return
        mirror = self._mirror
        assert mirror is not None
        if not self._done("store points", mirror.send_points):
            return
        if status is not None:
            # First, because what follows may take long or fail for want of space, and the status matters more.
            self._done("set the status", lambda: mirror.set_status(status))
        self._done("store evaluations", mirror.send_evaluations)
        self._done("store documents", mirror.send_documents)
        self._done("store checkpoints", lambda: mirror.send_checkpoints(now=self._last))
        self._done("store figures", mirror.send_figures)
        self._done("draw", lambda: mirror.send_plot(now=self._last))

    def _connect(self) -> None:
        if self._client is None:
            # Before MLflow is imported: the end of a short run need not wait for that.
            if self._order["database"]:
                check_database(Path(self._order["database"]))
            with system.memory.permanent():
                from savepoint.trackers.mlflow import store
            self._client = store.connect(self._order)

    def _open(self) -> None:
        if self._mirror is None:
            from savepoint.trackers.mlflow import mirror

            assert self._client is not None and self._start is not None
            run_dir, since = Path(self._order["run_dir"]), self._order["since"]
            self._turn = self._turn or mirror.take_turn(run_dir, since=since)
            about = self._client, self._order, self._start
            self._mirror = mirror.Mirror(*about, follower=self._follower, say=self._say)

    def _done(self, duty: str, act: Callable[[], Any]) -> bool:
        """Try to do a duty, unless it failed a moment ago. Returns: whether it is done."""
        if time.monotonic() < self._retry_at.get(duty, 0) and not self._last:
            return False
        try:
            act()
        except Exception as error:  # whatever MLflow and its back ends raise, the other duties go on
            why = describe(error, self._order["uri"])
            if self.failures.get(duty) != why:
                sys.stderr.write(redact(traceback.format_exc()))
                self._say("trouble", text=f"cannot {duty}: {why}")
            self.failures[duty] = why
            self._retry_at[duty] = time.monotonic() + RETRY_SECONDS
            return False
        self.failures.pop(duty, None)
        return True


# Names of errors, or their beginnings, that waiting does not cure, unlike a locked database or a full disk.
HOPELESS = (
    *("SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_PERM", "SQLITE_READONLY"),
    *("EACCES", "EEXIST", "EISDIR", "ENOTDIR", "EPERM", "EROFS"),
)


def check_database(path: Path) -> None:
    """Find out whether a local database can work. MLflow itself would retry for minutes, whatever is wrong.

    Raises: UserError if only a person can mend the database, so that waiting for it is pointless.
    """
    try:
        if path.exists():
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")  # asks for the right to write, and writes nothing
                connection.execute("SELECT * FROM sqlite_master").fetchone()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except (sqlite3.Error, OSError) as error:
        name = error.sqlite_errorname if isinstance(error, sqlite3.Error) else errno.errorcode.get(error.errno or 0, "")
        if name.startswith(HOPELESS):
            found = "is a directory, not a database" if path.is_dir() else f"cannot be used as a database ({error})"
            use = "Move it away, or set tracker.uri or MLFLOW_TRACKING_URI to another store"
            raise UserError(f"{path} {found}. {use}") from error


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


def follow(order: Message, inbox: Inbox, say: Say) -> None:
    """Mirror one run until it is closed or the parent is gone."""
    rounds = Rounds(order, say)
    while True:
        rounds.run()
        ended = time.monotonic()
        due = ended + POLL_SECONDS
        while (left := due - time.monotonic()) > 0:
            try:
                message = inbox.get(timeout=left)
            except queue.Empty:
                break
            if message["do"] in ("close", "gone"):
                rounds.run(status=message.get("status", "interrupted"))
                say("done", failed=rounds.failures)
                return
            if message["do"] == "start":
                rounds.start(message)
            # Not at once: the lines of many quick steps are stored in one transaction.
            due = ended + WAKE_SECONDS


def answer(order: Message, say: Say) -> None:
    """Answer one question. `failed` is None, or says why there is no answer."""
    try:
        if order["database"]:
            check_database(Path(order["database"]))
        from savepoint.trackers.mlflow import store

        ask = {"finish_sweep": store.finish_sweep, "find_runs": store.find_runs, "fetch": store.fetch}[order["do"]]
        say("done", failed=None, **ask(order))
    except Exception as error:  # whatever MLflow and its back ends raise
        sys.stderr.write(redact(traceback.format_exc()))
        say("done", failed=describe(error, order["uri"]))


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
            if message["do"] == "close":
                end_within(message["timeout_seconds"] + 1)
            inbox.put(message)
        parent_gone()

    def watch_parent() -> None:
        # stdin may stay open: a forked worker that loads data inherits the pipe, and may survive its killed parent.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        parent_gone()

    for watcher in (read_orders,) if os.name == "nt" else (read_orders, watch_parent):
        threading.Thread(target=watcher, daemon=True).start()


def main() -> None:
    """Serve one tracker: read the first order, then do what it says."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The training process decides what they mean: it
    # may finish its step and save, and that is still to be stored. Here SIGTERM only means: look at the files now.
    inbox: Inbox = queue.SimpleQueue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: inbox.put({"do": "wake"}))
    if os.name != "nt":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # MLflow sometimes prints to stdout, which is reserved for answers here.
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
            follow(order, inbox, say)
        else:
            answer(order, say)
    os._exit(0)  # without waiting for MLflow's threads, which have nothing left to write


if __name__ == "__main__":
    main()
