"""Notice that a rank has failed, died or hangs, and say in one line which rank and why.

While a run trains, each rank has a thread that leaves a sign of life every second. Where ranks wait for each other in
vain, the signs tell who is missing: a rank that died leaves none, and one that hangs says where it stands.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from savepoint import system
from savepoint.errors import UserError
from savepoint.parallel.board import Board, LostBoardError, board, leave, left
from savepoint.parallel.place import count, rank

log = logging.getLogger("savepoint")
BEAT_SECONDS = 0.5
# How long to look for signs of life, before a rank that gives none is taken for dead. Longer if several give none:
# on a busy machine, some of them may be only slow.
LOOK_SECONDS, PATIENT_SECONDS = 4 * BEAT_SECONDS, 16 * BEAT_SECONDS
SILENT_SECONDS = 120 * BEAT_SECONDS  # before training; a rank may well be silent while it opens its data
_DIED = "its process has died or cannot be reached. Most often it was killed, for example for lack of memory."
# What torch.distributed says if another rank does not answer, has closed its connection, or was never there.
_OTHERS = ("Connection closed", "Connection was likely closed", "Connection reset", "Broken pipe", "Timed out",
           "timed out", "Connection refused", "NCCL", "gloo", "Socket", "recvValue failed",
           "process group")  # fmt: skip


class LostRankError(UserError):
    """Ends the training of a run because another rank has failed, died or hangs.

    gone: whether the other rank can train nothing more. One that failed with an error of its own can.
    """

    gone = True


class Health:
    """The signs of life of the ranks of one run.

    name: of no other run of these processes. asked: the number of a signal that another rank was asked to stop by.
    """

    def __init__(self, name: str) -> None:
        self._board = Board(f"{board().prefix}/health/{name}")
        self._main, self._ended = threading.get_ident(), threading.Event()
        self.training = False  # whether all ranks have begun to train
        self._seen: dict[int, tuple[Any, float]] = {}  # each rank's newest sign, and when it was new
        self._hopeless = 0  # signs of life since another rank has failed, or a signal has asked this one to end
        self._over = False  # whether this rank's main thread knows that its training has failed
        self.asked: int | None = None  # what another rank was asked
        self._thread = threading.Thread(target=self._beat, name="health", daemon=True)
        self._thread.start()

    def ask(self, number: int) -> None:
        """Let every rank know within a second that this one was asked to stop, by a signal of this number."""
        with contextlib.suppress(ConnectionError):
            self._board.write("stop", number)

    def fail(self, error: BaseException, words: str | None = None) -> None:
        """Let the others know why this rank fails. words: those for people; None for the error's own, and its place."""
        self._over = True
        if words is None and isinstance(error, UserError):
            words = str(error)
        if words is None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        note = {"rank": rank(), "words": " ".join(words.split())}
        with contextlib.suppress(ConnectionError):
            self._board.write_first("failure", note | {"traceback": "".join(traceback.format_exception(error))})

    def defer(self) -> None:
        """Before this rank fails with a user's mistake: let rank 0 find the same one first, and tell it as its own."""
        if not self.training and rank() != 0:
            with contextlib.suppress(ConnectionError):
                self._board.await_note("failure", seconds=PATIENT_SECONDS)

    def failure(self) -> tuple[int, str] | None:
        """Return the rank that failed first, and why; None if no rank has said so."""
        with contextlib.suppress(ConnectionError):
            if (note := self._board.read("failure")) is not None:
                return note["rank"], note["words"]
        return None

    def traceback(self) -> str | None:
        """Return the traceback of the rank that failed first; None if there is none."""
        with contextlib.suppress(ConnectionError):
            return (self._board.read("failure") or {}).get("traceback")
        return None

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def explain(self, error: BaseException) -> LostRankError | None:
        """Return what became of another rank if that is why this rank fails; None if the error is this rank's own."""
        if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _OTHERS):
            return None
        self._over = True
        failure = self.failure()
        if failure is None:
            try:
                if (found := self._look()) is not None:
                    self._board.write_first("failure", {"rank": found[0], "words": found[1]})
                failure = self.failure()
            except LostBoardError as lost_board:
                return LostRankError(str(lost_board))
        lost = LostRankError(_sentence(*failure) if failure else "Another rank cannot be reached any more.")
        lost.gone = self.traceback() is None
        return lost

    def _look(self) -> tuple[int, str] | None:
        """Find the rank that died or hangs, from its signs of life, and say what is known; None if all seem well."""
        self._board.write("where", True)
        before, started = self._signs(), time.monotonic()
        while True:
            time.sleep(BEAT_SECONDS)
            after = self._signs()
            others = [each for each in range(count()) if each != rank()]
            silent = [each for each in others if before[each].get("number") == after[each].get("number")]
            looked = time.monotonic() - started
            if looked >= PATIENT_SECONDS or (looked >= LOOK_SECONDS and len(silent) <= 1) or self.failure():
                break
        if silent:
            return silent[0], _DIED
        for each in others:
            if place := after[each].get("place"):
                return each, f"it hangs at {place}."
        return None

    def _signs(self) -> list[dict[str, Any]]:
        return [self._board.read(f"sign/{each}") or {} for each in range(count())]

    def _leave_if_hopeless(self) -> None:
        """End this process before training if another rank has died or failed, or if a signal asks for that.

        The main thread may wait inside torch then, where neither a signal nor the end of the other rank reaches it.
        torchrun sends a signal to all ranks once one has died: that is the rank that gives no sign of life any more
        and has not said that it ends because of a signal.
        """
        number, words, silent = system.signals.asked(), None, []
        try:
            if number is not None:
                leave()
            gone, failure = left(), self.failure()
            silent = [each for each in self._silent(asked=number is not None) if each not in gone]
            if failure is not None or silent:
                words = _sentence(*(failure or (silent[0], _DIED)))
            elif number is not None and len(gone) == count():
                os._exit(system.signals.exit_code(number))
        except LostBoardError as error:
            words = str(error)
        self._hopeless += words is not None or number is not None
        if silent or self._hopeless * BEAT_SECONDS > LOOK_SECONDS:
            if words is None and number is not None:
                os._exit(system.signals.exit_code(number))
            print(f"error: {words}", file=sys.stderr, flush=True)
            os._exit(2)

    def _silent(self, *, asked: bool) -> list[int]:
        """Return the other ranks that give no sign of life any more. To be called at every beat.

        asked: whether a signal has asked this rank to end. Only then a rank that gave no sign so far is one of them.
        """
        now, patience = time.monotonic(), LOOK_SECONDS if asked else SILENT_SECONDS
        for each, sign in enumerate(self._signs()):
            if self._seen.get(each, (0, now))[0] != sign.get("number"):
                self._seen[each] = sign.get("number"), now
        silent = [each for each, (_, since) in self._seen.items() if each != rank() and now - since > patience]
        return [each for each in silent if asked or self._seen[each][0] is not None]

    def _beat(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            if not self.training and not self._over:
                self._leave_if_hopeless()
            if not self._over and (failure := self.failure()) is not None and failure[0] == rank():
                # The others have given this rank up, and its main thread does not come back.
                print(f"error: {_sentence(*failure)}", file=sys.stderr, flush=True)
                os._exit(1)
            with contextlib.suppress(ConnectionError):
                place = _place(self._main) if self._board.read("where") else None
                self._board.write(f"sign/{rank()}", {"number": number, "place": place})
                self.asked = self._board.read("stop")
            self._ended.wait(BEAT_SECONDS)


def _sentence(failed: int, why: str) -> str:
    return f"Rank {failed} of {count()} does not train any more: {why}"


def _place(thread: int) -> str | None:
    """Say where a thread stands: in the innermost file that is not torch's or Python's. None if it waits for ranks."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.match("torch/distributed/*.py") or path.match("savepoint/parallel/*.py"):
            return None
        if "site-packages" not in path.parts and not path.is_relative_to(sys.base_prefix):
            return f"{'/'.join(path.parts[-3:])}, line {frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "an unknown place"


_current: list[Health] = []


def current() -> Health | None:
    """Return the signs of life of the run that this process trains with others; None if it trains none, or alone."""
    return _current[-1] if _current else None


@contextlib.contextmanager
def attended(name: str, words: Callable[[Exception], str | None] = lambda _: None) -> Iterator[None]:
    """Keep up signs of life during the block, and find out who is to blame if it fails.

    name: of no other run of these processes. words: returns what people are told of an error; None for its own words.
    Raises: LostRankError in place of an error that another rank caused.
    """
    health = Health(name)
    _current.append(health)
    try:
        yield
    except Exception as error:
        if (lost := health.explain(error)) is not None:
            trace = health.traceback()
            log.error("%s", lost if trace is None else f"The other rank's traceback:\n{trace}", exc_info=error)
            raise lost from error
        health.fail(error, words(error))
        raise
    finally:
        _current.remove(health)
        health.end()
