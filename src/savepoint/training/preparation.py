"""Prepare a run: build everything, and restore the checkpoint that it begins from."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from savepoint import checkpoint, parallel, runs, system, trust, weights
from savepoint.config import Difference, Settings, by_name
from savepoint.data import end_workers
from savepoint.errors import CheckpointError, MisfitError, UserError
from savepoint.training import build, fork, optimization, report, schedules, sharding, state
from savepoint.training.loop import finished
from savepoint.training.optimizers import sparse
from savepoint.training.scoring import check_test_split
from savepoint.training.state import Parts, TrainState
from savepoint.training.team import Team

THREADS = torch.get_num_threads()  # before any run of this process sets another number
log = logging.getLogger("savepoint")


def prepare(job: runs.Job) -> tuple[TrainState, Parts]:
    """Build the run's state and parts, and restore its checkpoint or load the weights of `init_from`.

    The run directory is changed last, once nothing can be refused any more.
    Raises: ConfigError that names the key, CheckpointError if the checkpoint does not fit, UserError for changed data.
    """
    report.check_same_code(job)
    try:
        state, parts = _build(job)
    except BaseException:
        end_workers()  # a worker may have loaded the samples that were looked at
        raise
    if job.checkpoint is not None:  # everything was copied, and memory shall not hold it twice while the run trains
        job.checkpoint.model.clear()
        job.checkpoint.state.clear()
    config = job.config_text.encode()
    path = job.run.directory / runs.CONFIG
    if path.read_bytes() != config:
        system.files.replace(path, config)
    runs.cut_history(job.run.metrics, lines=state.history_lines)
    runs.cut_usage(job.run.usage, step=state.step)
    example = job.run.directory / runs.EXAMPLE
    if parts.example is not None and not example.exists():
        system.files.replace(example, parts.example)
    return state, parts


def _build(job: runs.Job) -> tuple[TrainState, Parts]:
    settings, resumed = job.settings, job.checkpoint
    threads = resumed.provenance.get("threads") if resumed else None
    environment(settings, threads=settings.trainer.threads or threads or THREADS)
    recorded = resumed.provenance.get("weights") if resumed else job.run.record.get("weights")
    difference = Difference(job.fork.before, job.config) if job.fork else None
    with weights.tracing(recorded, run=job.run.record["sweep"] or job.run.id) as loaded:
        with _misfits_of_a_fork(job):
            train_state, parts = build.assemble(job.config, settings, source=job.repository / "src", checkpoint=resumed)
        if settings.trainer.test:
            check_test_split(job.config, settings, source=job.repository / "src")
        parts = dataclasses.replace(parts, fingerprints=_fingerprints(parts, resumed, difference))
        if difference is not None:
            _fork(job, train_state, parts, difference)
        elif resumed is not None:
            _check_length(job, train_state, resumed)
            state.restore(train_state, resumed)
        elif settings.init_from is not None:
            _load_weights(job, train_state)
    if parallel.count() > 1:
        anew = resumed is None or (difference is not None and difference.touches("seed"))
        if parallel.rank() and anew:  # the model was built alike on all ranks, and dropout shall differ
            system.rng.seed(system.rng.fold_in(settings.seed, "rank", parallel.rank()))
        parts = dataclasses.replace(parts, team=_team(settings, train_state, parts))
    # Weights that the run began with stay on record, even if this resume has not loaded them again.
    loaded += [each for each in recorded or [] if each not in loaded]
    if loaded:
        job.run.update(weights=loaded)
    return train_state, dataclasses.replace(parts, weights=loaded)


def _team(settings: Settings, train_state: TrainState, parts: Parts) -> Team:
    batch_size = settings.data.batch_size
    if sharding.wanted(settings):
        return sharding.ShardedTeam(train_state.model, parts.forward, batch_size=batch_size)
    forward = None if hasattr(parts.task, "update") else parts.forward
    # Sparse gradients travel alone, and what `Team` does in advance for the others would give these dense ones.
    every = parts.every_parameter and not sparse(train_state.model)
    return Team(train_state.model, forward, batch_size=batch_size, every_parameter=every)


def _fork(job: runs.Job, train_state: TrainState, parts: Parts, difference: Difference) -> None:
    """Restore the parent's checkpoint, let the difference take effect, and log both.

    Raises: UserError if the parent had reached the fork's planned end.
    """
    assert job.fork is not None
    assert job.checkpoint is not None
    log.info("fork of %s%s", job.fork.parent, "".join(f"\n  {line}" for line in difference.lines()))
    make = functools.partial(trust.make, source=job.repository / "src")
    adapted, notes = fork.adapt(job.checkpoint, train_state, parts, difference, make=make)
    state.restore(train_state, adapted)
    for note in notes:
        log.info("  %s", note)
    if finished(train_state, parts):
        trainer = job.settings.trainer
        further = f"trainer.max_epochs={2 * max(train_state.epoch, 1)}"
        if trainer.max_steps is not None and train_state.step >= trainer.max_steps:
            further = f"trainer.max_steps={2 * train_state.step}"
        raise UserError(
            f"{job.fork.parent} has reached the planned end, so its fork would have nothing to train. Add {further}, "
            f"or fork an earlier checkpoint: run={job.fork.parent.partition('@')[0]}@<step>"
        )


@contextlib.contextmanager
def _misfits_of_a_fork(job: runs.Job) -> Iterator[None]:
    """Add to the error of a checkpoint that does not fit a fork's model how to use its weights nevertheless."""
    try:
        yield
    except MisfitError as error:
        if job.fork is None:
            raise
        exclude = f" init.exclude=[{','.join(error.excess)}]" if error.excess else ""
        raise CheckpointError(
            f"{error} A fork goes on with the whole state. To start a run from the weights that fit: "
            f"python train.py init_from={job.fork.parent}{exclude} init.strict=false …"
        ) from error


def environment(settings: Settings, *, threads: int) -> None:
    """Apply the settings that hold for the whole process. threads: how many torch computes with on the CPU.

    Each is set, even to torch's own default: the jobs of a sweep share a process.
    """
    trainer = settings.trainer
    torch.set_num_threads(threads)
    # Without this variable cuBLAS is not deterministic. cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(trainer.deterministic)
    # torch turns this on in that mode. It only makes reads of uninitialised memory repeatable, and costs a fill each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not trainer.deterministic
    torch.autograd.set_detect_anomaly(trainer.detect_anomaly)


def _load_weights(job: runs.Job, train_state: TrainState) -> None:
    """Fine-tune: load the weights and buffers that `init_from` names, and nothing else."""
    query = job.settings.init_from
    assert query is not None
    source = job.weights or weights.find(query, job.repository)
    read = weights.read(source, query=query)
    notes = weights.load(train_state.model, read, job.settings.init)
    # The config gets the very checkpoint or file: `latest` or a relative path may mean another if this run starts over.
    if isinstance(source, Path):
        job.config["init_from"] = str(source)
    else:
        listed = source.run.address(job.repository) == source.run.id
        job.config["init_from"] = f"{source.run.id if listed else source.run.directory}@{read.origin.checkpoint}"
        job.run.update(parents=[source.run.id])
    weights.note(dataclasses.replace(read.origin, query=job.config["init_from"]))
    log.info("weights from %s%s", read.origin.title, "".join(f"; {note}" for note in notes))


def _check_length(job: runs.Job, train_state: TrainState, resumed: checkpoint.Checkpoint) -> None:
    for name, saved in optimization.entries(resumed.state).items():
        here, there = train_state.optimizers[name].schedule_length, saved["schedule_length"]
        if here == there:
            continue
        assert here is not None and there is not None  # the config is the same but for the end of training
        nodes = by_name(job.config["scheduler"])
        path = f"scheduler.{name}" if name and name in nodes else "scheduler"
        planned, wanted = (schedules.planned_key(nodes.get(name) or nodes[""], end) for end in (there, here))
        assert planned is not None and wanted is not None
        raise UserError(
            f"{path}.{planned[0]} was planned as {planned[1]} {job.settings.schedule(name).interval}s, up to the end "
            f"of training, and would now be {wanted[1]}: the rates so far would have been others. "
            f"Keep the planned end, or fork the run with the new one: "
            f"{job.resume_command} {path}.{planned[0]}={wanted[1]} {_further(job, resumed)}"
        )


def _further(job: runs.Job, resumed: checkpoint.Checkpoint) -> str:
    """Return the overrides that moved the planned end."""
    there, here = trust.parse_config(resumed.config)["trainer"], job.config["trainer"]
    return " ".join(f"trainer.{key}={here[key]}" for key in ("max_epochs", "max_steps") if here[key] != there.get(key))


def _fingerprints(
    parts: Parts, resumed: checkpoint.Checkpoint | None, difference: Difference | None
) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of each split.

    difference: the fork's, if there is one. A fork whose config changes the data may have other data.
    Raises: UserError if the checkpoint was trained on other data.
    """
    if difference and difference.touches("data.dataset", "seed"):
        resumed = None
    recorded = resumed.provenance.get("data") if resumed else None  # format 1 did not always have it
    fingerprints = {}
    for name, split in (("train", parts.train), ("val", parts.val)):
        there = recorded.get(name) if isinstance(recorded, dict) else None
        there = there if isinstance(there, dict) else {}
        digested = there.get("digested")
        fingerprints[name] = here = split.facts(digested if type(digested) is int and digested > 0 else None)
        for key, words in (("samples", "{} samples"), ("sha256", "samples with the SHA-256 {:.12}…")):
            if resumed and None not in (here[key], there.get(key)) and here[key] != there[key]:
                raise UserError(
                    f"data.dataset: its split {name!r} has {words.format(here[key])}, and {resumed.path.name} was "
                    f"trained on {words.format(there[key])}. Bring those data back, or begin another run from its "
                    "weights: python train.py init_from=…"
                )
        ordered = difference is None or not difference.touches("data")
        if resumed and ordered and here.get("order") != there.get("order", here.get("order")):
            raise UserError(
                f"data.sampler: it gives another order of epoch 0 than the one {resumed.path.name} was trained on. "
                "Its code has changed, or it depends on the process, as the order of a set of strings does: make it "
                "depend on nothing but the generators, which are seeded, and set_epoch(epoch)."
            )
    return fingerprints
