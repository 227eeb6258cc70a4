"""Reopen a run, continue it: `python resume.py run=<run> [overrides]`.

<run> is a run's id or the tracker's, a unique prefix of either, a run directory, a checkpoint directory, or `latest`.
The config comes from the newest sound checkpoint; nothing is typed again.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, even where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint import launch  # noqa: E402


def resume(query: str, overrides: list[str]) -> None:
    """Continue a run from its newest sound checkpoint to its planned end.

    query: what was typed after `run=`. overrides: everything else that was typed.
    """
    with launch.reopen(query, overrides, REPOSITORY) as reopened:
        with launch.importing_torch():
            from savepoint import training

        newest = reopened.newest_checkpoint()
        config, settings = reopened.config(newest)

        job = training.Job(reopened.run, config, settings, reopened.tracker, REPOSITORY, checkpoint=newest)
        with training.session(job):
            state, parts = training.prepare(job)
            with training.supervise(job, state, parts) as (saves, progress, stop):
                training.fit(state, parts, saves, reopened.tracker, progress, stop)
                training.score_test(job, state, parts, stop)


def main() -> int:
    """Run the command line. Returns: the exit code."""
    return launch.run_resume(resume, REPOSITORY, description=__doc__)


if __name__ == "__main__":
    launch.leave(main())
