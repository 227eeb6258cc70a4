"""A run that this process trains, and the account that it gives of it: at its start, at its end, where it fails."""

import contextlib
import getpass
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import checkpoint, layout, plain, provenance
from savepoint import run as runs
from savepoint.loop import finished, stale
from savepoint.run import Run
from savepoint.saves import Saves
from savepoint.settings import Settings
from savepoint.state import Parts, TrainState
from savepoint.trackers import Tracker

log = logging.getLogger("savepoint")


def unwatched(state: TrainState, parts: Parts) -> Parts:
    """The parts of a run that nobody watches: as they are."""
    return parts


@dataclass(frozen=True)
class Job:
    """A run, ready to be trained by this process. config, settings: checked. repository: the directory of train.py.

    source: the run that `init_from` means, where that has been looked for already.
    watch: is shown everything once it is built and restored, and gives the parts that are trained with.
    """

    run: Run
    config: dict[str, Any]
    settings: Settings
    tracker: Tracker
    repository: Path
    source: runs.Found | None = None
    watch: Callable[[TrainState, Parts], Parts] = unwatched

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return f"python resume.py run={self.run.address(self.repository)}"

    def failed(self) -> None:
        """Keep a bug's traceback in train.log."""
        log.exception("The run failed.")
        with contextlib.suppress(OSError):
            self.run.update(status="failed")


def introduce(
    job: Job, parts: Parts, train_state: TrainState, resumed: checkpoint.Checkpoint | None, source: dict[str, Any]
) -> None:
    """Tell the tracker and the person what is about to be trained."""
    git = source["git"]
    job.tracker.start(
        name=job.run.record["name"],
        params=plain.flatten(job.config),
        tags=_tags(git, source["command"]),
        documents=[job.run.directory / runs.CONFIG, job.run.directory / layout.PATCH],
        parents=job.run.record["parents"],
    )
    parameters = sum(parameter.numel() for parameter in train_state.model.parameters())
    log.info("run %s  %s", job.run.id, job.run.directory)
    log.info("device %s (%d threads)  %s: %s parameters", parts.device, source["threads"],
             type(train_state.model).__name__, f"{parameters:,}")  # fmt: skip
    samples = ["a stream of" if each.samples is None else f"{each.samples:,}" for each in (parts.train, parts.val)]
    log.info("data %s training samples in %s batches, %s validation samples", samples[0], f"{len(parts.train):,}",
             samples[1])  # fmt: skip
    if resumed is not None:
        log.info("resumed from %s: epoch %d, step %d", resumed.path.name, train_state.epoch, train_state.step)
        if finished(train_state, parts):
            log.info("the run is finished: there is nothing to train up to its planned end")
        if changed := provenance.differences(resumed.provenance, source):
            log.warning("changed since that checkpoint, so bits may differ: %s", "; ".join(changed))


def _tags(git: dict[str, Any], command: str) -> dict[str, str]:
    """MLflow's own names where it has them: its page shows and links those."""
    tags = {f"git.{key}": str(value) for key, value in git.items() if value is not None} | {"command": command}
    if git["commit"] is not None:
        tags["mlflow.source.git.commit"] = git["commit"]
    with contextlib.suppress(KeyError, OSError, ImportError):  # a container may run as a user without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags | {"mlflow.source.name": "train.py"}


def conclude(job: Job, train_state: TrainState, saves: Saves) -> None:
    if train_state.best is not None:
        best = train_state.best
        log.info("best %s %.4g at epoch %d", best["metric"], best["value"], best["epoch"])
    if train_state.metrics:
        log.info("last %s", "  ".join(f"{name} {value:.4g}" for name, value in train_state.metrics.items()))
    if saves.newest is not None:
        log.info("checkpoint %s", saves.newest)
    further = _further(job, train_state)
    if further is not None:
        log.info("to go on: %s%s", job.resume, further)
    if job.settings.tracker.kind == "mlflow":
        log.info("to look at it: make ui   (or: python -m savepoint ui)")


def _further(job: Job, train_state: TrainState) -> str | None:
    """What to add to the command that goes on with the run; None where nothing would make it go on."""
    trainer = job.settings.trainer
    if job.run.record["status"] != "finished":
        return ""
    if trainer.patience is not None and stale(train_state) >= trainer.patience:
        return f" trainer.patience={2 * trainer.patience}"
    if train_state.schedule_length is not None:
        return None  # the schedule ends where the run did
    if trainer.max_steps is not None and train_state.step >= trainer.max_steps:
        return f" trainer.max_steps={2 * train_state.step}"
    return f" trainer.max_epochs={2 * train_state.epoch}"


def _kept(job: Job) -> str:
    there = checkpoint.names(job.run.checkpoints)
    return f"{there[-1]} is kept" if there else "There is no checkpoint"


def worker_killed(job: Job, told: str) -> str:
    count = job.settings.data.num_workers
    begun = job.run.metrics.exists()  # or else nothing is left of the run
    return (
        f"A loading worker was killed, most often for lack of memory ({told}). "
        f"{_kept(job) if begun else 'Nothing was trained yet'}. data.num_workers is {count}; fewer change no result: "
        f"{job.resume if begun else 'python train.py …'} data.num_workers={count // 2}"
    )


def disk_refused(job: Job, error: OSError) -> str:
    kept = _kept(job)
    if not job.run.directory.is_dir():
        return f"The run directory is gone: {job.run.directory}. Start another run."
    if not job.run.metrics.exists():
        return f"The run directory cannot be written: {error.strerror}. Nothing was trained yet."
    mend = "Make room" if error.errno in runs.FULL else "Mend that"
    return f"The run directory cannot be written: {error.strerror}. {kept}. {mend}, then: {job.resume}"
