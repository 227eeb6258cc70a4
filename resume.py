"""Reopen a run, continue it: `python resume.py run=<run> [overrides]`.

<run> is a run's id or the tracker's, a unique prefix of either, a run directory, a checkpoint directory, or `latest`.
The config comes from the newest sound checkpoint; nothing is typed again.
"""

import copy
import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parent
# This checkout's own code, also where the environment has another one installed.
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint import compose, config, lookup, memory, overrides, plain, run, signals, sweep, trackers  # noqa: E402
from savepoint import settings as settings_module  # noqa: E402
from savepoint.errors import ConfigError, UserError  # noqa: E402

if TYPE_CHECKING:
    from savepoint.checkpoint import Checkpoint

log = logging.getLogger("savepoint")
CONF = REPOSITORY / "conf"
USAGE = "usage: python resume.py run=<id|prefix|directory|latest> [trainer.max_epochs=40 …]"
# Differences with which a run goes on as the same one. The threads, the device and compilation may change a bit, which
# is said; any difference that is not here makes another run.
CONTINUES = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.patience",
    "trainer.log_every_n_steps",
    "trainer.detect_anomaly",
    "trainer.profile",
    "trainer.threads",
    "trainer.device",
    "trainer.compile",
    "checkpoint",
    "tracker",
    "data.num_workers",
    "data.prefetch",
    "data.persistent_workers",
    "data.pin_memory",
    "name",
)


def resume(arguments: list[str]) -> None:
    wanted, changes = _take_run(arguments)
    found = lookup.find(wanted, REPOSITORY)
    with run.told(found.run.directory):
        lock = found.run.hold()
        try:
            _resume(found, changes)
        finally:
            lock.release()


def _resume(found: run.Found, changes: list[str]) -> None:
    own = _read_config(found.run)
    tracker_settings = _tracker_settings(own, changes)
    changes = [change for change in changes if not _of_tracker(change)]
    upload = config.check(overrides.apply(own, changes, CONF), source=REPOSITORY / "src").checkpoint.upload
    # Before torch: the tracker's start happens in a process of its own, beside torch's.
    tracker = trackers.open(
        tracker_settings,
        run_dir=found.run.directory,
        run_id=found.run.id,
        repository=REPOSITORY,
        sweep=_sweep(found.run),
        known_run_id=found.run.tracker_id,
        upload=upload,
        warn=log.warning,
        announce=partial(found.run.note_tracker, tracker_settings.kind),
    )
    try:
        with signals.held(), memory.permanent():
            from savepoint import job
        newest = _newest(found, own)
        before = own if newest is None else plain.parse(newest.config)
        before["tracker"] = vars(tracker_settings)
        after = overrides.apply(_as_planned(before, own), changes, CONF)
        _refuse_other_run(before, after, found.run)
        settings = config.check(after, source=REPOSITORY / "src")
    except BaseException:
        tracker.abandon()
        raise
    job.train(job.Job(found.run, after, settings, tracker, REPOSITORY), resumed=newest)


def _as_planned(trained: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config, to the end that the run was last given: an extension counts before it is first saved."""
    planned = copy.deepcopy(trained)
    for key in CONTINUES:
        group, _, name = key.partition(".")
        if name and all(isinstance(one.get(group), dict) for one in (own, planned)) and name in own[group]:
            planned[group][name] = own[group][name]
    return planned


def _take_run(arguments: list[str]) -> tuple[str, list[str]]:
    """`run=` is taken as it was typed: Hydra's parser would read the id 123e4567 as infinity."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{__doc__}\n{USAGE}")
        sys.exit(0)
    named = [argument for argument in arguments if argument.startswith("run=")]
    changes = [argument for argument in arguments if not argument.startswith("run=")]
    if len(named) != 1:
        raise UserError(f"Which run? {USAGE}")
    for change in changes:
        if change.startswith("-"):
            raise UserError(f"{change}: resume.py has no such option. {USAGE}")
    return named[0].removeprefix("run="), changes


def _read_config(of: run.Run) -> dict[str, Any]:
    try:
        return plain.parse((of.directory / run.CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{of.directory / run.CONFIG} cannot be read: {error.strerror}.") from error


def _sweep(of: run.Run) -> trackers.Sweep | None:
    """The sweep that the run was started in, also where its directory has been moved since."""
    recorded = of.record.get("sweep")
    return replace(sweep.named(of.directory.parent), id=recorded) if recorded else None


def _of_tracker(change: str) -> bool:
    return change.partition("=")[0].partition(".")[0] == "tracker"


def _tracker_settings(own: dict[str, Any], changes: list[str]) -> settings_module.Tracker:
    """Where data goes comes from the local conf and the command line. The run's config only says which kind it had."""
    kind = own["tracker"].get("kind") if isinstance(own.get("tracker"), dict) else None
    choice = [f"tracker={kind}"] if isinstance(kind, str) and (CONF / "tracker" / f"{kind}.yaml").is_file() else []
    composed = compose.compose([*choice, *(each for each in changes if _of_tracker(each))], CONF)
    settings, faults = settings_module.read(composed)
    if settings is None:
        raise ConfigError("\n".join(faults))
    return settings.tracker


def _newest(found: run.Found, own: dict[str, Any]) -> "Checkpoint | None":
    """The newest sound checkpoint. Newer ones that are damaged are named, and set aside."""
    from savepoint import checkpoint

    newest, damaged = checkpoint.latest(found.run.checkpoints)
    if damaged and newest is None:
        # Starting over would cut the run's history to nothing, and a disk that is ill may be well again tomorrow.
        raise UserError(
            f"Run {found.run.id} has {len(damaged)} checkpoints, and none is sound. Of the newest: {damaged[0][1]} Of "
            f"all: python -m savepoint verify {found.run.address(REPOSITORY)} To start over: move "
            f"{found.run.checkpoints} away first."
        )
    for path, what in damaged:
        aside = checkpoint.set_aside(path)
        print(f"damaged, now {aside.name}: {plain.printable(what, limit=1000)}", file=sys.stderr)
    if found.checkpoint is not None:
        _check_choice(found, newest, own)
    if newest is None:
        print(f"run {found.run.id} has no checkpoint: it starts over from its {run.CONFIG}.", file=sys.stderr)
    return newest


def _check_choice(found: run.Found, newest: "Checkpoint | None", own: dict[str, Any]) -> None:
    from savepoint import checkpoint

    assert found.checkpoint is not None
    kept = own["checkpoint"]
    chosen = checkpoint.select(
        found.run.checkpoints, found.checkpoint, monitor=kept.get("monitor"), mode=kept.get("mode", "min")
    )
    if newest is None or chosen.path != newest.path:
        raise UserError(
            f"{chosen.path.name} is not the newest checkpoint of run {found.run.id}: going on from it would be another "
            f"run. To continue from the newest: python resume.py run={found.run.id}"
        )


def _refuse_other_run(before: dict[str, Any], after: dict[str, Any], of: run.Run) -> None:
    """What decides is the difference between the configs, not the presence of an override."""
    changed = sorted(key for key in _changed(before, after, "") if not _continues(key))
    if changed:
        raise UserError(
            f"{', '.join(changed)}: changing that would make another run of {of.id}, "
            f"and resume.py continues the same one. Start another with train.py, or leave it out."
        )


def _changed(before: Any, after: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return [
            found for key in keys for found in _changed(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if type(before) is type(after) and before == after else [path]


def _continues(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in CONTINUES)


def main() -> int:
    signals.remember()
    try:
        resume(sys.argv[1:])
    except UserError as error:
        print(f"error: {plain.printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return signals.say(interrupt)
    except Exception as error:
        if signals.pressed():
            return signals.say(KeyboardInterrupt())
        told = overrides.explain(error, [each for each in sys.argv[1:] if not each.startswith("run=")], CONF)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    memory.leave()
    sys.exit(code)
