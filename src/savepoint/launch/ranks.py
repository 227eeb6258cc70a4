"""Several processes that train one run: rank 0 decides what is trained, and tells the others.

Rank 0 does all that one process does: it composes the config, makes the directory, and holds the lock and the tracker.
A follower waits for its orders. It trains in a scratch directory, where what it writes about the run is thrown away.
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savepoint import parallel, runs, system, trackers, trust
from savepoint.config import Settings, TrainerSettings
from savepoint.errors import UserError

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint

# The note that leads a restarted rank 0 to its run.
RUN = "run"
LOOK_SECONDS = 0.02
# How long a follower that has failed waits for rank 0, which says why to people.
PATIENCE_SECONDS = 60.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Order:
    """What rank 0 tells the others to train: what `runs.Job` has, as JSON can hold it.

    group: a name that is used once. record: run.json. config: YAML. checkpoint: a path.
    fork: the parent, and its config as YAML. weights: a path, or the paths of a run and of its checkpoint.
    part: whether the follower goes on from the part that it has loaded last. loaded: that part; rank 0 sends None.
    """

    group: str
    record: dict[str, Any]
    config: str
    checkpoint: str | None
    fork: list[str] | None
    weights: list[str | None] | None
    same_code: bool
    part: bool
    loaded: "Checkpoint | None" = None


@contextlib.contextmanager
def led(job: runs.Job) -> Iterator[runs.Job]:
    """Tell the followers to train a job, if there are any, and let the body train this rank's part of it."""
    if parallel.count() == 1 or not parallel.leads():
        yield job
        return
    number = next(_numbers)
    weights = job.weights
    where: list[str | None] | None
    if isinstance(weights, runs.Found):
        where = [str(weights.run.directory), weights.checkpoint]
    else:
        where = None if weights is None else [str(weights)]
    order = Order(
        group=f"{job.run.id}/{number}",
        record=job.run.record,
        config=job.config_text,
        checkpoint=str(job.checkpoint.path.absolute()) if job.checkpoint else None,
        fork=[job.fork.parent, trust.dump_config(job.fork.before)] if job.fork else None,
        weights=where,
        same_code=job.same_code,
        part=job.checkpoint is not None and job.checkpoint.shared is not None,
    )
    parallel.lasting().write(RUN, str(job.run.directory.absolute()))
    parallel.board().write(f"order/{number}", vars(order))
    job = replace(job, group=order.group)
    yield job


def load(path: Path, *, trainer: TrainerSettings) -> "Checkpoint":
    """Load a checkpoint to continue a run from. Only rank 0 calls this.

    If the model is cut among the ranks, and as many saved it, each loads and verifies its own part, and keeps it until
    it is told to train.
    Raises: CheckpointError if any part is damaged, whichever rank says so.
    """
    from savepoint import checkpoint

    if parallel.count() == 1 or trainer.parallel != "fsdp":
        return checkpoint.load(path)
    if len(checkpoint.tensor_files(checkpoint.digests(path))[checkpoint.MODEL]) != parallel.count():
        return checkpoint.load(path)
    number = next(_numbers)
    parallel.board().write(f"order/{number}", {"load": str(path.absolute())})
    loaded = checkpoint.load(path, part=True)
    until, agreed = time.monotonic() + trainer.timeout_seconds, True
    for rank in range(1, parallel.count()):
        while (note := parallel.board().read(f"loaded/{number}/{rank}")) is None:
            if (asked := system.signals.asked()) is not None:
                raise system.signals.Interrupted(asked, "Stopped before training began. Nothing is lost.")
            if time.monotonic() > until:
                raise UserError(f"Rank {rank} of {parallel.count()} has not loaded {path.name} in time.")
            time.sleep(LOOK_SECONDS)
        agreed = agreed and note == loaded.shared
    # If another rank cannot read its part, this one finds out whether that is the disk's fault or the rank's.
    return loaded if agreed else checkpoint.load(path)


def _load_part(path: Path, number: int) -> "Checkpoint | None":
    """Load this follower's part of a checkpoint, and tell rank 0 what it found. Returns: None for a damaged part."""
    from savepoint import checkpoint

    loaded = None
    with contextlib.suppress(UserError):
        loaded = checkpoint.load(path, part=True)
    with contextlib.suppress(ConnectionError):
        parallel.board().write(f"loaded/{number}/{parallel.rank()}", loaded.shared if loaded else "")
    return loaded


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Let the followers end when this block does, whatever ends it."""
    _note_signals()
    try:
        yield
    finally:
        if parallel.count() > 1:
            with contextlib.suppress(ConnectionError):
                parallel.board().write("end", True)


def follow(act: Callable[[Order], object]) -> None:
    """Do what rank 0 says until it ends. act: trains the run of an order."""
    board, failed, loaded = parallel.board(), False, None
    _note_signals()
    # People read what rank 0 writes.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(nowhere, stream.fileno())
    for number in itertools.count():
        until, order = time.monotonic() + PATIENCE_SECONDS, None
        with contextlib.suppress(ConnectionError):  # whoever keeps the notes has ended
            while (order := board.read(f"order/{number}")) is None:
                if system.signals.asked() is not None:
                    parallel.leave()
                    return
                if board.read("end") or (failed and time.monotonic() > until):
                    return
                time.sleep(LOOK_SECONDS)
        if order is None:
            return
        if "load" in order:
            loaded = _load_part(Path(order["load"]), number)
            continue
        try:
            act(Order(**order | {"loaded": loaded}))
        except (Exception, KeyboardInterrupt):
            failed = True  # rank 0 has been told why, or knows it


def _note_signals() -> None:
    """Let signals end a rank only by way of its training, which stops at the next step.

    torchrun sends SIGTERM to all ranks as soon as one has died, and then they still have to say so.
    """
    if parallel.count() > 1:
        system.signals.note()


@contextlib.contextmanager
def followed(order: Order, config: dict[str, Any], settings: Settings, repository: Path) -> Iterator[runs.Job]:
    """Open the run of an order in a scratch directory while the body trains this rank's part of it."""
    from savepoint import checkpoint

    with tempfile.TemporaryDirectory(prefix="savepoint-rank-", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        (directory / runs.RECORD).write_text(json.dumps(order.record), encoding="utf-8")
        (directory / runs.CONFIG).write_text(order.config, encoding="utf-8")
        weights: runs.Found | Path | None = None
        if order.weights is not None:
            path = Path(str(order.weights[0]))
            weights = path if len(order.weights) == 1 else runs.Found(runs.read(path), order.weights[1])
        loaded = order.loaded if order.part else checkpoint.load(Path(order.checkpoint)) if order.checkpoint else None
        yield runs.Job(
            runs.read(directory),
            config,
            settings,
            trackers.NoTracker(),
            repository,
            checkpoint=loaded,
            fork=runs.Fork(order.fork[0], trust.parse_config(order.fork[1])) if order.fork else None,
            weights=weights,
            same_code=order.same_code,
            group=order.group,
        )


@dataclass(frozen=True)
class Followed:
    """A run that rank 0 has reopened, for a process that follows it."""

    order: Order
    repository: Path

    @contextlib.contextmanager
    def open_run(self) -> Iterator[runs.Job]:
        """Open this rank's part of the run while the body trains it."""
        config = trust.parse_config(self.order.config)
        settings = trust.check_config(config, source=self.repository / "src")
        with followed(self.order, config, settings, self.repository) as job:
            yield job


def restarted() -> Path | None:
    """Return the directory of the run that the ranks trained before torchrun started them again, if they did."""
    directory = parallel.lasting().read(RUN) if parallel.restarts() else None
    return None if directory is None else Path(directory)


def restarted_sweep() -> Path | None:
    """Return the directory of the sweep that the ranks trained before torchrun started them again, if they did."""
    directory = restarted()
    return directory.parent if directory and runs.read(directory).record["sweep"] else None
