"""Evaluate a checkpoint of a run on its validation or test split, with the run's own config."""

import errno
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from savepoint import runs, system, trackers, training, trust
from savepoint.commands import options, places
from savepoint.config import apply_overrides
from savepoint.errors import UserError
from savepoint.runs import Evaluation

SPLITS = ("val", "test")
# Overrides that are allowed. They change the data, and what computes; all else is as the checkpoint was trained.
ALLOWED = ("data.", "trainer.device=", "trainer.threads=", "trainer.compile=")
TRACKER_SECONDS = 60.0
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
USAGE = f"usage: python -m savepoint evaluate <run>[@best] [--split {'|'.join(SPLITS)}] [--json] [data.batch_size=64 …]"


def evaluate_run(repository: Path, arguments: list[str]) -> int:
    """Evaluate the checkpoint that is named, print what it measured, and record that with the run. Returns: exit code.

    arguments: as typed after `evaluate`.
    Raises: UserError for a wrong argument, and for what cannot be built or restored.
    """
    given = options.parse(arguments, USAGE, flags=("--json",), values=("--split",))
    query, split, overrides = _parse(given)
    # The engine's notes are for people. They go to stderr, because a program may read stdout.
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    loaded, run = places.load(query, repository)
    config = apply_overrides(trust.parse_config(loaded.config), overrides, repository / "conf")
    settings = trust.check_config(config, source=repository / "src")
    recorded = loaded.provenance.get("threads")
    training.environment(settings, threads=settings.trainer.threads or recorded or torch.get_num_threads())
    with system.signals.watch() as stop:
        values = training.score(config, settings, loaded, split=split, source=repository / "src", stop=stop)
    if values is None:
        assert stop.signal is not None
        raise system.signals.Interrupted(stop.signal, "Stopped before every sample was evaluated. Nothing is recorded.")
    if not values:
        raise UserError("There is nothing to measure: the run has no data, and its task has no evaluate of its own.")
    at: Any = {key: loaded.state[key] for key in ("epoch", "step")}
    evaluation = Evaluation(checkpoint=loaded.path.name, **at, split=split, overrides=overrides, values=values)
    _print(str(loaded.provenance.get("run_id")), evaluation, as_json="--json" in given.flags)
    if run is None:
        print("Recorded nowhere: there is no run around this checkpoint.", file=sys.stderr)
        return 0
    try:
        runs.record_evaluation(run.directory, evaluation)
    except OSError as error:
        unrecorded = f"It could not be recorded in {run.directory}: {error.strerror}."
        if error.errno not in _READ_ONLY:
            raise UserError(unrecorded) from error
        print(unrecorded, file=sys.stderr)
        return 0
    _track(run, repository)
    return 0


def _parse(given: options.Options) -> tuple[str, str, list[str]]:
    """Return the query, the split and the overrides. Raises: UserError for a wrong one."""
    split = given.values.get("--split", "val")
    if split not in SPLITS:
        raise UserError(f"--split {split}: there are {' and '.join(SPLITS)}.")
    # An override has a key without slashes before its `=`; a directory may contain one.
    overrides = [each for each in given.arguments if "=" in each and not Path(each).exists()]
    queries = [each for each in given.arguments if each not in overrides]
    if len(queries) != 1:
        raise UserError(f"Which run? {USAGE}")
    for each in overrides:
        if not each.lstrip("+~").startswith((*ALLOWED, "data=")):
            raise UserError(f"{each}: only the data and the device can differ from the run's own config.")
    return queries[0], split, overrides


def _print(run_id: str, evaluation: Evaluation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": run_id, **evaluation.to_json()}, allow_nan=False))
        return
    print(trust.printable(f"run {run_id}  {evaluation.checkpoint}  {evaluation.split}"))
    width = max((len(name) for name in evaluation.values), default=0)
    for name, value in evaluation.values.items():
        print(f"  {name:<{width}}  {value:.6g}")


def _track(run: runs.Run, repository: Path) -> None:
    """Send the run's evaluations to its tracker, if it has one. A run in training sends them by itself."""
    if run.tracker_id is None:
        return
    try:
        lock = run.hold()
    except UserError:
        return
    try:
        settings = trackers.local_settings((run.record.get("tracker") or {}).get("kind"), repository / "conf")
        tracker = trackers.open(
            settings,
            run_dir=run.directory,
            run_id=run.id,
            repository=repository,
            known_run_id=run.tracker_id,
            upload=False,
            warn=lambda _: None,
        )
        tracker.start(name=run.record["name"], params={}, tags={})
        status = run.record["status"]
        unstored = tracker.close("interrupted" if status == "running" else status, TRACKER_SECONDS)
    finally:
        lock.release()
    if unstored is not None:
        print(trust.printable(unstored), file=sys.stderr)
