"""Compose a config, start a run: `python train.py optimizer=adam trainer.max_epochs=40`.

torch and MLflow are not imported until the config is known to be sound: `--help` and a typo answer at once.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, also where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from savepoint import compose, config, files, lookup, memory, overrides, plain, run, signals, sweep, trackers  # noqa: E402
from savepoint import settings as settings_module  # noqa: E402
from savepoint.errors import UserError  # noqa: E402
from savepoint.redaction import redact, redact_arguments  # noqa: E402

log = logging.getLogger("savepoint")
# Made before anything else: it names the directory of the run, or of the sweep.
START_ID = run.new_id()
# The sweep that this process runs, once its first job has begun, and where its jobs are tracked.
SWEEPS: list[trackers.Sweep] = []
TRACKED: list[settings_module.Tracker] = []
# Why the only run of this process came to nothing.
REFUSED: list[Exception] = []


@hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """One run. Returns what a sweeper minimises or maximises: the best value of checkpoint.monitor."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    belongs_to = None
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        belongs_to = sweep.named(Path(HydraConfig.get().sweep.dir))
        if not SWEEPS:
            SWEEPS.append(belongs_to)
            sweep.redact_record(belongs_to.dir)
        print(f"\njob {directory.name}: {' '.join(_typed())}")
    try:
        with run.told(directory):
            return _start(cfg, directory, belongs_to)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or signals.pressed():
            raise _stopped(directory, error) from error
        run.remove_empty(directory)
        if belongs_to is None:
            # Past Hydra, which would print it its own way, to `main`.
            REFUSED.append(error)
            return None
        print(f"job {directory.name} failed: {error}", file=sys.stderr)
        if not (directory / run.RECORD).exists():
            sweep.note_failure(directory, _typed(), str(error))
        raise


def _start(cfg: DictConfig, directory: Path, belongs_to: trackers.Sweep | None) -> float | None:
    composed = compose.plain(cfg)
    settings = config.check(composed, source=REPOSITORY / "src")
    TRACKED.append(settings.tracker)
    # Before this run is one: `latest` must not be the run itself.
    wanted = settings.init_from
    source = None if wanted is None else lookup.find(wanted, REPOSITORY, tracker=settings.tracker)
    lock = run.hold(directory, str(directory))
    try:
        started = run.create(
            directory,
            id=run.new_id() if belongs_to else START_ID,
            name=settings.name,
            config=plain.dump(composed),
            overrides=_typed(),
            sweep=belongs_to.id if belongs_to else None,
        )
        return _train(started, cfg, composed=composed, settings=settings, belongs_to=belongs_to, source=source)
    finally:
        lock.release()
        if not (directory / run.RECORD).exists():
            (directory / run.LOCK).unlink(missing_ok=True)


def _train(
    started: run.Run,
    cfg: DictConfig,
    *,
    composed: dict[str, Any],
    settings: settings_module.Settings,
    belongs_to: trackers.Sweep | None,
    source: run.Found | None,
) -> float | None:
    try:
        with run.told(started.directory):
            _record(started.directory, cfg)
            # Before torch: MLflow's start, seconds of it, happens in a process of its own beside torch's.
            tracker = trackers.open(
                settings.tracker,
                run_dir=started.directory,
                run_id=started.id,
                repository=REPOSITORY,
                sweep=belongs_to,
                upload=settings.checkpoint.upload,
                warn=log.warning,
                announce=partial(started.note_tracker, settings.tracker.kind),
            )
            with signals.held(), memory.permanent():
                from savepoint import job
            return job.train(job.Job(started, composed, settings, tracker, REPOSITORY, source))
    except UserError:
        if not started.metrics.exists():
            run.discard(started)
        raise


def _stopped(directory: Path, error: BaseException) -> KeyboardInterrupt:
    """What is left to do and to say if Ctrl-C came before training did."""
    run.remove_empty(directory)
    if isinstance(error, signals.Interrupted) or not (directory / run.RECORD).exists():
        return error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
    started = run.read(directory)
    if started.id != START_ID and not SWEEPS:
        return KeyboardInterrupt()  # somebody else's: this start was about to be refused
    started.update(status="interrupted")
    again = f"python resume.py run={started.address(REPOSITORY)}"
    return KeyboardInterrupt(f"Stopped before training began. To start over: {again}")


def _typed() -> list[str]:
    return redact_arguments(list(HydraConfig.get().overrides.task))


def _record(directory: Path, cfg: DictConfig) -> None:
    """What Hydra was told, and the config before it was resolved, for people. Nothing reads it."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    files.replace(record / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(_typed())).encode())
    files.replace(record / "config.yaml", redact(OmegaConf.to_yaml(cfg)).encode())


def _finish_sweep() -> None:
    """The table of results, best first. Not in a callback of Hydra's: those are skipped when a job has failed."""
    if not SWEEPS:
        for unstarted in (REPOSITORY / "sweeps").glob(f"*/*-{START_ID}"):
            sweep.remove_unstarted(unstarted)
        return
    belongs_to = SWEEPS[0]
    table, text = sweep.write_table(belongs_to.dir)
    print(f"\n{text}\n\nsweep {table.parent}")
    if not TRACKED:
        return  # every job was refused
    unstored = trackers.finish_sweep(
        TRACKED[0], repository=REPOSITORY, sweep=belongs_to, table=table, status=sweep.status(belongs_to.dir)
    )
    if unstored:
        print(unstored, file=sys.stderr)


def _overrides(arguments: list[str]) -> list[str]:
    """The command line without Hydra's flags and their values."""
    valued = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
    before = ["", *arguments]
    return [each for each, previous in zip(arguments, before) if not each.startswith("-") and previous not in valued]


def main() -> int:
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), use_cache=True)
    OmegaConf.register_new_resolver("start_id", lambda: START_ID, use_cache=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them its way
    signals.remember()
    try:
        sys.argv[1:] = overrides.quote_raw(sys.argv[1:], ("init_from",))
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(compose.help_text(_overrides(sys.argv[1:]), REPOSITORY / "conf"))
            return 0
        _run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return signals.say(interrupt)
    except Exception as error:
        if signals.pressed():
            return signals.say(KeyboardInterrupt())
        told = overrides.explain(error, _overrides(sys.argv[1:]), REPOSITORY / "conf")
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def _run() -> None:
    try:
        task()
    except OSError as error:
        if SWEEPS or error.errno is None:  # also an option that does not exist is an OSError to Hydra
            raise
        # Hydra's: what a run's own code raises is in REFUSED.
        raise UserError(f"{error.filename}: the run's directory cannot be made: {error.strerror}.") from error
    finally:
        _finish_sweep()
    if REFUSED:
        raise REFUSED[0]


if __name__ == "__main__":
    code = main()
    memory.leave()
    sys.exit(code)
