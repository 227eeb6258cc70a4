"""train.py as a Hydra application: one run, or with `-m` a sweep of them.

Hydra makes directories before it calls anybody, prints errors its own way, and skips its callbacks after a failure.
This module works around each of these.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from savepoint import commands, runs, system, trackers, trust
from savepoint.config import help_text, quote_paths, quote_raw
from savepoint.errors import UserError
from savepoint.launch import jobs
from savepoint.launch.script import run_script
from savepoint.launch.start import Invocation

# Flags of Hydra that are followed by a value of their own.
_VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")

Train = Callable[[Invocation], float | None]


def run_train(train: Train, repository: Path) -> int:
    """Run train.py: `--help`, one run or a sweep, whatever the command line asks for.

    train: trains one run and returns the best value of checkpoint.monitor, for a sweeper to compare.
    repository: the directory that holds train.py and conf/.
    Returns: the exit code.
    """
    conf = repository / "conf"

    def work() -> None:
        sys.argv[1:] = quote_raw(sys.argv[1:], ("init_from",))
        sys.argv[1:] = quote_paths(sys.argv[1:], ("hydra.run.dir", "hydra.sweep.dir"))
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(_overrides(), conf))
        else:
            _Application(train, repository).run()

    return run_script(work, overrides=_overrides, conf_dir=conf)


def _overrides() -> list[str]:
    """Return the command line without Hydra's flags and their values."""
    arguments = sys.argv[1:]
    return [
        each for each, before in zip(arguments, ["", *arguments]) if not each.startswith("-") and before not in _VALUED
    ]


def resume_sweep(train: Train, repository: Path, sweep: Path, changes: list[str]) -> None:
    """Finish a sweep: continue the jobs that were interrupted, and start those that did not begin.

    changes: `retry=failed`, and overrides of the tracker.
    Raises: UserError for other changes, and if jobs have not finished at the end.
    """
    others = [each for each in changes if each != jobs.RETRY and not each.startswith("tracker")]
    if others:
        raise UserError(
            f"{others[0]}: a sweep is resumed with its own overrides. Beside them it takes {jobs.RETRY} and tracker=…. "
            "To change one of its jobs, resume that by its own id."
        )
    tracker = [each for each in changes if each != jobs.RETRY]
    apart = ("hydra.sweep.dir", *(each.partition("=")[0] for each in tracker))
    kept = [each for each in runs.read_sweep(sweep)["command"] if each.partition("=")[0] not in apart]
    sys.argv = ["train.py", "-m", *quote_paths([*kept, *tracker, f"hydra.sweep.dir={sweep}"], ("hydra.sweep.dir",))]
    _Application(train, repository, resumed=True, retry=jobs.RETRY in changes).run()
    for run in jobs.unheard(sweep):
        commands.sync_runs(repository, [str(run.directory), *tracker])
    if runs.sweep_status(sweep) != "finished":
        raise UserError(f"Sweep {runs.sweep_of(sweep).id} has jobs that have not finished.")


@dataclass
class _Application:
    """One process of train.py, and what is known of it so far.

    start_id: names the directory of the run, or of the sweep. invocations: one for each job that began.
    failure: why the only run of this process failed. resumed: whether the sweep was begun by an earlier process.
    retry: whether its failed jobs are to be trained again.
    """

    train: Train
    repository: Path
    start_id: str = field(default_factory=runs.new_id)
    invocations: list[Invocation] = field(default_factory=list)
    failure: BaseException | None = None
    resumed: bool = False
    retry: bool = False

    def run(self) -> None:
        """Let Hydra compose the config and call `_job` for each run. Raises: whatever ended the run or the sweep."""
        OmegaConf.register_new_resolver("repository", lambda: str(self.repository), use_cache=True, replace=True)
        OmegaConf.register_new_resolver("start_id", lambda: self.start_id, use_cache=True, replace=True)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and does not print them its own way
        main = hydra.main(version_base="1.3", config_path=str(self.repository / "conf"), config_name="config")
        try:
            main(self._job)()
        except OSError as error:
            # Only Hydra's own reach this line: `_job` keeps or reports those of a run. An option that does not exist
            # is an OSError to Hydra too, one without a number.
            if self.sweep or error.errno is None:
                raise
            message = f"{error.filename}: the run's directory cannot be made: {error.strerror}."
            raise UserError(message) from error
        finally:
            self._finish_sweep()
        if self.failure:
            raise self.failure

    @property
    def sweep(self) -> trackers.Sweep | None:
        """The sweep that this process runs; None for a single run, and before a sweep's first job."""
        return self.invocations[0].sweep if self.invocations else None

    def _job(self, config: DictConfig) -> float | None:
        """Train the run that Hydra composed. Returns: what `train` returns; None for a single run that failed."""
        invocation = self._invocation(config)
        directory = invocation.directory
        if invocation.sweep:
            print(f"\njob {directory.name}: {' '.join(invocation.overrides)}")
            if self.resumed and (settled := jobs.settled(directory, retry=self.retry)) is not None:
                print(settled)
                return runs.score(directory)
        try:
            with runs.explaining_disk_errors(directory):
                score = self.train(invocation)
            if invocation.sweep and (number := system.signals.asked()) is not None:
                raise system.signals.Interrupted(number, f"Stopped after job {directory.name}, which has finished.")
            return score
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) or system.signals.pressed():
                raise _interrupted(invocation, error) from error
            runs.remove_empty(directory)
            if not invocation.sweep:
                self.failure = error  # `run` raises it, past Hydra
                return None
            print(f"job {directory.name} failed: {error}", file=sys.stderr)
            if not (directory / runs.RECORD).exists():
                runs.note_refused_job(directory, invocation.overrides, str(error))
            raise

    def _invocation(self, config: DictConfig) -> Invocation:
        own = HydraConfig.get()
        multirun = own.mode == RunMode.MULTIRUN
        choices = {group: str(option) for group, option in own.runtime.choices.items() if "/" not in group and option}
        sweep = runs.sweep_of(Path(own.sweep.dir)) if multirun else None
        if sweep:
            words = runs.title(config.get("name"), trust.redact_arguments(_overrides()), choices)
            sweep = replace(sweep, name=words or sweep.name)
        if sweep and not self.invocations:
            runs.redact_sweep_record(sweep.dir)
            runs.record_sweep(sweep.dir, command=trust.redact_arguments(_overrides()), jobs=jobs.planned(_overrides()))
        invocation = Invocation(
            config,
            directory=Path(own.runtime.output_dir),
            id=runs.new_id() if multirun else self.start_id,
            overrides=trust.redact_arguments(list(own.overrides.task)),
            repository=self.repository,
            sweep=sweep,
            again=self.resumed,
            choices=choices,
        )
        self.invocations.append(invocation)
        return invocation

    def _finish_sweep(self) -> None:
        """Print the sweep's table of results, best first, and send it to the tracker.

        Hydra has a callback for the end of a sweep, and skips it when a job has failed.
        """
        if not self.invocations:
            for unstarted in (self.repository / "sweeps").glob(f"*/*-{self.start_id}"):
                runs.remove_unstarted_sweep(unstarted)
        if self.sweep is None:
            return
        table, text = runs.write_sweep_table(self.sweep.dir)
        print(f"\n{text}\n\nsweep {table.parent}")
        found = [result.status for result in runs.results(self.sweep.dir)]
        if left := len(found) - found.count("finished"):
            failed = " retry=failed" if left == found.count("failed") + found.count("refused") else ""
            print(
                f"{left} of {len(found)} jobs have not finished. To go on: python resume.py run={self.sweep.id}{failed}"
            )
        tracker = next((each.tracker for each in self.invocations if each.tracker), None)
        if tracker is None:
            return  # every job was refused
        status = runs.sweep_status(self.sweep.dir)
        # After Ctrl-C people wait less, and after a second one hardly at all.
        seconds = 1.0 if system.signals.pressed() else 60.0 if system.signals.asked() is None else 15.0
        unstored, page = trackers.finish_sweep(
            tracker,
            repository=self.repository,
            sweep=self.sweep,
            table=table,
            status=status,
            timeout_seconds=seconds,
        )
        for line in unstored:
            print(line, file=sys.stderr)
        if page is not None:
            print(f"to look at it: {page.words}")


def _interrupted(invocation: Invocation, error: BaseException) -> KeyboardInterrupt:
    """Record that Ctrl-C came before training began, and return the interrupt with the message for the user."""
    directory = invocation.directory
    runs.remove_empty(directory)
    if isinstance(error, system.signals.Interrupted) or not (directory / runs.RECORD).exists():
        return error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
    run = runs.read(directory)
    if run.id != invocation.id:
        return KeyboardInterrupt()  # the directory holds another run: this start was about to be refused
    run.update(status="interrupted")
    command = f"python resume.py run={run.address(invocation.repository)}"
    return KeyboardInterrupt(f"Stopped before training began. To start over: {command}")
