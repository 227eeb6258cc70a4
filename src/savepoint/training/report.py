"""Log messages at the start and the end of a run, and put its failures into words."""

import logging
from typing import Any

from savepoint import checkpoint, parallel, runs
from savepoint.data import NoData
from savepoint.errors import UserError
from savepoint.training import sharding
from savepoint.training.loop import finished
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState

log = logging.getLogger("savepoint")


def introduce(job: runs.Job, parts: Parts, train_state: TrainState, source: dict[str, Any], patch: str | None) -> None:
    """Log what is about to be trained, and start the run in the tracker.

    source: this process's provenance. patch: its uncommitted changes.
    """
    resumed = job.checkpoint
    job.tracker.start(
        **runs.describe(job.run, job.config, source),
        documents=[job.run.directory / runs.CONFIG, job.run.directory / checkpoint.PATCH],
    )
    parameters = sum(parameter.numel() for parameter in train_state.model.parameters())
    log.info("run %s  %s", job.run.id, job.run.directory)
    ranks = f"{parallel.count()} ranks, " if parallel.count() > 1 else ""
    if source["parallel"] is not None:
        ranks += f"{source['parallel']}, "
    log.info("device %s (%s%d threads)  %s: %s parameters", parts.device, ranks, source["threads"],
             sharding.class_of(train_state.model).__name__, f"{parameters:,}")  # fmt: skip
    if job.settings.trainer.parallel is not None and parallel.count() == 1:
        log.info("one process trains alone, so trainer.parallel=%s has no effect", job.settings.trainer.parallel)
    log.info("%s", _data(parts))
    if resumed is not None:
        verb, origin = ("forked", job.fork.parent) if job.fork else ("resumed", resumed.path.name)
        log.info("%s from %s: epoch %d, step %d", verb, origin, train_state.epoch, train_state.step)
        if finished(train_state, parts):
            log.info("the run is finished: there is nothing to train up to its planned end")
        for line in drift(resumed, source, patch):
            log.warning("changed since that checkpoint, so %s", line)


def drift(resumed: checkpoint.Checkpoint, source: dict[str, Any], patch: str | None) -> list[str]:
    """Return a line for each thing that has changed since a checkpoint. Each line says what that may change.

    source: this process's provenance. patch: its uncommitted changes.
    """
    code = _other_code(resumed, source, patch)
    others = [each for each in runs.provenance_differences(resumed.provenance, source) if each not in code]
    return [f"results may differ: {each}" for each in code] + [f"bits may differ: {each}" for each in others]


def check_same_code(job: runs.Job) -> None:
    """Refuse a checkpoint of other code, if the job asks for that. Raises: UserError."""
    if job.checkpoint is None or not job.same_code:
        return
    patch = runs.uncommitted_changes(job.repository)
    if code := _other_code(job.checkpoint, runs.gather_provenance(job.repository), patch):
        raise UserError(
            f"--same-code: the code is not that of {job.checkpoint.path.name}: {'; '.join(code)}. "
            "Check that commit out and apply the checkpoint's changes.patch, or leave --same-code out."
        )


def _other_code(resumed: checkpoint.Checkpoint, source: dict[str, Any], patch: str | None) -> list[str]:
    there = resumed.path / checkpoint.PATCH
    before = there.read_bytes().decode(errors="surrogateescape") if there.exists() else None
    return runs.code_differences(resumed.provenance, source, (before, patch))


def _data(parts: Parts) -> str:
    if isinstance(parts.train, NoData):
        return f"no data: an epoch has {len(parts.train):,} batches with nothing in them"
    train, val = ("a stream of" if each.samples is None else f"{each.samples:,}" for each in (parts.train, parts.val))
    return f"data {train} training samples in {len(parts.train):,} batches, {val} validation samples"


def conclude(job: runs.Job, train_state: TrainState, saves: Saves) -> None:
    """Log what was reached, where it is saved, and the commands that go on from there."""
    if train_state.best is not None:
        log.info("best %s", _best(job, train_state.best))
    if train_state.metrics:
        log.info("last %s", "  ".join(f"{name} {value:.4g}" for name, value in train_state.metrics.items()))
    if saves.newest is not None:
        log.info("checkpoint %s", saves.newest)
    further = _further(job, train_state)
    if further is not None:
        log.info("to go on: %s%s", job.resume_command, further)
    if (page := job.tracker.page()) is not None:
        log.info("to look at it: %s", page.words)


def summary(job: runs.Job, train_state: TrainState, saves: Saves) -> str:
    """Return in Markdown what was reached, where it is saved, and the command that goes on from there."""
    lines = []
    if train_state.best is not None:
        lines.append(f"Best **{_best(job, train_state.best)}**.")
    if saves.newest is not None:
        lines.append(f"Newest checkpoint: `{saves.newest}`")
    if (further := _further(job, train_state)) is not None:
        lines.append(f"To go on: `{job.resume_command}{further}`")
    return "\n\n".join(lines)


def _best(job: runs.Job, best: dict[str, Any]) -> str:
    key = "epoch" if job.settings.trainer.evaluate_every_n_steps is None else "step"
    return f"{best['metric']} {best['value']:.4g} at {key} {best[key]}"


def _further(job: runs.Job, train_state: TrainState) -> str | None:
    """Return the override with which the run goes on: "" if it needs none, None if no override would do."""
    trainer = job.settings.trainer
    if job.run.record["status"] != "finished":
        return ""
    if trainer.patience is not None and train_state.stale >= trainer.patience:
        return f" trainer.patience={2 * trainer.patience}"
    if any(one.schedule_length is not None for one in train_state.optimizers.values()):
        return None  # the schedule ends where the run did
    if trainer.max_steps is not None and train_state.step >= trainer.max_steps:
        return f" trainer.max_steps={2 * train_state.step}"
    return f" trainer.max_epochs={2 * train_state.epoch}"


def _kept(job: runs.Job) -> str:
    names = checkpoint.names(job.run.checkpoints)
    return f"{names[-1]} is kept" if names else "There is no checkpoint"


WORKER_KILLED = "A loading worker was killed, most often for lack of memory ({})."


def worker_killed(job: runs.Job, cause: str) -> str:
    """Return the message about a loading worker that died. cause: torch's words."""
    count = job.settings.data.num_workers
    started = job.run.metrics.exists()  # otherwise nothing of the run is kept
    return (
        f"{WORKER_KILLED.format(cause)} "
        f"{_kept(job) if started else 'Nothing was trained yet'}. data.num_workers is {count}; fewer change no result: "
        f"{job.resume_command if started else 'python train.py …'} data.num_workers={count // 2}"
    )


def disk_refused(job: runs.Job, error: OSError) -> str:
    """Return the message about a disk that refuses to be written: what is kept, and the command that goes on."""
    kept = _kept(job)
    if not job.run.directory.is_dir():
        return f"The run directory is gone: {job.run.directory}. Start another run."
    if not job.run.metrics.exists():
        return f"The run directory cannot be written: {error.strerror}. Nothing was trained yet."
    mend = "Make room" if error.errno in runs.FULL else "Mend that"
    return f"The run directory cannot be written: {error.strerror}. {kept}. {mend}, then: {job.resume_command}"
