"""Train a run: `python train.py optimizer=adam trainer.max_epochs=40`. With `-m`, a sweep of runs.

The steps of a run, in their order: compose the config, check it, open the run, build, fit.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, even where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint import launch, trust  # noqa: E402


def train(invocation: launch.Invocation) -> float | None:
    """Train one run: the only one, or one job of a sweep.

    Returns: the best value of checkpoint.monitor, for a sweeper to compare; None if none was measured.
    """
    config = launch.compose(invocation)
    settings = trust.check_config(config, source=REPOSITORY / "src")

    with launch.open_run(invocation, config, settings) as job:
        # Seconds, so only for a config that is known to be sound: `--help` and a typo answer at once.
        with launch.importing_torch():
            from savepoint import training

        with training.session(job):
            state, parts = training.prepare(job)
            with training.supervise(job, state, parts) as (saves, progress, stop):
                training.fit(state, parts, saves, job.tracker, progress, stop)
                training.score_test(job, state, parts, stop)

    return state.best["value"] if state.best else None


def main() -> int:
    """Run the command line. Returns: the exit code."""
    return launch.run_train(train, REPOSITORY)


if __name__ == "__main__":
    launch.leave(main())
