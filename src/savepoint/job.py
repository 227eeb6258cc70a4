"""What train.py and resume.py share: make a run's process ready, train, and say how it went."""

import contextlib
import getpass
import hashlib
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# OpenMP's threads spin while they wait for each other. Where another process wants the same cores (the tracker's is
# one), a spinning thread keeps off the very thread that it waits for: digits trained 20 times slower. Read when torch
# loads, so before its import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch._dynamo  # every optimizer imports it at its first call: rather here, where `memory.permanent` holds

from savepoint import (
    build,
    checkpoint,
    files,
    history,
    layout,
    plain,
    progress,
    provenance,
    schedules,
    signals,
    state,
    workers,
)
from savepoint import run as runs
from savepoint.errors import UserError
from savepoint.loop import finished, fit, stale
from savepoint.run import Run
from savepoint.saves import Saves
from savepoint.settings import Settings
from savepoint.state import Parts, TrainState
from savepoint.trackers import Tracker

# How long the end of a run waits for what the tracker has not stored yet; somebody who pressed Ctrl-C waits less.
TRACKER_SECONDS = {"finished": 60.0, "failed": 60.0, "interrupted": 15.0}
IMPATIENT_SECONDS = 1.0  # the same after a second Ctrl-C
THREADS = torch.get_num_threads()  # before any run of this process sets another number
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
        raise UserError(_disk_refused(job, error)) from error
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
            raise UserError(_worker_killed(job, told)) from error
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
    train_state, parts, data = _ready(job, resumed)
    saves, source = _saves(job, resumed, parts, data)
    parts = job.watch(train_state, parts)
    run.update(status="running", name=settings.name)
    _introduce(job, parts, train_state, resumed, source)
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
    _conclude(job, train_state, saves)
    if status == "interrupted":
        assert stop.signal is not None
        where = f"epoch {train_state.epoch}, step {train_state.step}"
        raise signals.Interrupted(stop.signal, f"Interrupted after {where}. Nothing is lost.")
    return train_state.best["value"] if train_state.best else None


def _kept(job: Job) -> str:
    there = checkpoint.names(job.run.checkpoints)
    return f"{there[-1]} is kept" if there else "There is no checkpoint"


def _worker_killed(job: Job, told: str) -> str:
    count = job.settings.data.num_workers
    return (
        f"A loading worker was killed, most often for lack of memory ({told}). {_kept(job)}. "
        f"data.num_workers is {count}; fewer change no result: {job.resume} data.num_workers={count // 2}"
    )


def _disk_refused(job: Job, error: OSError) -> str:
    kept = _kept(job)
    if not job.run.directory.is_dir():
        return f"The run directory is gone: {job.run.directory}. Start another run."
    if not job.run.metrics.exists():
        return f"The run directory cannot be written: {error.strerror}. Nothing was trained yet."
    mend = "Make room" if error.errno in runs.FULL else "Mend that"
    return f"The run directory cannot be written: {error.strerror}. {kept}. {mend}, then: {job.resume}"


def _ready(job: Job, resumed: checkpoint.Checkpoint | None) -> tuple[TrainState, Parts, dict[str, Any]]:
    """Build everything, and move it to where training begins or goes on. Only then is anything on the disk changed.

    Returns: the data's facts as well.
    """
    settings = job.settings
    recorded = resumed.provenance.get("threads") if resumed else None
    environment(settings, threads=settings.trainer.threads or recorded or THREADS)
    train_state, parts = build.assemble(job.config, settings, source=job.repository / "src", checkpoint=resumed)
    data = _data(parts, resumed)
    if resumed is not None:
        _check_length(job, train_state, resumed)
        state.restore(train_state, resumed)
    elif settings.init_from is not None:
        _start_from(job.source or runs.find(settings.init_from, job.repository), job, train_state)
    text = plain.dump(job.config).encode()
    path = job.run.directory / runs.CONFIG
    if path.read_bytes() != text:
        files.replace(path, text)
    checkpoint.clean(job.run.checkpoints)
    history.cut(job.run.metrics, lines=train_state.history_lines)
    return train_state, parts, data


def environment(settings: Settings, *, threads: int) -> None:
    """Settings of the whole process. All are set, also to what torch begins with: a sweep's jobs share a process."""
    trainer = settings.trainer
    torch.set_num_threads(threads)
    # cuBLAS reads it when its first handle is made, and without it is not deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(trainer.deterministic)
    # On by default in that mode, and only there to make a read of uninitialised memory repeatable; it costs a fill.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not trainer.deterministic
    torch.autograd.set_detect_anomaly(trainer.detect_anomaly)


def _start_from(found: runs.Found, job: Job, train_state: TrainState) -> None:
    """Fine-tune: the weights and buffers of another run, and nothing else of it."""
    settings = plain.parse((found.run.directory / runs.CONFIG).read_bytes()).get("checkpoint")
    kept = settings if isinstance(settings, dict) else {}
    loaded = checkpoint.select(
        found.run.checkpoints, found.checkpoint or "last", monitor=kept.get("monitor"), mode=kept.get("mode", "min")
    )
    state.restore_model(train_state.model, loaded)
    # The very checkpoint: `latest` would mean another one when this run starts over.
    listed = found.run.address(job.repository) == found.run.id
    job.config["init_from"] = f"{found.run.id if listed else found.run.directory}@{loaded.path.name}"
    job.run.update(parents=[found.run.id])
    log.info("weights from run %s, %s", found.run.id, loaded.path.name)


def _check_length(job: Job, train_state: TrainState, resumed: checkpoint.Checkpoint) -> None:
    here, there = train_state.schedule_length, resumed.state["schedule_length"]
    if here != there:
        assert here is not None and there is not None  # the config is the same but for the end of training
        planned, wanted = (schedules.planned_key(job.config["scheduler"], end) for end in (there, here))
        assert planned is not None and wanted is not None
        raise UserError(
            f"scheduler.{planned[0]} was planned as {planned[1]} {job.settings.scheduler.interval}s, up to the end of "
            f"training, and would now be {wanted[1]}: the rates so far would have been others. "
            f"Keep the planned end, or start another run: python train.py scheduler.{planned[0]}={wanted[1]} …"
        )


def _data(parts: Parts, resumed: checkpoint.Checkpoint | None) -> dict[str, dict[str, Any]]:
    """What tells the data from others. Raises: UserError if the checkpoint was trained on such others."""
    recorded = resumed.provenance.get("data") if resumed else None  # not in the first checkpoints
    facts = {}
    for name, split in (("train", parts.train), ("val", parts.val)):
        there = recorded.get(name) if isinstance(recorded, dict) else None
        there = there if isinstance(there, dict) else {}
        digested = there.get("digested")
        facts[name] = here = split.facts(digested if type(digested) is int and digested > 0 else None)
        for what, told in (("samples", "{} samples"), ("sha256", "samples with the SHA-256 {:.12}…")):
            if resumed and None not in (here[what], there.get(what)) and here[what] != there[what]:
                raise UserError(
                    f"data.dataset: its split {name!r} has {told.format(here[what])}, and {resumed.path.name} was "
                    f"trained on {told.format(there[what])}. Bring those data back, or begin another run from its "
                    "weights: python train.py init_from=…"
                )
    return facts


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


def _introduce(
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


def _conclude(job: Job, train_state: TrainState, saves: Saves) -> None:
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
