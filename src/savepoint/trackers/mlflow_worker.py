"""The process beside a training process that copies a run into MLflow: `python -m savepoint.trackers.mlflow_worker`.

It takes orders as JSON lines on stdin and answers on stdout. What it copies it reads from the run directory, so an
order may be late or lost, and whatever was not stored is still in the file. It never outlives its parent by more than
`LAST_SECONDS`.
"""

import contextlib
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from savepoint import system
from savepoint.errors import UserError

if TYPE_CHECKING:
    from savepoint.trackers.mlflow_mirror import Mirror

LAST_SECONDS = 20.0  # to store what a killed parent left behind
POLL_SECONDS, WAKE_SECONDS = 1.0, 0.2
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 2.0, 30.0

Message = dict[str, Any]
Inbox = queue.SimpleQueue[Message]
Say = Callable[..., None]


@dataclass(frozen=True)
class Failure:
    why: str
    delay_seconds: float
    again: float  # when to try again, on the clock of time.monotonic


class Rounds:
    """Runs a mirror's duties in turn. What fails is said once, tried again ever more rarely, and stops nothing else."""

    def __init__(self, mirror: "Mirror", say: Say, *, uri: str) -> None:
        self.failures: dict[str, Failure] = {}  # what -> how, for what fails at present
        self._mirror = mirror
        self._say = say
        self._uri = uri
        self._last = False

    def run(self, *, status: str | None = None) -> None:
        """One round. status: how the run ended; then this is the last round, and tries everything."""
        mirror, self._last = self._mirror, status is not None
        if not self._done("connect", mirror.connect):
            return
        if mirror.begun is None:
            self._done("draw", mirror.prepare_to_draw)
            return
        if not (self._done("open the run", mirror.open) and self._done("store points", mirror.send_points)):
            return
        if status:
            # Before what can take long, or fail for want of space: the points and how it ended matter more.
            self._done("set the status", lambda: mirror.set_status(status))
        self._done("store documents", mirror.send_documents)
        self._done("store checkpoints", mirror.send_checkpoints)
        self._done("draw", lambda: mirror.send_plot(now=self._last))

    def _done(self, what: str, duty: Callable[[], None]) -> bool:
        before = self.failures.get(what)
        if before and time.monotonic() < before.again and not self._last:
            return False
        try:
            duty()
        except Exception as error:  # the border: whatever MLflow and its back ends raise, the rest goes on
            why = reason(error, self._uri)
            if before is None or before.why != why:
                sys.stderr.write(redacted(traceback.format_exc()))
                self._say("trouble", text=f"cannot {what}: {why}")
            delay = min(2 * before.delay_seconds, LONGEST_RETRY_SECONDS) if before else RETRY_SECONDS
            self.failures[what] = Failure(why, delay, time.monotonic() + delay)
            return False
        self.failures.pop(what, None)
        return True


def follow(order: Message, inbox: Inbox, say: Say) -> None:
    """Mirror one run until it is closed or the parent is gone."""
    with system.memory.permanent():
        from savepoint.trackers.mlflow_mirror import Mirror

    mirror = Mirror(order, say)
    rounds = Rounds(mirror, say, uri=order["uri"])
    while True:
        rounds.run()
        last = time.monotonic()
        due = last + POLL_SECONDS
        while time.monotonic() < due:
            message = next_message(inbox, due - time.monotonic())
            if message["do"] in ("close", "gone"):
                rounds.run(status=message.get("status", "interrupted"))
                say("done", failed={what: failure.why for what, failure in rounds.failures.items()})
                return
            if message["do"] == "start":
                mirror.begin(message)
            if message["do"] != "nothing":
                due = min(due, last + WAKE_SECONDS)  # not at once: one transaction for the lines of many quick steps


def next_message(inbox: Inbox, timeout_seconds: float) -> Message:
    """The next order, or {"do": "nothing"} when the time is up."""
    try:
        return inbox.get(timeout=max(0.0, timeout_seconds))
    except queue.Empty:
        return {"do": "nothing"}


def answer(order: Message, say: Say) -> None:
    """One question, one answer."""
    try:
        from savepoint.trackers import mlflow_mirror

        ask = {"finish_sweep": mlflow_mirror.finish_sweep, "find_runs": mlflow_mirror.find_runs}[order["do"]]
        say("done", failed={}, **ask(order))
    except Exception as error:  # the border, as above
        sys.stderr.write(redacted(traceback.format_exc()))
        say("done", failed={"ask": reason(error, order["uri"])})


def reason(error: Exception, uri: str) -> str:
    """One line that a person can use."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError):
        return text
    if "Max retries exceeded" in text or "timed out" in text.lower():
        return f"{redacted(uri)} does not answer"
    return redacted(text if len(text) <= 200 else text[:200] + " …")


def redacted(text: str) -> str:
    """Without the user and password that a store's address may hold, where the environment gave it."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def listen(inbox: Inbox, *, parent: int) -> None:
    """Pass orders on, and see to it that this process ends: a call to a server that hangs cannot be interrupted."""

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
        # stdin alone does not tell: a forked DataLoader worker that survives its parent holds the pipe open.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        parent_gone()

    for watcher in (read_orders,) if os.name == "nt" else (read_orders, watch_parent):
        threading.Thread(target=watcher, daemon=True).start()


def main() -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. What they mean is the parent's to decide: it may
    # train on to the end of its step and save, and that is still to be stored. Here they only mean: now would be good.
    inbox: Inbox = queue.SimpleQueue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: inbox.put({"do": "wake"}))
    if os.name != "nt":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # MLflow prints to stdout now and then, which here belongs to the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(what: str, **details: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the parent is gone
            print(json.dumps({"say": what, **details}), file=answers, flush=True)

    first = sys.stdin.buffer.readline()
    if first:
        order: Message = json.loads(first)
        listen(inbox, parent=order["parent"])
        if order["do"] == "follow":
            follow(order, inbox, say)
        else:
            answer(order, say)
    os._exit(0)  # MLflow leaves threads behind, and nothing here waits to be written


if __name__ == "__main__":
    main()
