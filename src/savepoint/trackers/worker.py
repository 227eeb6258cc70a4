"""The tracker's process, which copies runs into a store beside training: `python -m savepoint.trackers.worker`.

It takes orders as JSON lines on stdin and answers on stdout. It copies the files of run directories, so an order may
come late or get lost: anything that was not stored can still be read from the files. It serves one run, or all runs of
a sweep one after the other. It outlives its parent by `LAST_SECONDS` at most.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from savepoint.trackers import artifacts, kinds
from savepoint.trackers.process import Message
from savepoint.trackers.service import Say, Service, describe, redact

LAST_SECONDS = 20.0  # to store what a killed parent left behind
POLL_SECONDS, WAKE_SECONDS = 1.0, 0.2

Inbox = queue.SimpleQueue[Message]


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
            # Wait a moment, so that the lines of many quick steps are stored in one transaction.
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
        say("done", failed=describe(error, order))


def listen(inbox: Inbox, *, parent: int) -> None:
    """Put orders into the inbox, and make sure that this process ends even if a call to a server hangs."""

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
        # stdin may stay open after a kill: a forked data-loading worker inherits the pipe and may outlive the parent.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        time.sleep(POLL_SECONDS)  # meanwhile the other thread reads what the parent has written
        parent_gone()

    for watcher in (read_orders,) if os.name == "nt" else (read_orders, watch_parent):
        threading.Thread(target=watcher, daemon=True).start()


def main() -> None:
    """Read the first order and carry it out."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The training process decides what they mean: it
    # may finish its step and save, and this process must still store that. Here SIGTERM means: look at the files now.
    inbox: Inbox = queue.SimpleQueue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: inbox.put({"do": "look"}))
    if os.name != "nt":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A library may print to stdout, which is reserved for answers here.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # tracker.log is for problems only. MLflow 3.2, unlike 3.17, logs there how it sets up its database.
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
    os._exit(0)  # do not wait for MLflow's threads, which have nothing left to write


if __name__ == "__main__":
    main()
