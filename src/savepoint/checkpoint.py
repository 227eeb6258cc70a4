"""One checkpoint on the disk: `save`, `load`, `verify`. A root of many: `names`, `latest`, `best`, `prune`.

A checkpoint is a directory that appears whole or not at all (docs/checkpoint-format.md says what is in it). It is never
rewritten. This module sees tensors and trees, never a model.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from savepoint import files, layout, memory, strict, tensorfile, tree
from savepoint.errors import CheckpointError
from savepoint.layout import CONFIG, FORMAT, MANIFEST, MODEL, PROVENANCE, REQUIRED, STATE, TRAINING, NewerFormatError

_PRUNED = ".tmp-pruned-"
_NAME = re.compile(r"epoch_([0-9]{4,9})_step_([0-9]{8,15})")


@dataclass(frozen=True)
class Checkpoint:
    """What `load` read and verified."""

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]
    config: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is not on the disk yet. values: of state.json. documents: name → text."""

    name: str
    model: tensorfile.Plan
    training: tensorfile.Plan
    values: Any
    documents: dict[str, str]


def name_of(*, epoch: int, step: int) -> str:
    """Epochs and optimizer updates completed, so that names sort in training order."""
    return f"epoch_{epoch:04d}_step_{step:08d}"


def save(
    root: Path,
    *,
    model: Mapping[str, Tensor],
    state: Mapping[str, Any],
    documents: Mapping[str, str],
    metadata: Mapping[str, str],
) -> Path:
    """Write a checkpoint under `root` and return its path once it is durable: see `draft` and `publish`."""
    return publish(root, draft(model=model, state=state, documents=documents, metadata=metadata))


def draft(
    *, model: Mapping[str, Tensor], state: Mapping[str, Any], documents: Mapping[str, str], metadata: Mapping[str, str]
) -> Draft:
    """All that a checkpoint will hold. Tensors are referred to, everything else is copied.

    model: what `model.safetensors` holds. state: every other value and tensor, as one tree with `epoch` and `step`.
    documents: the text files (config.yaml, provenance.json, changes.patch). metadata: for the header of
    model.safetensors, so that the file alone is traceable.
    Raises: TreeError for state that cannot be saved exactly.
    """
    assert REQUIRED - {MODEL, TRAINING, STATE} <= set(documents), "a checkpoint always says where it comes from"
    version = {"savepoint.format": str(FORMAT)}
    with memory.growing():
        tensors, values = tree.split({"format": FORMAT, **state})
        return Draft(
            name=name_of(epoch=state["epoch"], step=state["step"]),
            model=tensorfile.Plan(model, {"format": "pt", **version, **metadata}),
            training=tensorfile.Plan(tensors, version),
            values=values,
            documents=dict(documents),
        )


def publish(root: Path, draft: Draft) -> Path:
    """Write a checkpoint under `root` and return its path once it is durable.

    Raises: OSError if the disk refuses, after what was written has been removed.
    """
    final = root / draft.name
    if final.exists():
        if verify(final) is None:
            return final  # sound, and of this very step: the same bytes would be written again
        set_aside(final)
    hidden = root / f".tmp-{final.name}-{os.getpid()}"
    try:
        if not root.exists():
            root.mkdir(parents=True)
            files.sync_directory(root.parent)  # or a power cut could take the whole directory, sound as it is inside
        hidden.mkdir()
        written = _write_files(hidden, draft)
        files.write(hidden / MANIFEST, layout.manifest(written))
        # The names inside must be on the disk before the directory gets the name by which it counts as whole.
        files.sync_directory(hidden)
        os.rename(hidden, final)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    files.sync_directory(root)
    return final


def _write_files(directory: Path, draft: Draft) -> dict[str, tensorfile.Written]:
    """All files but the manifest. Two threads work out digests meanwhile: that takes as long as writing does."""
    plans = {MODEL: draft.model, TRAINING: draft.training}
    written = {}
    with ThreadPoolExecutor(len(plans)) as hashers:
        digests = {name: hashers.submit(plan.sha256) for name, plan in plans.items()}
        sizes = {name: files.write(directory / name, plan.chunks()) for name, plan in plans.items()}
        texts = {STATE: json.dumps(draft.values, indent=1, allow_nan=False)} | draft.documents
        for name, text in texts.items():
            # A patch holds whatever bytes the changed files do, read as surrogates where they are no UTF-8.
            data = text.encode(errors="surrogateescape")
            size = files.write(directory / name, data)
            written[name] = tensorfile.Written(size=size, sha256=hashlib.sha256(data).hexdigest())
        hashed = {name: tensorfile.Written(sizes[name], digests[name].result()) for name in plans}
    return hashed | written


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Every byte that is used is one whose digest was checked: each file is read once.

    Raises: CheckpointError that names the file if anything is missing, extra or not as the manifest says;
    NewerFormatError if the checkpoint is sound and of a later format.
    """
    stated, entries = layout.read_manifest(path)
    with ThreadPoolExecutor(2) as readers:  # the two files of tensors side by side: digests take the time
        contents = dict(zip(entries, readers.map(lambda name: layout.read(path / name, entries[name]), entries)))
    with memory.growing():
        return _parse(path, contents, stated)


def _parse(path: Path, contents: dict[str, strict.Memory], stated: Any) -> Checkpoint:
    """What the files say, their digests having been checked. stated: the format that the manifest names."""
    values = strict.parse(contents[STATE], path / STATE)
    headers = {name: tensorfile.read_header(contents[name], name=str(path / name)) for name in (MODEL, TRAINING)}
    layout.check_format(path, stated, values, [header.metadata for header in headers.values()])
    model, training = (
        tensorfile.read_tensors(contents[name], header, name=str(path / name)) for name, header in headers.items()
    )
    try:
        state = tree.join(training, values)
        config = bytes(contents[CONFIG]).decode()
    except (tree.TreeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_name(path, state)
    return Checkpoint(path, model, state, config, strict.parse(contents[PROVENANCE], path / PROVENANCE))


def verify(path: Path) -> str | None:
    """Why `load` would refuse the checkpoint, or None if it is sound: of a newer format too."""
    try:
        load(path)
    except CheckpointError as error:
        return str(error)
    except NewerFormatError:
        return None
    return None


def _check_name(path: Path, state: Any) -> None:
    """A directory that was renamed would count as of another step than its state is."""
    epoch, step = (state.get("epoch"), state.get("step")) if isinstance(state, dict) else (None, None)
    if type(epoch) is not int or type(step) is not int or min(epoch, step) < 0:
        raise CheckpointError(f"{path / STATE}: it does not say of which epoch and step it is.")
    own = name_of(epoch=epoch, step=step)
    if _NAME.fullmatch(path.name) and path.name != own:
        raise CheckpointError(f"{path}: its state is that of {own}, so it was renamed.")


def names(root: Path) -> list[str]:
    """Names of the checkpoints under `root`, oldest first, sound or not."""
    if not root.is_dir():
        return []
    return sorted((entry.name for entry in os.scandir(root) if _NAME.fullmatch(entry.name)), key=_order)


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match
    return int(match[2]), int(match[1])


def latest(root: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest sound checkpoint, and each newer one that is damaged, with what is wrong with it."""
    damaged: list[tuple[Path, str]] = []
    for name in reversed(names(root)):
        try:
            return load(root / name), damaged
        except CheckpointError as error:
            damaged.append((root / name, str(error)))
    return None, damaged


def select(root: Path, choice: str, *, monitor: str | None, mode: str) -> Checkpoint:
    """The checkpoint that `@best`, `@last`, `@<name>` or `@<step>` means, loaded.

    Raises: CheckpointError that says which there are, if there is none such, or what is wrong with it.
    """
    there = names(root)
    if choice == "last":
        loaded, damaged = latest(root)
        if loaded is None:
            raise CheckpointError(damaged[0][1] if damaged else f"{root} holds no checkpoint.")
        return loaded
    if choice == "best":
        found = best(root, monitor=monitor, mode=mode) if monitor is not None else []
    elif choice.isdecimal():
        found = [name for name in there if _order(name)[0] == int(choice)][-1:]
    else:
        found = [name for name in there if name == choice]
    if not found:
        raise CheckpointError(f"No checkpoint @{choice}. There are: {', '.join(there) or 'none'}.")
    return load(root / found[0])


def best(root: Path, *, monitor: str, mode: str) -> list[str]:
    """Names of the checkpoints in which `monitor` was just measured, best first. NaN is never among them.

    A checkpoint from the middle of an epoch carries the value of the epoch before: it is not measured there.
    """
    scores = []
    for name in names(root):
        with contextlib.suppress(CheckpointError):  # it cannot be the best, and resume is where damage is reported
            score = _measured(root / name).get(monitor)
            if isinstance(score, int | float) and score == score:
                scores.append((score if mode == "min" else -score, _order(name), name))
    return [name for _, _, name in sorted(scores)]


def _measured(path: Path) -> dict[str, Any]:
    """The metrics that were measured at this very checkpoint."""
    try:
        found = (path / STATE).lstat()
    except OSError as error:
        raise CheckpointError(f"{path / STATE}: {error.strerror}.") from error
    return _metrics(path / STATE, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=10_000)
def _metrics(path: Path, identity: tuple[int, int, int]) -> dict[str, Any]:
    """Remembered by the file's identity, or each save of a long run would read what all checkpoints before it hold."""
    values = strict.parse(strict.read(path, at_most=strict.MAX_JSON), path)
    try:
        metrics = tree.join({}, values.get("metrics"))
    except tree.TreeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return metrics if isinstance(metrics, dict) and values.get("batch") == 0 else {}


def prune(
    root: Path,
    *,
    keep_last: int,
    keep_best: int,
    keep_every_n_epochs: int | None = None,
    monitor: str | None,
    mode: str,
    protect: str | None,
) -> list[str]:
    """Delete what retention does not keep, and return the names. Call it only once the newest one is durable.

    A damaged one, as far as sizes tell, is never kept in place of a sound one. What the disk does not let itself be
    read or deleted is kept, and the next call tries again.
    """
    there = names(root)
    damaged = {name: _damaged(root / name) for name in there}
    sound = [name for name in there if damaged[name] is False]
    kept = {protect, *(name for name in there if damaged[name] is None)}
    kept |= set(there[there.index(sound[-keep_last]) :] if len(sound) >= keep_last else there)
    if keep_every_n_epochs is not None:
        first = {_order(name)[1]: name for name in reversed(there)}
        kept |= {name for epoch, name in first.items() if epoch > 0 and epoch % keep_every_n_epochs == 0}
    if monitor is not None:
        kept |= set([name for name in best(root, monitor=monitor, mode=mode) if name in sound][:keep_best])
    return _delete(root, [name for name in there if name not in kept])


def _damaged(path: Path) -> bool | None:
    """Whether a checkpoint is, as far as its sizes and its state.json tell; None if the disk does not say.

    Retention hashes no gigabytes: that is what resume does.
    """
    try:
        for name, entry in layout.read_manifest(path)[1].items():
            found = (path / name).lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
                return True
        _measured(path)
    except (CheckpointError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        unknown = isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ELOOP)
        return None if unknown else True
    return False


def _delete(root: Path, dropped: list[str]) -> list[str]:
    """Delete those that are directories of this run, and no links to others'. Returns the names that are gone."""
    gone = []
    for name in dropped:
        # Renamed first: a kill in the middle of deleting must not leave what looks like a damaged checkpoint.
        if (root / name).is_dir() and not (root / name).is_symlink():
            with contextlib.suppress(OSError):
                os.rename(root / name, root / f"{_PRUNED}{name}-{os.getpid()}")
                gone.append(name)
    with contextlib.suppress(OSError):
        if gone:
            files.sync_directory(root)  # or a power cut could bring a name back whose files are deleted
        for hidden in root.glob(f"{_PRUNED}*"):  # also what an earlier call could not delete
            files.remove(hidden)
    return gone


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint out of the way, keeping it for whoever wants to look at it."""
    target, copy = path.with_name(f".damaged-{path.name}"), 1
    while target.exists():
        copy += 1
        target = path.with_name(f".damaged-{path.name}-{copy}")
    os.rename(path, target)
    return target


def clean(root: Path) -> None:
    """Remove what a killed process left half written or half deleted. Call it while no other process uses the run."""
    with contextlib.suppress(OSError):  # the next start tries again
        for entry in root.glob(".tmp-*"):
            files.remove(entry)
