"""Begin a sweep and end it, whichever processes run its jobs: this one, or those of a launcher such as joblib's."""

import contextlib
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
    """Hydra calls this before a sweep's first job, in the process of train.py. conf/config.yaml names it.

    directory: that of the sweep that this process has begun.
    """

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note where the sweep lies, and take signals for jobs in other processes."""
        SweepStart.directory = Path(config.hydra.sweep.dir)
        if not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            system.signals.note(_pass_on)


def _pass_on(number: int) -> None:
    """Let the jobs that run in other processes finish their step and save."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(f"\n{name}: each job finishes its step and saves. Once more stops now.", file=sys.stderr, flush=True)
    if number == signal.SIGINT:
        return  # a terminal sends it to all of them
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


def begin(directory: Path, *, sweeper: DictConfig, typed: list[str], batch: int) -> None:
    """Record a batch of a sweep's jobs before the first one, unless it is recorded.

    sweeper: Hydra's settings of what chooses the jobs. typed: the overrides of the command line. batch: its number.
    """
    runs.redact_sweep_record(directory)
    planned = jobs.planned(sweeper, typed)
    runs.record_sweep(directory, command=trust.redact_arguments(typed), jobs=planned, batch=batch)


def end(directory: Path, repository: Path, tracker: TrackerSettings | None) -> None:
    """Print the sweep's table of results, best first, and send it to the tracker.

    Hydra has a callback for the end of a sweep, and skips it when a job has failed.
    tracker: that of the jobs; None if every job was refused.
    """
    sweep = runs.sweep_of(directory)
    table, text = runs.write_sweep_table(directory)
    print(f"\n{text}\n\nsweep {table.parent}")
    found = [result.status for result in runs.results(directory)]
    if left := len(found) - found.count("finished"):
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
