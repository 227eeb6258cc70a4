"""Compose a config, start a run: `python train.py optimizer=adam trainer.max_epochs=40`.

torch and MLflow are not imported until the config is known to be sound: `--help` and a typo answer at once.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, also where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from savepoint import compose, config, overrides, plain, run, sweep, trackers  # noqa: E402
from savepoint.errors import UserError  # noqa: E402
from savepoint.redaction import redact, redact_arguments  # noqa: E402

log = logging.getLogger("savepoint")
# Made before anything else: it names the directory of the run, or of the sweep.
START_ID = run.new_id()
# The sweep that this process runs, once its first job has begun, with that job's config.
SWEEPS: list[tuple[trackers.Sweep, DictConfig]] = []
# Why the only run of this process came to nothing.
REFUSED: list[Exception] = []


@hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """One run. Returns what a sweeper minimises or maximises: the best value of checkpoint.monitor."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    belongs_to = None
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        belongs_to = sweep.named(Path(HydraConfig.get().sweep.dir))
        SWEEPS.append((belongs_to, cfg))
        print(f"\njob {directory.name}: {' '.join(_typed())}")
    try:
        return _start(cfg, directory, belongs_to)
    except Exception as error:
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
    started = run.create(
        directory,
        id=run.new_id() if belongs_to else START_ID,
        name=settings.name,
        config=plain.dump(composed),
        overrides=_typed(),
        sweep=belongs_to.id if belongs_to else None,
    )
    _record(directory, cfg)
    # Before torch: MLflow's start, seconds of it, happens in a process of its own beside torch's.
    tracker = trackers.open(
        settings.tracker,
        run_dir=directory,
        run_id=started.id,
        repository=REPOSITORY,
        sweep=belongs_to,
        upload=settings.checkpoint.upload,
        warn=log.warning,
        announce=partial(started.note_tracker, settings.tracker.kind),
    )
    lock = started.hold()
    try:
        from savepoint import job

        return job.train(job.Job(started, composed, settings, tracker, REPOSITORY))
    finally:
        lock.release()


def _typed() -> list[str]:
    return redact_arguments(list(HydraConfig.get().overrides.task))


def _record(directory: Path, cfg: DictConfig) -> None:
    """What Hydra was told, and the config before it was resolved, for people. Nothing reads it."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    (record / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(_typed())))
    (record / "config.yaml").write_text(redact(OmegaConf.to_yaml(cfg)))


def _finish_sweep() -> None:
    """The table of results, best first. Not in a callback of Hydra's: those are skipped when a job has failed."""
    if not SWEEPS:
        return
    belongs_to, cfg = SWEEPS[0]
    table, text = sweep.write_table(belongs_to.dir)
    print(f"\n{text}\n\nsweep {table.parent}")
    settings = config.check(compose.plain(cfg), source=REPOSITORY / "src")
    unstored = trackers.finish_sweep(
        settings.tracker, repository=REPOSITORY, sweep=belongs_to, table=table, status=sweep.status(belongs_to.dir)
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
    sys.argv[1:] = overrides.quote_raw(sys.argv[1:], ("init_from",))
    typed = _overrides(sys.argv[1:])
    try:
        try:
            task()
        finally:
            _finish_sweep()
        if REFUSED:
            raise REFUSED[0]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'Stopped.'}", file=sys.stderr)
        return getattr(interrupt, "exit_code", 130)
    except Exception as error:
        told = overrides.explain(error, typed, REPOSITORY / "conf")
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
