"""What train.py and resume.py share: train a run in this process, from its start or from a checkpoint to its end."""

import contextlib
import hashlib
import logging
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# OpenMP's threads spin while they wait for each other. Where another process wants the same cores (the tracker's is
# one), a spinning thread keeps off the very thread that it waits for: digits trained 20 times slower. Read when torch
# loads, so before its import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch._dynamo  # every optimizer imports it at its first call: rather here, where `memory.permanent` holds

from savepoint import account, checkpoint, files, layout, plain, progress, provenance, signals, workers
from savepoint import run as runs
from savepoint.account import Job as Job  # also for train.py and resume.py, which import this module alone
from savepoint.errors import UserError
from savepoint.loop import finished, fit
from savepoint.ready import ready
from savepoint.run import Run
from savepoint.saves import Saves
from savepoint.settings import Settings
from savepoint.state import Parts, TrainState

# How long the end of a run waits for what the tracker has not stored yet; somebody who pressed Ctrl-C waits less.
TRACKER_SECONDS = {"finished": 60.0, "failed": 60.0, "interrupted": 15.0}
IMPATIENT_SECONDS = 1.0  # the same after a second Ctrl-C
log = logging.getLogger("savepoint")


def train(job: Job, *, resumed: checkpoint.Checkpoint | None = None) -> float | None:
    """Train the run from its beginning, or from a checkpoint, to its planned end. Returns the best checkpoint.monitor.

    Raises: UserError for a start that is refused, Interrupted once a requested stop has been saved, or if Ctrl-C ends
    the run at once.
    """
    try:
        with progress.logs(job.run.directory):
            return _logged(job, resumed)
    except OSError as error:
        if not runs.of_the_disk(error, job.run.directory):
            raise
        raise UserError(account.disk_refused(job, error)) from error
    finally:
        job.tracker.abandon()  # nothing, once it was closed


def _logged(job: Job, resumed: checkpoint.Checkpoint | None) -> float | None:
    try:
        return _train(job, resumed)
    except (UserError, signals.Interrupted):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and runs.of_the_disk(error, job.run.directory):
            raise
        if isinstance(error, KeyboardInterrupt) or signals.pressed():
            if job.run.record["status"] == "running":
                job.run.update(status="interrupted")
            raise signals.Interrupted(signal.SIGINT, f"Stopped at once. To go on: {job.resume}") from error
        job.failed()
        if told := workers.killed(error):
            raise UserError(account.worker_killed(job, told)) from error
        # How Python says a wrong value: raised in the fork's own code, it is for whoever chose the value.
        if type(error) is ValueError and (place := _place(error, job.repository)):
            raise UserError(f"{error} ({place})") from error
        raise


def _place(error: Exception, repository: Path) -> str | None:
    """The file and line of the fork's own code that raised it; None if other code did."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(raised.filename)
    own = repository / "src" / "project"
    return f"{path.relative_to(repository)}, line {raised.lineno}" if path.is_relative_to(own) else None


def _train(job: Job, resumed: checkpoint.Checkpoint | None) -> float | None:
    run, settings = job.run, job.settings
    try:
        train_state, parts, data = ready(job, resumed)
    except BaseException:
        workers.end()  # the data may be looked at in one
        raise
    saves, source = _saves(job, resumed, parts, data)
    parts = job.watch(train_state, parts)
    run.update(status="running", name=settings.name)
    account.introduce(job, parts, train_state, resumed, source)
    status, patient = "failed", True
    try:
        with _signals_and_progress(parts, train_state) as (stop, shown), _profiled(settings, run):
            if signals.pressed():  # while a library was imported, and the library kept it to itself
                raise KeyboardInterrupt
            fit(train_state, parts, saves, job.tracker, shown, stop)
        status = "finished" if finished(train_state, parts) else "interrupted"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            status, patient = "interrupted", False
        workers.end()
        raise
    finally:
        saves.close()
        _let_go(job, status, patient=patient)
    account.conclude(job, train_state, saves)
    if status == "interrupted":
        assert stop.signal is not None
        where = f"epoch {train_state.epoch}, step {train_state.step}"
        raise signals.Interrupted(stop.signal, f"Interrupted after {where}. Nothing is lost.")
    return train_state.best["value"] if train_state.best else None


def _saves(
    job: Job, resumed: checkpoint.Checkpoint | None, parts: Parts, data: dict[str, Any]
) -> tuple[Saves, dict[str, Any]]:
    config = plain.dump(job.config)
    source = provenance.gather(job.repository) | {
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "device": parts.device.type,
        "compile": job.settings.trainer.compile,
        "data": data,
    }
    patch = provenance.patch(job.repository)
    if patch is not None:
        files.replace(job.run.directory / layout.PATCH, patch.encode(errors="surrogateescape"))
    saves = Saves(
        job.run,
        job.settings,
        config=config,
        patch=patch,
        provenance=source,
        resumed_from=resumed.path.name if resumed else None,
    )
    return saves, source


@contextlib.contextmanager
def _signals_and_progress(parts: Parts, train_state: TrainState) -> Iterator[tuple[signals.Stop, progress.Progress]]:
    trainer = parts.settings.trainer
    per_epoch = -(-len(parts.train) // trainer.accumulate)
    ends = [trainer.max_epochs * per_epoch] if trainer.max_epochs is not None else []
    ends += [trainer.max_steps] if trainer.max_steps is not None else []
    with (
        signals.watch() as stop,
        progress.show(epochs=trainer.max_epochs, steps=min(ends), done=train_state.step) as shown,
    ):
        yield stop, shown


@contextlib.contextmanager
def _profiled(settings: Settings, run: Run) -> Iterator[None]:
    if not settings.trainer.profile:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    path = run.directory / "trace.json"
    profiler.export_chrome_trace(str(path))
    path.write_text(path.read_text().replace(str(path), path.name))  # it says where it was written: runs are moved
    log.info("%s", profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    log.info("trace %s (open it at chrome://tracing or ui.perfetto.dev)", path)


def _let_go(job: Job, status: str, *, patient: bool) -> None:
    with contextlib.suppress(OSError):  # a full disk is being told already
        job.run.update(status=status)
    unstored = job.tracker.close(status, TRACKER_SECONDS[status] if patient else IMPATIENT_SECONDS)
    if unstored is not None:
        log.warning("%s", unstored)
