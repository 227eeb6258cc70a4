"""Open the run that train.py asks for: a new one, or with `resume=auto` the earlier run of the same name.

SLURM, Kubernetes or a shell loop can then repeat one unchanged command until it exits with 0.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from savepoint import runs, system
from savepoint.config import Settings, differences
from savepoint.errors import UserError
from savepoint.launch import continues, ranks
from savepoint.launch.reopen import Reopened, held
from savepoint.launch.request import Request
from savepoint.launch.start import Invocation, open_new


@contextlib.contextmanager
def open_run(invocation: Invocation, config: dict[str, Any], settings: Settings) -> Iterator[runs.Job]:
    """Open a new run while the body trains it, or with `resume=auto` continue the newest one of the same name.

    In a resumed sweep, a job that has begun is continued, too.
    config: the config that `compose` returned, checked. settings: the same values, typed.
    Raises: UserError if the earlier run had another config, or is being trained by another process.
    """
    earlier = None
    if invocation.order is not None:
        pass
    elif invocation.sweep is None and (begun := ranks.restarted()) is not None:
        earlier = runs.read(begun)
    elif invocation.resume:
        system.signals.requeue()
        earlier = _earlier(invocation, settings)
    elif invocation.again and (invocation.directory / runs.RECORD).exists():
        earlier = runs.read(invocation.directory)
    if invocation.order is not None:
        opened = ranks.followed(invocation.order, config, settings, invocation.repository)
    elif earlier is None:
        opened = open_new(invocation, config, settings)
    else:
        opened = _again(earlier, invocation, config, settings)
    with opened as opened_job, ranks.led(opened_job) as job:
        yield job


def _earlier(invocation: Invocation, settings: Settings) -> runs.Run | None:
    """Return the newest run of the same name, or None. Jobs of sweeps do not count."""
    directory = invocation.directory
    if (directory / runs.RECORD).exists():  # hydra.run.dir was given
        return runs.read(directory)
    named = [run for run in runs.all_runs(invocation.repository) if run.record["name"] == settings.name]
    return next((run for run in reversed(named) if run.record["sweep"] is None), None)


@contextlib.contextmanager
def _again(earlier: runs.Run, invocation: Invocation, config: dict[str, Any], settings: Settings) -> Iterator[runs.Job]:
    """Continue a run that an earlier process of the same command began."""
    runs.remove_empty(invocation.directory)  # Hydra has made a directory for a new run
    own = runs.read_config(earlier.directory)
    typed = [each for each in invocation.overrides if each.startswith("init_from=")]
    if typed and set(typed) <= set(earlier.record["overrides"]):
        config = config | {"init_from": own.get("init_from")}  # `latest` may name another run by now
    if others := continues.other_run(own, config):
        differing = differences(own, config)
        lines = "".join(f"\n  {key}  {differing[key][0]} → {differing[key][1]}" for key in others)
        named = "" if invocation.again else f"is named {earlier.record['name']} and "
        other = "Bring conf/ back" if invocation.again else "Give another name=…"
        raise UserError(
            f"Run {earlier.id} {named}was started with another config:{lines}\n"
            f"{other}, or fork it: python resume.py run={earlier.address(invocation.repository)} …"
        )
    request = Request(earlier.id, [], [], force=invocation.resume == "force")
    about = earlier, None, config, request, settings.tracker, invocation.repository, settings
    reopened = Reopened(*about, requeued=True, shared=invocation.again and invocation.shared)
    with held(reopened) as tracker:
        yield reopened.continued(tracker)
