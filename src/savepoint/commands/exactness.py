"""Prove on a run's own config that a resume gives the same bits: `python -m savepoint verify RUN --exact`."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from savepoint import exact, runs, trust
from savepoint.commands import places
from savepoint.config import apply_overrides


def verify_exact(
    repository: Path, query: str, overrides: Sequence[str] = (), *, say: Callable[[str], None] | None = None
) -> int:
    """Train three short runs with the config of a run or a checkpoint, and say what differs.

    query: names the run or the checkpoint. overrides: of its config, such as `trainer.processes=2`.
    say: takes each line as soon as it is known; prints it if left out.
    Returns: the exit code; 0 if a resume gives the same bits.
    """
    config = _config(repository, query, overrides)
    return exact.prove(config, repository, say=say or functools.partial(print, flush=True))


def _config(repository: Path, query: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the checked config of a run, of its checkpoint after `@`, or of the newest checkpoint without a run.

    It is not tracked, and keeps both checkpoints of a short run.
    """
    config = apply_overrides(runs.read_config(_directory(repository, query)), [*overrides], repository / "conf")
    trust.check_config(config, source=repository / "src")
    config |= {"tracker": {"kind": "none"}, "init_from": None}
    config["checkpoint"] = config.get("checkpoint", {}) | {"keep_last": 9, "upload": False}
    trust.check_config(config, source=repository / "src")
    return config


def _directory(repository: Path, query: str) -> Path:
    """Return the run directory or the checkpoint directory whose config.yaml to read."""
    path = Path(query)
    without_run = path.is_dir() and not (path / runs.RECORD).exists()
    if not without_run and runs.find(query, repository).checkpoint is None:
        return runs.find(query, repository).run.directory
    place = places.find(query, repository)
    return place.run.directory if without_run and place.run else place.root / place.names[-1]
