"""List the jobs of a sweep before they begin, and find those that a resume leaves alone."""

import contextlib
import shlex
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from savepoint import runs, system, trust
from savepoint.errors import UserError

RETRY = "retry=failed"
MORE = "+jobs="


def planned(sweeper: DictConfig, typed: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, without secrets.

    sweeper: the settings of Hydra's sweeper, which chooses the jobs. typed: the overrides of the command line.
    Returns: one list of overrides for each job. The lists are empty if the sweeper chooses the values later, and the
    result is [] if even the number of jobs is unknown.
    """
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return [[] for _ in range(sweeper.get("n_trials") or 0)]
    kept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    kept += [each for each in typed if not each.lstrip("+~").startswith(("hydra.", "hydra/"))]
    (found,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(kept), None)
    return [trust.redact_arguments(job) for job in found]


def changed(command: list[str], changes: str | list[str]) -> list[str]:
    """Return a sweep's overrides with `changes` in place of those with the same keys.

    changes: a list of overrides, or text that is split into overrides as a shell would split it.
    Raises: UserError if a part of it is not an override.

    >>> changed(["seed=1,2", "model=cnn"], "seed=3 optimizer.lr=0.1")
    ['model=cnn', 'seed=3', 'optimizer.lr=0.1']
    """
    try:
        new = shlex.split(changes) if isinstance(changes, str) else changes
    except ValueError as error:
        raise UserError(f"{MORE}{changes}: {error}.") from None
    if wrong := [each for each in new if "=" not in each]:
        raise UserError(f"{MORE}{changes}: {wrong[0]} is no override. Write key=value,… with blanks in between.")
    keys = {each.partition("=")[0].lstrip("+") for each in new}
    return [*(each for each in command if each.partition("=")[0].lstrip("+") not in keys), *new]


def settled(job: Path, *, retry: bool) -> str | None:
    """Return the reason why a resumed sweep does not train a job, or None if it does.

    retry: whether jobs that failed or were refused are tried again.
    """
    if runs.is_refused(job):
        if not retry:
            return f"refused before; {RETRY} tries it again"
        runs.forget_refusal(job)
    elif (job / runs.RECORD).exists():
        status = runs.read(job).current_status()
        if status == "finished":
            return "finished before"
        if status == "failed" and not retry:
            return f"failed before; {RETRY} goes on with it"
        if _locked(job):
            return "being trained by another process"
        if (stop := runs.read(job).stop_file).exists():
            return f"stopped by a file; to go on with it, delete {stop}"
    return None


def _locked(job: Path) -> bool:
    with contextlib.suppress(OSError):  # a file system without locks
        return system.files.is_locked(job / runs.LOCK)
    return False


def unheard(sweep: Path) -> list[runs.Run]:
    """Return the finished jobs of a tracked sweep that have no id in the tracker.

    Such a job ended just before the sweep was killed, so no process was left to note the id. Points of the job may be
    missing in the tracker.
    """
    finished = [run for run in runs.runs_in(map(str, sweep.iterdir())) if run.record["status"] == "finished"]
    return [run for run in finished if run.tracker_id is None and _is_tracked(run)]


def _is_tracked(run: runs.Run) -> bool:
    kept = runs.read_config(run.directory).get("tracker")
    return isinstance(kept, dict) and kept.get("kind") not in (None, "none")
