"""Reopen a run: read its config, start its tracker, find its newest sound checkpoint, apply the overrides typed now."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savepoint import runs, trackers, trust
from savepoint.config import Settings, TrackerSettings, apply_overrides
from savepoint.errors import UserError
from savepoint.launch import continues
from savepoint.launch.script import run_script

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint

log = logging.getLogger("savepoint")
USAGE = "usage: python resume.py run=<id|prefix|directory|latest> [trainer.max_epochs=40 …]"


def run_resume(resume: Callable[[str, list[str]], None], repository: Path, *, description: str) -> int:
    """Run resume.py. resume: takes the query after `run=` and the overrides. Returns: the exit code."""

    def work() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(f"{description}\n{USAGE}")
        else:
            resume(*_split(sys.argv[1:]))

    return run_script(work, overrides=lambda: _split(sys.argv[1:])[1], conf_dir=repository / "conf")


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """Split the command line into the query after `run=` and the overrides.

    The query is taken as typed. Hydra's parser would read the id 123e4567 as infinity.
    """
    queries = [argument for argument in arguments if argument.startswith("run=")]
    overrides = [argument for argument in arguments if not argument.startswith("run=")]
    if len(queries) != 1:
        raise UserError(f"Which run? {USAGE}")
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"{override}: resume.py has no such option. {USAGE}")
    return queries[0].removeprefix("run="), overrides


@dataclass(frozen=True)
class Reopened:
    """A run whose lock this process holds.

    own: the run's config.yaml. overrides: as typed, without those of the tracker, which `tracker_settings` holds.
    checkpoint: what the query says after `@`, if anything.
    """

    run: runs.Run
    checkpoint: str | None
    own: dict[str, Any]
    overrides: list[str]
    tracker: trackers.Tracker
    tracker_settings: TrackerSettings
    repository: Path

    def newest_checkpoint(self) -> "Checkpoint | None":
        """Load the newest sound checkpoint, or return None if the run has none yet. Imports torch.

        Newer checkpoints that are damaged are named on stderr and set aside.
        Raises: UserError if all are damaged, or if the query names another checkpoint than the newest sound one.
        """
        from savepoint import checkpoint

        root = self.run.checkpoints
        checkpoint.clean(root)
        newest, damaged = checkpoint.latest(root)
        if damaged and newest is None:
            # Starting over would cut the run's history to nothing, and a disk that is ill may be well again tomorrow.
            raise UserError(
                f"Run {self.run.id} has {len(damaged)} checkpoints, and none is sound. The newest: {damaged[0][1]} "
                f"All of them: python -m savepoint verify {self.run.address(self.repository)} To start over, move "
                f"{root} away first."
            )
        for path, fault in damaged:
            aside = checkpoint.set_aside(path)
            print(f"damaged, now {aside.name}: {trust.printable(fault, limit=1000)}", file=sys.stderr)
        if self.checkpoint is not None:
            kept = self.own["checkpoint"]
            monitor, mode = kept.get("monitor"), kept.get("mode", "min")
            chosen = checkpoint.select(root, self.checkpoint, monitor=monitor, mode=mode)
            if newest is None or chosen.path != newest.path:
                raise UserError(
                    f"{chosen.path.name} is not the newest checkpoint of run {self.run.id}: going on from it would be "
                    f"another run. To continue from the newest: python resume.py run={self.run.id}"
                )
        if newest is None:
            print(f"run {self.run.id} has no checkpoint: it starts over from its {runs.CONFIG}.", file=sys.stderr)
        return newest

    def config(self, newest: "Checkpoint | None") -> tuple[dict[str, Any], Settings]:
        """Return the config to continue with, checked: the checkpoint's, with the overrides applied.

        Raises: ConfigError for a config that cannot be trained; UserError if an override would make another run.
        """
        before = self.own if newest is None else trust.parse_config(newest.config)
        before["tracker"] = vars(self.tracker_settings)
        after = apply_overrides(continues.planned(before, self.own), self.overrides, self.repository / "conf")
        if changed := continues.other_run(before, after):
            raise UserError(
                f"{', '.join(changed)}: changing that would make another run of {self.run.id}, "
                f"and resume.py continues the same one. Start another with train.py, or leave it out."
            )
        return after, trust.check_config(after, source=self.repository / "src")


@contextlib.contextmanager
def reopen(query: str, overrides: list[str], repository: Path) -> Iterator[Reopened]:
    """Find the run, hold its lock and start its tracker while the body continues the run.

    query: a run as people write it, see `runs.find`. overrides: as typed. repository: holds conf/, runs/ and src/.
    Raises: UserError if there is no such run, it is in use, or an override is no override.
    """
    found = runs.find(query, repository)
    conf = repository / "conf"
    with runs.explaining_disk_errors(found.run.directory):
        lock = found.run.hold()
        try:
            own = runs.read_config(found.run.directory)
            kept = own.get("tracker")
            kind = kept.get("kind") if isinstance(kept, dict) else None
            settings = trackers.local_settings(kind, conf, [each for each in overrides if _is_tracker(each)])
            others = [override for override in overrides if not _is_tracker(override)]
            checked = trust.check_config(apply_overrides(own, others, conf), source=repository / "src")
            # Before torch is imported: the tracker starts in a process of its own, at the same time.
            tracker = trackers.open(
                settings,
                run_dir=found.run.directory,
                run_id=found.run.id,
                repository=repository,
                sweep=_sweep(found.run),
                known_run_id=found.run.tracker_id,
                upload=checked.checkpoint.upload,
                warn=log.warning,
                announce=partial(found.run.note_tracker, settings.kind),
            )
            try:
                yield Reopened(found.run, found.checkpoint, own, others, tracker, settings, repository)
            finally:
                tracker.abandon()  # does nothing to a tracker that was closed
        finally:
            lock.release()


def _sweep(run: runs.Run) -> trackers.Sweep | None:
    """Return the sweep that the run was started in, even if its directory has been moved since."""
    recorded = run.record.get("sweep")
    return replace(runs.sweep_of(run.directory.parent), id=recorded) if recorded else None


def _is_tracker(override: str) -> bool:
    return override.partition("=")[0].partition(".")[0] == "tracker"
