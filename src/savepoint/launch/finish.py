"""Finish a sweep that was interrupted, and add jobs to it."""

import sys
from pathlib import Path

from savepoint import commands, runs
from savepoint.config import explain, quote_paths
from savepoint.errors import UserError
from savepoint.launch import jobs
from savepoint.launch import sweep as sweeps
from savepoint.launch.application import Application, Train


def resume_sweep(train: Train, repository: Path, sweep: Path, changes: list[str]) -> None:
    """Finish a sweep: continue the jobs that were interrupted, start those that did not begin, and add more.

    changes: `retry=failed`, `+jobs=<overrides>` for more jobs, and overrides of the tracker.
    Raises: UserError for other changes, and if jobs have not finished at the end.
    """
    tracker = [each for each in changes if each.startswith("tracker")]
    more = [each for each in changes if each.startswith(jobs.MORE)]
    if others := [each for each in changes if each not in (*tracker, *more, jobs.RETRY)]:
        raise UserError(
            f"{others[0]}: a sweep is resumed with its own overrides. Beside them it takes {jobs.RETRY}, "
            f"{jobs.MORE}'key=value,…' and tracker=…. To change one of its jobs, resume that job by its id."
        )
    record = runs.read_sweep(sweep)
    sweeps.stop_file(sweep).unlink(missing_ok=True)
    commands_ = [record["command"], *(each["command"] for each in record.get("added", []))]
    commands_ += [jobs.changed(record["command"], each.removeprefix(jobs.MORE)) for each in more]
    failure: Exception | None = None
    for batch, command in enumerate(commands_):
        kept = [*jobs.changed(command, tracker), f"hydra.sweep.dir={sweep}"]
        if prefix := runs.batch_prefix(batch):
            kept.append(f"hydra.sweep.subdir={prefix}${{hydra.job.num}}")
        sys.argv = ["train.py", "-m", *quote_paths(kept, ("hydra.sweep.dir",))]
        one = Application(train, repository, resumed=True, retry=jobs.RETRY in changes, batch=batch)
        one.last = batch == len(commands_) - 1
        try:
            one.run()
        except KeyboardInterrupt:
            if not one.last:
                sweeps.end(sweep, repository, one.tracker(sweep))
            raise
        except Exception as error:  # a job failed, or Hydra refuses the overrides: train the other batches all the same
            words = explain(error, one.typed, repository / "conf")
            failure = error if words is None else UserError(words)
    if failure is not None:
        raise failure
    for run in jobs.unheard(sweep):
        commands.sync_runs(repository, [str(run.directory), *tracker])
    if runs.sweep_status(sweep) != "finished":
        raise UserError(f"Sweep {runs.sweep_of(sweep).id} has jobs that have not finished.")
