"""Find the run to reproduce and what of it can be compared, and make the same run before its first checkpoint."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from savepoint import checkpoint, runs, trust
from savepoint.checkpoint import Checkpoint
from savepoint.commands import places
from savepoint.errors import CheckpointError, UserError

EVERY = 1_000_000  # checkpoints kept: all of them
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Original:
    """A run to train again.

    chosen: the newest checkpoint to compare; its config and code are used. run: None for checkpoints without a run.
    names: the checkpoints to compare, oldest first. every_n_steps: a cadence that saves each of those within an epoch;
    None if there are none. patch: the uncommitted changes; None if there were none.
    """

    root: Path
    run: runs.Run | None
    chosen: Checkpoint
    names: list[str]
    every_n_steps: int | None
    patch: bytes | None

    @property
    def commit(self) -> str:
        """The recorded commit. Raises: UserError if there is none."""
        commit = self._git.get("commit")
        if commit is None:
            raise UserError(f"{self.chosen.path.name} records no git commit, so its code is not known.")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise UserError(f"{self.chosen.path.name} records the git commit {commit!r}, which is none.")
        return commit

    @property
    def changed(self) -> bool:
        """Whether the run was trained with uncommitted changes."""
        return self.patch is not None or bool(self._git.get("dirty"))

    @property
    def _git(self) -> dict[str, Any]:
        found = self.chosen.provenance.get("git")
        return found if isinstance(found, dict) else {}

    def gaps(self) -> list[str]:
        """List the parts of the code that the checkpoint lacks."""
        found = []
        if self.changed and self.patch is None:
            found.append("some of its uncommitted files are no source, and not in the checkpoint")
        if self.patch is not None and b"[redacted]" in self.patch:
            found.append("a secret in its uncommitted changes is redacted, so what reads it gets another value")
        return found

    def receipt(self, newest: str | None) -> dict[str, str]:
        """Return the first digits of what identifies the run. newest: the newest checkpoint that was compared."""
        weights = _weights_digest(self.root / newest) if newest else "none"
        return {
            "commit": self.commit[:12] + "+" * self.changed,
            "config": hashlib.sha256(self.chosen.config.encode()).hexdigest()[:12],
            "data": data_digests(self.chosen)[0],
            "weights": weights[:12],
        }


def find(query: str, repository: Path, *, epochs: int | None, trust_code: bool, say: Callable[[str], None]) -> Original:
    """Find the run and the checkpoints to compare. A damaged checkpoint is left out, and a line says so.

    epochs: how many of its epochs to train; None for all. trust_code: whether a run from elsewhere may be trained.
    Raises: UserError if no checkpoint is sound, or the run may not be trained here.
    """
    place = places.find(query, repository)
    homes = [(repository / name).resolve() for name in ("runs", "sweeps")]
    if not trust_code and not any(place.root.resolve().is_relative_to(home) for home in homes):
        raise UserError(
            f"{query} lies outside of {repository / 'runs'}, and reproducing it runs the code in its "
            f"{checkpoint.PATCH}. Read that file first; then add --trust-code."
        )
    chosen = places.load_newest(place, query)
    end = checkpoint.position(chosen.path.name)
    names, within = [], []
    for name in checkpoint.names(place.root) if place.run else place.names:
        step, epoch = checkpoint.position(name)
        if (step, epoch) > end or (epochs is not None and epoch > epochs):
            continue
        try:
            inside = checkpoint.load(place.root / name).state.get("batch") != 0
        except CheckpointError as error:
            say(trust.printable(f"damaged, and not compared: {error}", limit=1000))
            continue
        if not inside or epoch != epochs:
            names.append(name)
            within += [step] if inside else []
    path = chosen.path / checkpoint.PATCH
    patch = path.read_bytes() if path.exists() else None
    return Original(place.root, place.run, chosen, names, math.gcd(*within) or None, patch)


def start_over(original: Original, directory: Path, repository: Path) -> runs.Run:
    """Make a run without a checkpoint. The resume.py of every version starts such a run over, from its config.yaml.

    Raises: UserError for a fork whose parent's checkpoint cannot be loaded.
    """
    provenance = original.chosen.provenance
    config = trust.parse_config(original.chosen.config)
    config["tracker"] = {"kind": "none"}
    # When a run saves changes nothing that it computes. An older version may lack one of these settings.
    saved = {"every_n_epochs": 1, "every_n_steps": original.every_n_steps, "every_n_minutes": None}
    changes = {
        "checkpoint": saved | {"keep_last": EVERY, "upload": False},
        "trainer": {"test": False, "threads": provenance.get("threads"), "processes": provenance.get("ranks")},
    }
    for group, values in changes.items():
        known = config.get(group)
        if isinstance(known, dict):
            known |= {key: value for key, value in values.items() if key in known}
    if (origin := provenance.get("forked_from")) is not None:
        _check_parent(origin, repository)
    text = trust.dump_config(config)
    run = runs.create(directory, id=runs.new_id(), name=None, config=text, overrides=[], forked_from=origin)
    run.update(weights=provenance.get("weights") or [])
    return run


def _check_parent(origin: Any, repository: Path) -> None:
    try:
        parent = Path(origin.get("directory", ""))
        if not (parent / checkpoint.MANIFEST).exists():  # not a checkpoint alone
            parent = (
                runs.find(origin.get("directory", origin["run"]), repository).run.checkpoints / origin["checkpoint"]
            )
        checkpoint.load(parent)
    except (UserError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"The run is a fork, and the checkpoint that it began from cannot be loaded: {error}"
        ) from error


def _weights_digest(path: Path) -> str:
    """Return the digest of the file of weights; of the digests of all, where several ranks have written parts."""
    stated = checkpoint.digests(path)
    found = [stated[name] for name in checkpoint.tensor_files(stated)[checkpoint.MODEL]]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def data_digests(one: Checkpoint) -> list[str]:
    """Return the first digits of each split's digest; `none` if nothing is recorded."""
    data = one.provenance.get("data")
    splits = data.values() if isinstance(data, dict) else []
    digests = [each.get("sha256") for each in splits if isinstance(each, dict)]
    return [str(each)[:12] for each in digests if each] or ["none"]
