"""Launch: from a command line to a run. train.py and resume.py call these steps in their order.

Importing this package imports neither torch nor MLflow, so `--help` and a typo answer at once.

Rooms, in reading order:
    script       run a script's work: exit codes, and errors in plain words
    application  train.py as a Hydra application: a single run, or a sweep of jobs
    start        start a run: its config, its directory, its tracker
    reopen       reopen a run: its newest sound checkpoint, and the overrides typed now
    continues    the settings that may change on a resume, each with the reason
"""

from savepoint.launch.application import run_train
from savepoint.launch.reopen import Reopened, reopen, run_resume
from savepoint.launch.script import leave
from savepoint.launch.start import Invocation, compose, find_weights, importing_torch, open_run

__all__ = [
    "Invocation",
    "Reopened",
    "compose",
    "find_weights",
    "importing_torch",
    "leave",
    "open_run",
    "reopen",
    "run_resume",
    "run_train",
]
