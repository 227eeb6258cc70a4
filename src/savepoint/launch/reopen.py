"""Reopen a run: continue it from its newest sound checkpoint, or fork it if its config or checkpoint differs."""

import contextlib
import datetime
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savepoint import runs, trackers, trust
from savepoint.config import Settings, TrackerSettings, apply_overrides, differences
from savepoint.errors import UserError
from savepoint.launch import continues, origins, processes, ranks
from savepoint.launch.request import Request
from savepoint.launch.start import Invocation, open_new

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint

log = logging.getLogger("savepoint")


@dataclass(frozen=True)
class Reopened:
    """A run that was found, and the request for it.

    choice: the text after `@` in the query, if any. own: the run's config.yaml; with `resume=auto`, the config that is
    asked for now. tracker_settings: those of this machine. settings: of the config that is asked for. requeued: whether
    train.py continues the run. shared: whether the jobs of a sweep share one tracker process. tracker: the run's, if it
    is certain to be continued; this process then holds the run's lock. alone: a checkpoint outside of any run's
    directory, which can only be forked; `run` then has the id that its provenance names.
    """

    run: runs.Run
    choice: str | None
    own: dict[str, Any]
    request: Request
    tracker_settings: TrackerSettings
    repository: Path
    settings: Settings
    requeued: bool = False
    shared: bool = False
    tracker: trackers.Tracker | None = None
    alone: Path | None = None

    @contextlib.contextmanager
    def open_run(self) -> Iterator[runs.Job]:
        """Continue the run from its newest sound checkpoint, or open a fork of it, while the body trains.

        Of several ranks, rank 0 tells the others to train it too.
        Imports torch. A config that differs in more than `continues.CONTINUES` makes a fork, and so does `@` with any
        checkpoint but the newest sound one. Damaged checkpoints that are newer are named on stderr.
        Raises: UserError if there is no sound checkpoint to begin from; ConfigError for a config that cannot train.
        """
        with self._opened() as opened, ranks.led(opened) as job:
            yield job

    @contextlib.contextmanager
    def _opened(self) -> Iterator[runs.Job]:
        if self.tracker is not None:
            yield self.continued(self.tracker)
        elif (parent := self._parent()) is None:
            with held(self) as tracker:
                yield self.continued(tracker)
        else:
            with self._forked(parent) as job:
                yield job

    def _parent(self) -> "Checkpoint | None":
        """Load the checkpoint that a fork begins from, or return None if the run is continued."""
        from savepoint import checkpoint

        if self.alone is not None:
            return checkpoint.load(self.alone)
        root = self.run.checkpoints
        if self.choice is None:
            chosen, damaged = checkpoint.latest(root)
            if chosen is None:
                raise UserError(
                    f"{', '.join(self._changed(self.own)) or 'hydra.run.dir'}: changing that forks run {self.run.id}, "
                    f"which has no sound checkpoint to begin from. Start another run: python train.py …"
                )
            for _, fault in damaged:
                print(f"damaged: {trust.printable(fault, limit=1000)}", file=sys.stderr)
            return chosen
        kept = self.own["checkpoint"]
        chosen = checkpoint.select(root, self.choice, monitor=kept.get("monitor"), mode=kept.get("mode", "min"))
        differs = self._changed(trust.parse_config(chosen.config)) or self.request.directory
        newest = checkpoint.names(root)[-1:] == [chosen.path.name] or _newest(root) == chosen.path.name
        return chosen if differs or not newest else None

    def _changed(self, before: dict[str, Any]) -> list[str]:
        """Return the keys in which the requested config differs from `before` so that the resume is a fork."""
        return continues.other_run(before, self._config(before))

    def _config(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's config with the values that the run was given last and the overrides typed now."""
        before["tracker"] = vars(self.tracker_settings)
        asked = apply_overrides(continues.planned(before, self.own), self.request.overrides, self.repository / "conf")
        processes.note(asked)
        return asked

    def continued(self, tracker: trackers.Tracker) -> runs.Job:
        """Prepare the same run from its newest sound checkpoint. Set damaged checkpoints aside."""
        from savepoint import checkpoint

        root = self.run.checkpoints
        checkpoint.clean(root)
        newest, damaged = checkpoint.latest(root, partial(ranks.load, trainer=self.settings.trainer))
        if damaged and newest is None:
            # Do not start over: that would delete the run's history, and the disk may be readable again tomorrow.
            raise UserError(
                f"Run {self.run.id} has {len(damaged)} checkpoints, and none is sound. The newest: {damaged[0][1]} "
                f"All of them: python -m savepoint verify {self.run.address(self.repository)} To start over, move "
                f"{root} away first."
            )
        for path, fault in damaged:
            aside = checkpoint.set_aside(path)
            print(f"damaged, now {aside.name}: {trust.printable(fault, limit=1000)}", file=sys.stderr)
        if newest is None:
            return self._started_over(tracker)
        before = trust.parse_config(newest.config)
        config = self._config(before)
        if changed := continues.other_run(before, config):
            raise UserError(
                f"{', '.join(changed)}: {newest.path.name} was trained with other values than those in "
                f"{self.run.directory / runs.CONFIG}, which was edited. Give that file the checkpoint's values again."
            )
        return self._job(config, tracker, newest)

    def _started_over(self, tracker: trackers.Tracker) -> runs.Job:
        """Prepare a run without a checkpoint to start over. A fork starts over from its parent's checkpoint."""
        config = self._config(self.own)
        origin = self.run.record.get("forked_from")
        print(f"run {self.run.id} has no checkpoint: it starts over from its {runs.CONFIG}.", file=sys.stderr)
        if origin is None:
            return self._job(config, tracker)
        parent = origins.find_again(self.run, origin, self.repository)
        return self._job(config, tracker, parent, self._fork(parent, origin["run"]))

    @contextlib.contextmanager
    def _forked(self, parent: "Checkpoint") -> Iterator[runs.Job]:
        """Open a new run that begins from a checkpoint of this one, with the checkpoint's config and the overrides."""
        before = trust.parse_config(parent.config)
        config = self._config({**before, "name": None})
        changed = [key for key in differences(before, config) if key.startswith("init")]
        if unused := [key for key in changed if not key.startswith("init.freeze")]:
            raise UserError(
                f"{unused[0]}: a fork begins with all weights of its parent. To start a run from chosen weights: "
                f"python train.py init_from={self.run.id}@{parent.path.name} …"
            )
        settings, run_id = self._checked(config), runs.new_id()
        started = datetime.datetime.now()  # local time, as in the names that Hydra gives
        invocation = Invocation(
            config,
            directory=self.request.directory
            or self.repository / "runs" / f"{started:%Y-%m-%d}" / f"{started:%H%M%S}-{run_id}",
            id=run_id,
            overrides=trust.redact_arguments(self.request.overrides),
            repository=self.repository,
            forked_from=origins.record(parent, self.run, self.repository, alone=self.alone is not None),
            choices=self._choices(),
        )
        with runs.explaining_disk_errors(invocation.directory):
            invocation.directory.mkdir(parents=True, exist_ok=True)
            try:
                with open_new(invocation, config, settings) as job:
                    fork = self._fork(parent, self.run.id)
                    yield replace(job, checkpoint=parent, fork=fork, same_code=self.request.same_code)
            finally:
                runs.remove_empty(invocation.directory)

    def _choices(self) -> dict[str, str]:
        """Return the option chosen in each group of conf/, for the groups that the parent's run.json names."""
        typed = dict(each.lstrip("+").partition("=")[::2] for each in self.request.overrides)
        return {group: typed.get(group, option) for group, option in (self.run.record.get("choices") or {}).items()}

    def _fork(self, parent: "Checkpoint", run_id: str) -> runs.Fork:
        before = trust.parse_config(parent.config)
        before["tracker"] = vars(self.tracker_settings)
        return runs.Fork(f"{run_id}@{parent.path.name}", before)

    def _job(
        self,
        config: dict[str, Any],
        tracker: trackers.Tracker,
        begin: "Checkpoint | None" = None,
        fork: runs.Fork | None = None,
    ) -> runs.Job:
        settings = self._checked(config)
        return runs.Job(
            self.run,
            config,
            settings,
            tracker,
            self.repository,
            begin,
            fork,
            requeued=self.requeued,
            same_code=self.request.same_code,
        )

    def _checked(self, config: dict[str, Any]) -> Settings:
        return trust.check_config(config, source=self.repository / "src")


@contextlib.contextmanager
def reopen(request: Request | ranks.Order, repository: Path) -> Iterator[Reopened | ranks.Followed]:
    """Find a run. If it is certain to be continued, hold its lock and start its tracker while the body trains it.

    repository: holds conf/, runs/ and src/.
    Raises: UserError if there is no such run, if it is in use, or if an override is malformed.
    """
    if isinstance(request, ranks.Order):
        yield ranks.Followed(request, repository)
        return
    if (begun := ranks.restarted()) is not None:  # with the overrides, which its config.yaml has by now
        request = replace(request, query=str(begun), overrides=[], directory=None)
    alone = origins.checkpoint_alone(request.query)
    found = runs.find(request.query, repository) if alone is None else runs.Found(origins.run_of(alone), None)
    conf = repository / "conf"
    own = runs.read_config(alone or found.run.directory)
    config = apply_overrides(own, request.overrides, conf)
    settings = trust.check_config(config, source=repository / "src")
    kept = own.get("tracker")
    kind = kept.get("kind") if isinstance(kept, dict) else None
    tracker = trackers.local_settings(kind, conf, request.tracker)
    reopened = Reopened(found.run, found.checkpoint, own, request, tracker, repository, settings, alone=alone)
    if not (alone or found.checkpoint or request.directory) and not continues.other_run(own, config):
        # Before torch is imported: the tracker's own process starts while this one imports torch.
        with held(reopened) as tracker_of_run:
            yield replace(reopened, tracker=tracker_of_run)
    else:
        yield reopened


@contextlib.contextmanager
def held(reopened: Reopened) -> Iterator[trackers.Tracker]:
    """Hold the run's lock and start its tracker while the body continues the run.

    Raises: UserError if another process trains the run, if it has a stop file, or if it belongs to another checkout of
    this project.
    """
    run, settings = reopened.run, reopened.tracker_settings
    _check_home(reopened)
    if run.stop_file.exists() and run.record["status"] != "finished":
        raise UserError(f"Run {run.id} was stopped by a file. To go on, delete it: {run.stop_file}")
    with runs.explaining_disk_errors(run.directory):
        lock = run.hold(force=reopened.request.force)
        try:
            tracker = trackers.open(
                settings,
                run_dir=run.directory,
                run_id=run.id,
                repository=reopened.repository,
                sweep=_sweep(run),
                shared=reopened.shared,
                known_run_id=run.tracker_id,
                upload=reopened.settings.checkpoint.upload,
                warn=log.warning,
                inform=log.info,
                announce=partial(run.note_tracker, settings.kind),
            )
            try:
                yield tracker
            finally:
                tracker.abandon()  # does nothing to a tracker that was closed
        finally:
            lock.release()


def _check_home(reopened: Reopened) -> None:
    """Refuse to continue a run of another checkout, which has the tracker's store and perhaps other code."""
    here, directory = reopened.repository.resolve(), reopened.run.directory.resolve()
    if directory.is_relative_to(here):
        return
    for home in directory.parents:
        if (home / "resume.py").is_file() and (home / "src" / "savepoint").is_dir():
            raise UserError(
                f"{reopened.request.query} is a run of another repository, {home}. Continue it there: "
                f"python resume.py run={reopened.run.id}. To begin another run here from its state, add a change "
                "(optimizer.lr=…), which forks it; from its weights: python train.py init_from=…"
            )


def _newest(root: Path) -> str | None:
    """Return the name of the newest sound checkpoint."""
    from savepoint import checkpoint

    newest, _ = checkpoint.latest(root)
    return newest.path.name if newest else None


def _sweep(run: runs.Run) -> trackers.Sweep | None:
    """Return the sweep that the run was started in, even if its directory has been moved since."""
    recorded = run.record.get("sweep")
    return replace(runs.sweep_of(run.directory.parent), id=recorded) if recorded else None
