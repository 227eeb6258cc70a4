"""One checkpoint on the disk: `save`, `load`, `verify`. A root of many: `names`, `latest`, `best`, `prune`.

A checkpoint is a directory that appears whole or not at all (docs/checkpoint-format.md says what is in it). It is never
rewritten. This module sees tensors and trees, never a model.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from savepoint import system, trust
from savepoint.checkpoint import layout, tensorfile, tree
from savepoint.checkpoint.layout import (
    CONFIG,
    FORMAT,
    MANIFEST,
    MODEL,
    PROVENANCE,
    REQUIRED,
    STATE,
    TRAINING,
    NewerFormatError,
)
from savepoint.errors import CheckpointError

NAME = re.compile(r"epoch_([0-9]{4,9})_step_([0-9]{8,15})")


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
    with system.memory.growing():
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
            # Or a power cut could take the whole directory, sound as it is inside.
            system.files.sync_directory(root.parent)
        hidden.mkdir()
        written = _write_files(hidden, draft)
        system.files.write(hidden / MANIFEST, layout.manifest(written))
        # The names inside must be on the disk before the directory gets the name by which it counts as whole.
        system.files.sync_directory(hidden)
        os.rename(hidden, final)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    system.files.sync_directory(root)
    return final


def _write_files(directory: Path, draft: Draft) -> dict[str, tensorfile.Written]:
    """All files but the manifest. Two threads work out digests meanwhile: that takes as long as writing does."""
    plans = {MODEL: draft.model, TRAINING: draft.training}
    written = {}
    with ThreadPoolExecutor(len(plans)) as hashers:
        digests = {name: hashers.submit(plan.sha256) for name, plan in plans.items()}
        sizes = {name: system.files.write(directory / name, plan.chunks()) for name, plan in plans.items()}
        texts = {STATE: json.dumps(draft.values, indent=1, allow_nan=False)} | draft.documents
        for name, text in texts.items():
            # A patch holds whatever bytes the changed files do, read as surrogates where they are no UTF-8.
            data = text.encode(errors="surrogateescape")
            size = system.files.write(directory / name, data)
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
    with system.memory.growing():
        return _parse(path, contents, stated)


def _parse(path: Path, contents: dict[str, trust.Memory], stated: Any) -> Checkpoint:
    """What the files say, their digests having been checked. stated: the format that the manifest names."""
    values = trust.parse_json(contents[STATE], path / STATE)
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
    return Checkpoint(path, model, state, config, trust.parse_json(contents[PROVENANCE], path / PROVENANCE))


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
    if NAME.fullmatch(path.name) and path.name != own:
        raise CheckpointError(f"{path}: its state is that of {own}, so it was renamed.")


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint out of the way, keeping it for whoever wants to look at it."""
    target, copy = path.with_name(f".damaged-{path.name}"), 1
    while target.exists():
        copy += 1
        target = path.with_name(f".damaged-{path.name}-{copy}")
    os.rename(path, target)
    return target
