"""Training: the heart. One loop, the state that it changes, and what both are built from.

Rooms, in reading order:
    loop          the training loop: fit
    step          one optimizer update
    evaluation    when an evaluation is due; one evaluation
    figures       pictures and texts that a task draws of its model
    logbook       log what a run measures
    state         TrainState, which is saved, and Parts, which are rebuilt from the config
    own_update    updates that a fork's task writes out itself, with `step.minimize`
    optimization  an optimizer with its schedule and its scaler: what is saved of them
    optional      restore what only some runs have: registered objects, a stream, averaged weights
    ranks         the entries of a state in which the ranks of a run differ
    team          the other ranks of the run: gradients, sums of metrics, requests to stop
    sharding      cut a model among the ranks with FSDP2
    task          what a batch means: the interface of a fork's own tasks
    build         from a checked config to TrainState and Parts
    datasets      build a split of the data and its batches
    averaging     an exponential average of the weights
    rehearsal     check on few samples that model, data and task fit each other
    example       one call of the model, kept with the run
    patterns      divide a model's parameters among optimizers
    optimizers    build optimizers
    optimizer_state  restore an optimizer to the last bit
    schedules     build a learning-rate schedule and plan its length
    combinations  combinations of options that torch refuses or gets wrong
    fork          begin from a checkpoint of a run whose config differs
    fork_optimizers  the optimizers of a fork: what goes on, and with which rates
    scoring       evaluate a checkpoint apart from training: the test split
    preparation   build a run and restore its checkpoint
    supervision   around the loop: train.log, signals, failures, how the run ended
    parts         write a checkpoint in several ranks, each its own part
    saves         when the loop saves: what goes into a checkpoint
    report        what is logged at the start, the end and the failure of a run
    progress      the progress bar, the row of each evaluation and train.log
"""

import os

# OpenMP's threads spin while they wait for each other. If another process wants the same cores, as the tracker's does,
# a spinning thread keeps off the very thread that it waits for: digits trained 20 times slower. torch reads this
# when it loads, so it is set before the first import of torch below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from savepoint.training.build import assemble
from savepoint.training.loop import fit
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.own_update import Step
from savepoint.training.preparation import environment, prepare
from savepoint.training.saves import Saves
from savepoint.training.scoring import example_call, score, score_test
from savepoint.training.sharding import class_of
from savepoint.training.state import Parts, TrainState, capture, restore
from savepoint.training.supervision import session, supervise
from savepoint.training.task import Outcome, Task

__all__ = [
    "NoSchedule",
    "Optimization",
    "Outcome",
    "Parts",
    "Saves",
    "Step",
    "Task",
    "TrainState",
    "assemble",
    "capture",
    "class_of",
    "environment",
    "example_call",
    "fit",
    "prepare",
    "restore",
    "score",
    "score_test",
    "session",
    "supervise",
]
