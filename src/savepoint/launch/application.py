"""Train a run, or with `-m` a sweep of runs, as a Hydra application.

Hydra makes directories before it calls our code, prints errors its own way, and skips its callbacks after a failure.
This module works around each of these.
"""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from savepoint import parallel, runs, system, trackers, trust
from savepoint.config import TrackerSettings
from savepoint.errors import UserError
from savepoint.launch import gpus, jobs, search
from savepoint.launch import sweep as sweeps
from savepoint.launch.start import Invocation

# Hydra's flags that take a value, which is the next argument.
_VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")

Train = Callable[[Invocation], float | None]


def typed_overrides() -> list[str]:
    """Return the command line without Hydra's flags and their values."""
    arguments = sys.argv[1:]
    return [
        each for each, before in zip(arguments, ["", *arguments]) if not each.startswith("-") and before not in _VALUED
    ]


@dataclass
class Application:
    """One process of train.py: what it was started with, and what has happened in it so far.

    start_id: a part of the name of the run's or the sweep's directory. elsewhere: whether this object is a copy that a
    launcher sent to another process. invocations: one for each job that began in this process.
    failure: the error that ended a single run. typed: the overrides of the command line.
    resumed: whether an earlier process began the sweep. retry: whether failed jobs are trained again.
    batch: the number of this batch of jobs; each `+jobs=` adds a batch. last: whether this is the sweep's last batch.
    """

    train: Train
    repository: Path
    start_id: str = field(default_factory=runs.new_id)
    elsewhere: bool = False
    invocations: list[Invocation] = field(default_factory=list)
    failure: BaseException | None = None
    typed: list[str] = field(default_factory=typed_overrides)
    resumed: bool = False
    retry: bool = False
    batch: int = 0
    last: bool = True

    def __getstate__(self) -> dict[str, Any]:
        """Return what a launcher sends to another process."""
        return {**vars(self), "elsewhere": True}

    def run(self) -> None:
        """Let Hydra compose the config and call `_job` for each run. Raises: whatever ended the run or the sweep."""
        self._register_resolvers()
        search.register()
        sweeps.SweepStart.typed, sweeps.SweepStart.batch = self.typed, self.batch
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing them
        main = hydra.main(version_base="1.3", config_path=str(self.repository / "conf"), config_name="config")
        try:
            main(self._job)()
        except OSError as error:
            # Only an OSError of Hydra's own reaches this line: `_job` keeps or reports those of a run. For an option
            # that does not exist, Hydra raises an OSError without a number.
            if self.sweep or error.errno is None:
                raise
            message = f"{error.filename}: the run's directory cannot be made: {error.strerror}."
            raise UserError(message) from error
        except Exception as error:
            if (missing := re.search(r"Unknown plugin class : 'hydra_plugins\.(\w+)", str(error))) is not None:
                raise UserError(f"A package is missing: pip install {missing[1].replace('_', '-')}") from error
            if not _is_launchers(error):
                raise
            words = " ".join(str(error).partition("Detailed tracebacks")[0].split())
            raise UserError(f"The launcher of the jobs has failed: {words}") from error
        finally:
            self._end_sweep()
        if self.failure:
            raise self.failure
        if sweeps.SweepStart.directory and (number := system.signals.asked()) is not None:
            raise system.signals.Interrupted(number, "Stopped. What the jobs had trained is saved.")

    def _register_resolvers(self) -> None:
        """Define the resolvers that conf/ uses: `${repository:}` and `${start_id:}`."""
        OmegaConf.register_new_resolver("repository", lambda: str(self.repository), use_cache=True, replace=True)
        OmegaConf.register_new_resolver("start_id", lambda: self.start_id, use_cache=True, replace=True)

    @property
    def sweep(self) -> trackers.Sweep | None:
        """The sweep that this process runs; None for a single run, and before a sweep's first job."""
        return self.invocations[0].sweep if self.invocations else None

    def _job(self, config: DictConfig) -> float | None:
        """Train the run that Hydra composed. Returns: what `train` returns; None for a single run that failed."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            system.signals.obey(sweeps.stop_file(Path(HydraConfig.get().sweep.dir)))
        return self._job_elsewhere(config) if self.elsewhere else self._train(config)

    def _job_elsewhere(self, config: DictConfig) -> float | None:
        """Train one job of a sweep in a process that a launcher started. Print one line only, at the end.

        Returns: what `train` returns; None if the job was interrupted, or did not begin because the sweep was.
        Raises: UserError in place of any other error, which may not fit through a pipe.
        """
        directory = Path(HydraConfig.get().runtime.output_dir)
        name = directory.name
        system.signals.note()
        if system.signals.asked() is not None:
            system.signals.hand_back()
            return None
        sys.argv = ["train.py", "-m", *self.typed]  # for run.json: the launcher's own command says nothing
        self._register_resolvers()
        if self._begun(directory) and (settled := jobs.settled(directory, retry=self.retry)) is not None:
            print(f"job {name}: {settled}", flush=True)
            return runs.score(directory)
        if OmegaConf.select(config, "trainer.device") == "auto":
            gpus.claim(directory.parent, HydraConfig.get().job.num)
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
                score = self._train(config)
        except KeyboardInterrupt:
            print(f"job {name}: interrupted", flush=True)
            system.signals.hand_back()
            return None
        except Exception as error:
            raise UserError(f"job {name}: {error}") from None
        best = "" if score is None else f", best {score:.6g}"
        print(f"job {name}: finished{best}  {' '.join(trust.redact_arguments(list(HydraConfig.get().overrides.task)))}",
              flush=True)  # fmt: skip
        return score

    def _train(self, config: DictConfig) -> float | None:
        """Train the run that Hydra composed, in this process."""
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
            if invocation.sweep and getattr(error, "number", None) == system.signals.FILE:
                return runs.score(directory)  # the file stops this job alone
            if isinstance(error, KeyboardInterrupt) or system.signals.pressed():
                raise _interrupted(invocation, error) from error
            if invocation.sweep and isinstance(error, parallel.LostRankError) and error.gone:
                # No job can be trained any more, and this one has not failed by itself.
                runs.read(directory).update(status="interrupted")
                raise system.signals.Interrupted(signal.SIGTERM, str(error)) from error
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
        directory = Path(own.runtime.output_dir)
        choices = {group: str(option) for group, option in own.runtime.choices.items() if "/" not in group and option}
        sweep = runs.sweep_of(Path(own.sweep.dir)) if multirun else None
        if sweep:
            words = runs.title(config.get("name"), trust.redact_arguments(self.typed), choices)
            sweep = replace(sweep, name=words or sweep.name)
        if sweep and not self.invocations:
            sweeps.begin(sweep.dir, sweeper=own.sweeper, typed=self.typed, batch=self.batch)
        invocation = Invocation(
            config,
            directory=directory,
            id=self._job_id(directory) if multirun else self.start_id,
            overrides=trust.redact_arguments(list(own.overrides.task)),
            repository=self.repository,
            sweep=sweep,
            again=self._begun(directory),
            shared=not self.elsewhere,
            choices=choices,
        )
        self.invocations.append(invocation)
        return invocation

    def _job_id(self, directory: Path) -> str:
        """Return the id of a job's run. It is derived from start_id, so a job that is started again keeps its id."""
        return runs.derived_id(self.start_id, directory.name)

    def _begun(self, directory: Path) -> bool:
        """Whether an earlier process of the sweep may have begun the run in a job's directory."""
        if self.resumed or not (directory / runs.RECORD).exists():
            return self.resumed
        return self.elsewhere and runs.read(directory).id == self._job_id(directory)

    def _end_sweep(self) -> None:
        """Print the sweep's results and send them to the tracker. Remove a sweep in which no job began."""
        directory = sweeps.SweepStart.directory or (self.sweep.dir if self.sweep else None)
        if directory is None or not self.last:
            return
        began = any(runs.is_refused(path) or (path / runs.RECORD).exists() for path in directory.glob("*"))
        if began or self.resumed or sweeps.stop_file(directory).exists():  # stopped while all jobs were waiting
            sweeps.end(directory, self.repository, self.tracker(directory))
        else:
            runs.remove_unstarted_sweep(directory)

    def tracker(self, directory: Path) -> TrackerSettings | None:
        """Return the tracker settings of a sweep's jobs, whichever process trained them; None if no job was trained."""
        for invocation in self.invocations:
            if invocation.tracker is not None:
                return invocation.tracker
        for run in runs.runs_in(map(str, directory.iterdir())):
            kept = runs.read_config(run.directory).get("tracker")
            kind = kept.get("kind") if isinstance(kept, dict) else None
            typed = [each for each in self.typed if each.startswith("tracker.")]
            return trackers.local_settings(kind, self.repository / "conf", typed)
        return None


def _is_launchers(error: Exception) -> bool:
    """Whether an error was made or raised by a library that starts jobs in other processes."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    names = (type(error).__module__, frame.f_globals.get("__name__", ""))
    return any(name.partition(".")[0] in ("joblib", "submitit", "ray") for name in names)


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
