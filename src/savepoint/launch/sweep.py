"""Begin a sweep and end it, whichever processes run its jobs: this one, or those of a launcher such as joblib's."""

import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from savepoint import runs, system, trackers, trust
from savepoint.config import TrackerSettings
from savepoint.launch import jobs


class SweepStart(Callback):
    """A callback that Hydra calls before a sweep's first job, in the process of train.py. conf/config.yaml names it.

    directory: the directory of the sweep that this process has begun. typed: the overrides of the command line.
    batch: the number of the batch of jobs that the overrides stand for.
    """

    directory: ClassVar[Path | None] = None
    typed: ClassVar[list[str]] = []
    batch: ClassVar[int] = 0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the sweep's directory. If other processes train its jobs, record the jobs, and let signals stop them."""
        SweepStart.directory = directory = Path(config.hydra.sweep.dir)
        if not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            system.signals.note(_stop_jobs)
            # The processes must import this code, even if another version of it is installed in the environment.
            source = str(Path(__file__).resolve().parents[2])
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
            directory.mkdir(parents=True, exist_ok=True)
            begin(directory, sweeper=config.hydra.sweeper, typed=self.typed, batch=self.batch)


def stop_file(directory: Path) -> Path:
    """Return the path of the file that asks all jobs of a sweep to stop, whichever machine trains them."""
    return directory / system.signals.STOP_FILE


def _stop_jobs(number: int) -> None:
    assert SweepStart.directory is not None
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(f"\n{name}: each job finishes its step and saves. Once more stops now.", file=sys.stderr, flush=True)
    stop_file(SweepStart.directory).touch()


def begin(directory: Path, *, sweeper: DictConfig, typed: list[str], batch: int) -> None:
    """Record a batch of a sweep's jobs before the first of them begins, unless the batch is recorded already.

    sweeper: the settings of Hydra's sweeper, which chooses the jobs. typed: the overrides of the command line.
    batch: the number of the batch.
    """
    runs.redact_sweep_record(directory)
    planned = jobs.planned(sweeper, typed)
    runs.record_sweep(directory, command=trust.redact_arguments(typed), jobs=planned, batch=batch)


def end(directory: Path, repository: Path, tracker: TrackerSettings | None) -> None:
    """Print the sweep's table of results, best first, and send it to the tracker.

    This is no callback of Hydra's, because Hydra skips its callback for the end of a sweep when a job has failed.
    tracker: the tracker settings of the jobs; None if every job was refused.
    """
    sweep = runs.sweep_of(directory)
    table, text = runs.write_sweep_table(directory)
    print(f"\n{text}\n\nsweep {table.parent}")
    found = [result.status for result in runs.results(directory)]
    if left := sum(status not in runs.DONE for status in found):
        failed = " retry=failed" if left == found.count("failed") + found.count("refused") else ""
        print(f"{left} of {len(found)} jobs have not finished. To go on: python resume.py run={sweep.id}{failed}")
    if tracker is None:
        return
    # After Ctrl-C people wait less, and after a second one hardly at all.
    seconds = 1.0 if system.signals.pressed() else 60.0 if system.signals.asked() is None else 15.0
    unstored, page = trackers.finish_sweep(
        tracker,
        repository=repository,
        sweep=sweep,
        table=table,
        status=runs.sweep_status(directory),
        timeout_seconds=seconds,
    )
    for line in unstored:
        print(line, file=sys.stderr)
    if page is not None:
        print(f"to look at it: {page.words}")
