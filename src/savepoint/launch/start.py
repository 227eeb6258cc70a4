"""Start a new run: compose its config, make its directory, and start its tracker."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from savepoint import runs, system, trackers, trust, weights
from savepoint.config import Settings, TrackerSettings, resolve
from savepoint.errors import BuildError, ConfigError, UserError
from savepoint.launch import processes
from savepoint.launch.ranks import Order

log = logging.getLogger("savepoint")


@dataclass
class Invocation:
    """One run that the command line asks for: the only one, or one job of a sweep.

    config: as Hydra composed it, not yet resolved; plain data for a fork. directory: where the run will live.
    id: the run's id. overrides: as typed, without secrets. tracker: the tracker's settings, set when the run is opened.
    resume: `auto` to continue the run of the same name if there is one; `force` for the same without regard to a lock.
    again: whether the directory may hold this run already, begun by an earlier process of the sweep.
    shared: whether one process trains all jobs of the sweep, which then share one tracker process.
    forked_from: the run and the checkpoint that a fork begins from, as run.json has them.
    choices: the option chosen in each group of conf/, if that is known.
    order: what rank 0 has said, where this process follows it.
    """

    config: DictConfig | dict[str, Any]
    directory: Path
    id: str
    overrides: list[str]
    repository: Path
    sweep: trackers.Sweep | None = None
    tracker: TrackerSettings | None = None
    resume: str | None = None
    again: bool = False
    shared: bool = True
    forked_from: dict[str, str] | None = None
    choices: Mapping[str, str] | None = None
    order: Order | None = None


def following(order: Order, repository: Path) -> Invocation:
    """Return the run that rank 0 says, as the `train` of train.py takes it."""
    config = OmegaConf.create(trust.parse_config(order.config))
    return Invocation(config, Path(), order.record["id"], [], repository, order=order)


def compose(invocation: Invocation) -> dict[str, Any]:
    """Return the config as plain data, with every interpolation resolved.

    `resume` is not a part of the config. This function sets it on the invocation. `trainer.processes` is what is true.
    Raises: OmegaConf's errors if a value is missing or an interpolation cannot be resolved; ConfigError for a wrong
    `resume`.
    """
    config = resolve(invocation.config)
    processes.note(config)
    invocation.resume = resume = invocation.config.get("resume")
    if resume not in (None, "auto", "force"):
        raise ConfigError(f"resume={resume}: must be null, auto or force. For a run by its id: python resume.py run=…")
    if resume and not config.get("name"):
        raise ConfigError(f"resume={resume} continues the run of a name: add name=…")
    if resume and invocation.sweep:
        raise ConfigError(f"resume={resume} continues one run, and -m starts several. Leave one of them out.")
    return config


def _find_weights(invocation: Invocation, settings: Settings) -> weights.Source | None:
    """Find the run or the files that `init_from` names, or return None if there is no `init_from`.

    Call it before the new run exists: afterwards `init_from=latest` would name the new run itself. In a sweep, `latest`
    is the newest run from before the sweep, for all jobs alike.
    Raises: UserError if the name fits no run and no files, or more than one run.
    """
    if settings.init_from is None:
        if unused := [key for key in ("include", "exclude", "rename") if getattr(settings.init, key)]:
            raise UserError(f"init.{unused[0]} has no effect without init_from: give the weights, or leave it out.")
        return None
    sweep = invocation.sweep.id if invocation.sweep else None
    # A run without a tracker may still take the weights of a run that has been tracked.
    tracker = settings.tracker if settings.tracker.kind != "none" else None
    return weights.find(settings.init_from, invocation.repository, tracker=tracker, apart_from=sweep)


@contextlib.contextmanager
def open_new(invocation: Invocation, config: dict[str, Any], settings: Settings) -> Iterator[runs.Job]:
    """Make the run's directory, hold its lock and start its tracker while the body trains the run.

    A run that is refused before it logs anything leaves no run behind, at most a train.log with a traceback.
    Raises: UserError if the directory already holds a run, cannot be written, or is in use by another process; or if
    `init_from` names nothing.
    """
    weights = None if invocation.forked_from else _find_weights(invocation, settings)
    directory, repository = invocation.directory, invocation.repository
    lock = runs.hold(directory, str(directory), new=True)
    try:
        run = runs.create(
            directory,
            id=invocation.id,
            name=settings.name,
            config=trust.dump_config(config),
            overrides=invocation.overrides,
            sweep=invocation.sweep.id if invocation.sweep else None,
            forked_from=invocation.forked_from,
            choices=invocation.choices,
        )
        try:
            with runs.explaining_disk_errors(directory), _tracked(invocation, run, settings) as tracker:
                yield runs.Job(
                    run, config, settings, tracker, repository, weights=weights, requeued=invocation.resume is not None
                )
        except UserError as error:
            if not run.metrics.exists():
                runs.discard(run, keep_log=isinstance(error, BuildError))
            raise
    finally:
        lock.release()
        if not (directory / runs.RECORD).exists():
            (directory / runs.LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def _tracked(invocation: Invocation, run: runs.Run, settings: Settings) -> Iterator[trackers.Tracker]:
    """Start the run's tracker in another process. At the end, abandon the tracker unless it was closed."""
    _record_hydra(invocation)
    invocation.tracker = settings.tracker
    tracker = trackers.open(
        settings.tracker,
        run_dir=run.directory,
        run_id=run.id,
        repository=invocation.repository,
        sweep=invocation.sweep,
        shared=invocation.shared,
        upload=settings.checkpoint.upload,
        warn=log.warning,
        inform=log.info,
        announce=partial(run.note_tracker, settings.tracker.kind),
    )
    try:
        yield tracker
    finally:
        tracker.abandon()  # does nothing to a tracker that was closed


def _record_hydra(invocation: Invocation) -> None:
    """Write `.hydra/` for people: the overrides, and the config before it was resolved. The engine never reads it."""
    record = invocation.directory / ".hydra"
    record.mkdir(exist_ok=True)
    overrides = OmegaConf.to_yaml(invocation.overrides)
    system.files.replace(record / "overrides.yaml", overrides.encode())
    config = OmegaConf.to_yaml(invocation.config)
    system.files.replace(record / "config.yaml", trust.redact(config).encode())


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Hold back Ctrl-C and the garbage collector while the body imports torch.

    torch's C++ code aborts the process if an exception interrupts its import, and the collector would search its
    million new objects again and again.
    """
    with system.signals.held(), system.memory.permanent():
        yield
