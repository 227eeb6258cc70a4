"""Launch: from a command line to a run. train.py and resume.py call the functions of this package.

Importing this package imports neither torch nor MLflow, so `--help` and a typo answer at once.

Rooms, in reading order:
    script       run a script's work: exit codes, and errors in plain words
    application  a Hydra application that trains a single run, or a sweep of jobs
    sweep        begin a sweep and end it, whichever processes run its jobs
    search       let Optuna choose the values of a sweep's jobs
    finish       finish a sweep that was interrupted, and add jobs to it
    command      train.py's command line
    gpus         give each process that trains jobs of a sweep a GPU of its own
    jobs         list the jobs of a sweep, and find those that a resume leaves alone
    processes    start the processes of one run, for trainer.processes
    ranks        where several processes train one run: rank 0 tells the others what to train
    start        start a new run: its config, its directory, its tracker
    requeue      open a new run, or with resume=auto continue the earlier run of the same name
    request      resume.py's command line
    completion   complete that command line in a shell
    reopen       reopen a run: continue it, or fork it where something differs
    origins      where a fork begins: record it, find it again
    continues    the settings that may change on a resume, each with the reason
"""

from savepoint.launch.command import run_train
from savepoint.launch.ranks import Order
from savepoint.launch.reopen import Reopened, reopen
from savepoint.launch.request import Request, run_resume
from savepoint.launch.requeue import open_run
from savepoint.launch.script import leave, load_script
from savepoint.launch.start import Invocation, compose, importing_torch
from savepoint.launch.sweep import SweepStart

__all__ = [
    "Invocation",
    "Order",
    "Reopened",
    "Request",
    "SweepStart",
    "compose",
    "importing_torch",
    "leave",
    "load_script",
    "open_run",
    "reopen",
    "run_resume",
    "run_train",
]
