"""A run made ready: everything is built, and moved to where training begins or goes on."""

import logging
import os
from typing import Any

import torch

from savepoint import build, checkpoint, files, history, plain, schedules, state
from savepoint import run as runs
from savepoint.account import Job
from savepoint.errors import UserError
from savepoint.settings import Settings
from savepoint.state import Parts, TrainState

THREADS = torch.get_num_threads()  # before any run of this process sets another number
log = logging.getLogger("savepoint")


def ready(job: Job, resumed: checkpoint.Checkpoint | None) -> tuple[TrainState, Parts, dict[str, Any]]:
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
        if resumed and here.get("order") != there.get("order", here.get("order")):
            raise UserError(
                f"data.sampler: it gives another order of epoch 0 than the one {resumed.path.name} was trained on. "
                "Its code has changed, or it depends on the process, as the order of a set of strings does: make it "
                "depend on nothing but the generators, which are seeded, and set_epoch(epoch)."
            )
    return facts
