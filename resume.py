"""Reopen a run and go on with it: `python resume.py run=<run> [overrides]`.

<run> is a run's id or the tracker's, a unique prefix of either, a run directory, a checkpoint directory, or `latest`;
`@best`, `@last`, `@<step>` or `@<name>` after it chooses a checkpoint. The config comes from the checkpoint.

The run is continued from its newest sound checkpoint. Another checkpoint, or an override that changes what is computed,
forks it: another run begins with the full state of the checkpoint, and then the difference takes effect.

`run=<sweep>`, by the sweep's id or directory or as `latest-sweep`, finishes what is unfinished of a sweep.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, even where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint import launch  # noqa: E402


def resume(request: launch.Request | launch.Order) -> None:
    """Continue or fork a run, and train it to its planned end."""
    with launch.reopen(request, REPOSITORY) as reopened:
        with launch.importing_torch():
            from savepoint import training

        with reopened.open_run() as job, training.session(job):
            state, parts = training.prepare(job)
            with training.supervise(job, state, parts) as (saves, progress, stop):
                training.fit(state, parts, saves, job.tracker, progress, stop)
                training.score_test(job, state, parts, stop)


def main() -> int:
    """Run the command line. Returns: the exit code."""
    return launch.run_resume(resume, REPOSITORY, description=__doc__)


if __name__ == "__main__":
    launch.leave(main())
