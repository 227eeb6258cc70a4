"""Support the loop: log, save, show progress, listen for signals, and record how the run ended."""

import contextlib
import hashlib
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it at its first call; imported here, it is under `memory.permanent`

from savepoint import checkpoint, parallel, runs, system, trust
from savepoint.data import end_workers, worker_death
from savepoint.errors import BuildError, UserError
from savepoint.training import build, progress, report, sharding
from savepoint.training.loop import finished
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.team import Stop

# How long the end of a run waits for points that the tracker has not stored yet, by the run's status.
TRACKER_SECONDS = {"finished": 60.0, "failed": 60.0, "interrupted": 15.0}
IMPATIENT_SECONDS = 1.0  # after a second Ctrl-C
log = logging.getLogger("savepoint")


@contextlib.contextmanager
def session(job: runs.Job) -> Iterator[None]:
    """Write train.log while the body builds and trains the run, and put what goes wrong into words.

    Raises: UserError for a refused start, a full disk, a killed loading worker, and a ValueError of the project's own
    code; Interrupted if Ctrl-C ended the run; a bug's own exception, whose traceback is in train.log too.
    """
    try:
        with progress.logs(job.run.directory), _explaining_failures(job), _together(job):
            yield
    except OSError as error:
        if not runs.is_disk_error(error, job.run.directory):
            raise
        raise UserError(report.disk_refused(job, error)) from error


@contextlib.contextmanager
def _together(job: runs.Job) -> Iterator[None]:
    """Form the group of all ranks that train the run, if there are several."""
    if parallel.count() == 1:
        yield
        return
    kind = build.pick_device(job.settings.trainer.device).type
    seconds = job.settings.trainer.timeout_seconds
    with parallel.attended(job.group, _worker_killed), parallel.group(job.group, kind, seconds=seconds):
        try:
            yield
        except UserError:
            if (health := parallel.current()) is not None:
                health.defer()
            raise


def _worker_killed(error: Exception) -> str | None:
    """Put into words that a loading worker of this rank was killed; None for any other error."""
    death = worker_death(error)
    return death and f"{report.WORKER_KILLED.format(death)} Fewer of data.num_workers change no result."


@contextlib.contextmanager
def _explaining_failures(job: runs.Job) -> Iterator[None]:
    try:
        yield
    except system.signals.Interrupted:
        raise
    except BaseException as error:
        if isinstance(error, OSError) and runs.is_disk_error(error, job.run.directory):
            raise
        # A library may turn Ctrl-C into an error of its own, so Ctrl-C is looked for before the error is believed.
        if isinstance(error, KeyboardInterrupt) or system.signals.pressed():
            if job.run.record["status"] == "running":
                job.run.update(status="interrupted")
            message = f"Stopped at once. To go on: {job.resume_command}"
            raise system.signals.Interrupted(system.signals.last(), message) from error
        if isinstance(error, BuildError):
            log.exception("The run could not be built.")  # to train.log
            raise BuildError(f"{error} The traceback is in {job.run.directory / runs.LOG}.") from error.__cause__
        if isinstance(error, UserError):
            raise
        log.exception("The run failed.")  # to train.log
        with contextlib.suppress(OSError):
            job.run.update(status="failed")
        if death := worker_death(error):
            raise UserError(report.worker_killed(job, death)) from error
        # Python's way to say that a value is wrong. In the project's own code it is meant for whoever chose the value.
        if type(error) is ValueError and (place := _place(error, job.repository)):
            raise UserError(f"{error} ({place})") from error
        raise


def _place(error: Exception, repository: Path) -> str | None:
    """Return the file and line of the project's own code that raised the error; None if other code did."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(raised.filename)
    source = repository / "src"
    project = source / trust.package(source)
    return f"{path.relative_to(repository)}, line {raised.lineno}" if path.is_relative_to(project) else None


@contextlib.contextmanager
def supervise(
    job: runs.Job, state: TrainState, parts: Parts
) -> Iterator[tuple[Saves, progress.Progress, system.signals.Stop]]:
    """Announce the run, provide what the loop reports to while the body trains, and record how the run ended.

    Yields: where checkpoints go, the progress display, and whether the run was asked to stop.
    Raises: Interrupted if the run was asked to stop, and stopped with everything saved.
    """
    source = _provenance(job, parts)
    patch = runs.uncommitted_changes(job.repository)
    saves = _open_saves(job, source, patch)
    job.run.update(status="running", name=job.settings.name, commands=_commands(job, source))
    report.introduce(job, parts, state, source, patch)
    status, patient, team = "failed", True, parts.team
    try:
        watching = system.signals.watch(job.run.stop_file, quiet=team is not None)
        with watching as stop, _progress(parts, state) as shown, _profiled(job):
            if team is not None:
                health = parallel.current()
                assert health is not None
                health.training = True
                stop = team.stop = Stop(stop)
                team.clock = saves.due
            if system.signals.pressed():  # a library swallowed the interrupt while it was imported
                raise KeyboardInterrupt
            if job.fork is not None:
                saves.save(state)  # from here on the fork needs nothing of its parent
            yield saves, shown, stop
        status = "finished" if finished(state, parts) else "interrupted"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            status, patient = "interrupted", False
        end_workers()
        raise
    finally:
        saves.close()
        _record_end(job, status, patient=patient, summary=lambda: report.summary(job, state, saves))
    report.conclude(job, state, saves)
    if status == "interrupted":
        assert stop.signal is not None
        where = f"epoch {state.epoch}, step {state.step}"
        again = " The same command goes on." if job.requeued else ""
        if stop.signal == system.signals.FILE:
            again = f" It goes on once {job.run.stop_file} is deleted."
        raise system.signals.Interrupted(stop.signal, f"Interrupted after {where}. Nothing is lost.{again}")


def _provenance(job: runs.Job, parts: Parts) -> dict[str, Any]:
    """Gather what every checkpoint of this process says about where it came from."""
    return runs.gather_provenance(job.repository) | {
        "config_sha256": hashlib.sha256(job.config_text.encode()).hexdigest(),
        "device": parts.device.type,
        "compile": job.settings.trainer.compile,
        "parallel": sharding.words(job.settings),
        "data": parts.fingerprints,
        "weights": parts.weights,
        "forked_from": job.run.record.get("forked_from"),
    }


def _commands(job: runs.Job, source: dict[str, Any]) -> list[dict[str, str]]:
    """Return the commands that have trained this run, the present one last."""
    recorded = job.run.record.get("commands")
    if recorded is None:  # begun before run.json had them
        first = job.checkpoint.provenance if job.checkpoint else {}
        recorded = [{"time": str(first["time"]), "command": str(first["command"])}] if "command" in first else []
    return [*recorded, {"time": source["time"], "command": source["command"]}]


def _open_saves(job: runs.Job, source: dict[str, Any], patch: str | None) -> Saves:
    if patch is not None:
        system.files.replace(job.run.directory / checkpoint.PATCH, patch.encode(errors="surrogateescape"))
    return Saves(
        job.run,
        job.settings,
        config=job.config_text,
        patch=patch,
        provenance=source,
        resumed_from=job.checkpoint.path.name if job.checkpoint and job.fork is None else None,
    )


@contextlib.contextmanager
def _progress(parts: Parts, state: TrainState) -> Iterator[progress.Progress]:
    trainer = parts.settings.trainer
    per_epoch = -(-len(parts.train) // trainer.accumulate)
    ends = [trainer.max_epochs * per_epoch] if trainer.max_epochs is not None else []
    ends += [trainer.max_steps] if trainer.max_steps is not None else []
    with progress.show(epochs=trainer.max_epochs, steps=min(ends), done=state.step) as shown:
        yield shown


@contextlib.contextmanager
def _profiled(job: runs.Job) -> Iterator[None]:
    if not job.settings.trainer.profile:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    path = job.run.directory / "trace.json"
    profiler.export_chrome_trace(str(path))
    # The trace contains its own path. Runs are moved, so only the name stays.
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(json.dumps(str(path), ensure_ascii=False)[1:-1], path.name), encoding="utf-8")
    log.info("%s", profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    log.info("trace %s (open it at chrome://tracing or ui.perfetto.dev)", path)


def _record_end(job: runs.Job, status: str, *, patient: bool, summary: Callable[[], str]) -> None:
    with contextlib.suppress(OSError):  # the disk is full, which the error under way says already
        job.run.update(status=status)
    seconds = TRACKER_SECONDS[status] if patient else IMPATIENT_SECONDS
    unstored = job.tracker.close(status, seconds, note=summary())
    if unstored is not None:
        log.warning("%s", unstored)
