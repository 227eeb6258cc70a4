"""Runs: a run on the disk, and how it is found again. Importing this package does not import torch.

Rooms, in reading order:
    directory    a run's directory and its record, run.json
    disk_errors  tell an error of the disk from other errors, and put it into words
    fetch        bring a run back from the tracker alone
    lookup       find the run that a person means
    history      metrics.jsonl: every value that a run logged; system.jsonl: what the machine did meanwhile
    evaluations  evaluations.jsonl: what its checkpoints measured apart from training
    description  what a tracker shows of a run: its title, params, tags, data
    provenance   git commit, uncommitted changes, versions, hardware
    view         a run as a notebook reads it: open_run
    sweep        a sweep's directory and its table of results
    job          a run that this process trains: its config, its tracker, where it begins
"""

from savepoint.runs.description import describe, title
from savepoint.runs.directory import (
    CHECKPOINTS,
    CONFIG,
    EXAMPLE,
    FIGURES,
    LOCK,
    LOG,
    METRICS,
    RECORD,
    Run,
    create,
    derived_id,
    discard,
    hold,
    new_id,
    read,
    read_config,
    remove_empty,
)
from savepoint.runs.disk_errors import FULL, explaining_disk_errors, is_disk_error
from savepoint.runs.evaluations import EVALUATIONS, Evaluation, read_evaluations, record_evaluation
from savepoint.runs.history import History, append_usage, cut_history, cut_usage, read_history
from savepoint.runs.job import Fork, Job
from savepoint.runs.lookup import Found, all_runs, find, runs_in
from savepoint.runs.provenance import (
    code_differences,
    gather_provenance,
    in_patch,
    provenance_differences,
    uncommitted_changes,
)
from savepoint.runs.sweep import (
    DONE,
    batch_prefix,
    find_sweep,
    forget_refusal,
    is_refused,
    note_refused_job,
    read_sweep,
    record_sweep,
    redact_sweep_record,
    remove_unstarted_sweep,
    results,
    score,
    sweep_of,
    sweep_status,
    write_sweep_table,
)
from savepoint.runs.view import RunView, open_run

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "DONE",
    "EVALUATIONS",
    "EXAMPLE",
    "FIGURES",
    "FULL",
    "LOCK",
    "LOG",
    "METRICS",
    "RECORD",
    "Evaluation",
    "Fork",
    "Found",
    "History",
    "Job",
    "Run",
    "RunView",
    "all_runs",
    "append_usage",
    "batch_prefix",
    "code_differences",
    "create",
    "cut_history",
    "cut_usage",
    "derived_id",
    "describe",
    "discard",
    "explaining_disk_errors",
    "find",
    "find_sweep",
    "forget_refusal",
    "gather_provenance",
    "hold",
    "in_patch",
    "is_disk_error",
    "is_refused",
    "new_id",
    "note_refused_job",
    "open_run",
    "provenance_differences",
    "read",
    "read_config",
    "read_evaluations",
    "read_history",
    "read_sweep",
    "record_evaluation",
    "record_sweep",
    "redact_sweep_record",
    "remove_empty",
    "remove_unstarted_sweep",
    "results",
    "runs_in",
    "score",
    "sweep_of",
    "sweep_status",
    "title",
    "uncommitted_changes",
    "write_sweep_table",
]
