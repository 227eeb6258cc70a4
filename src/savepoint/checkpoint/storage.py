"""Save, load and verify one checkpoint: a directory that appears on the disk whole or not at all, and never changes.

docs/checkpoint-format.md describes its files.
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

from savepoint import parallel, system, trust
from savepoint.checkpoint import layout, tensorfile, tree
from savepoint.checkpoint.layout import CONFIG, FORMAT, MODEL, PROVENANCE, STATE, TRAINING
from savepoint.errors import CheckpointError

NAME = re.compile(r"epoch_([0-9]{4,9})_step_([0-9]{8,15})")
SUPERSEDED = ".tmp-superseded-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was loaded and verified.

    model: the tensors of model.safetensors, by name. state: the tree of everything else that was saved. config: the
    text of config.yaml. provenance: the object in provenance.json. shared: the digest of the tensors that all ranks
    have, if only this rank's part was loaded.
    """

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]
    config: str
    provenance: dict[str, Any]
    shared: str | None = None


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is not on the disk yet, or this rank's part of it.

    values: for state.json. documents: the text files, by name. ranks: how many write it together.
    """

    name: str
    model: tensorfile.Plan
    training: tensorfile.Plan
    values: Any
    documents: dict[str, str]
    ranks: int = 1

    @property
    def plans(self) -> dict[str, tensorfile.Plan]:
        """The tensor files that this rank writes, by name."""
        named = {MODEL: self.model, TRAINING: self.training}
        return {layout.part_of(name, rank=parallel.rank(), ranks=self.ranks): plan for name, plan in named.items()}


def name_of(*, epoch: int, step: int) -> str:
    """Return a checkpoint's name from the numbers of completed epochs and optimizer updates.

    >>> name_of(epoch=3, step=70)
    'epoch_0003_step_00000070'
    """
    return f"epoch_{epoch:04d}_step_{step:08d}"


def save(
    root: Path,
    *,
    model: Mapping[str, Tensor],
    state: Mapping[str, Any],
    documents: Mapping[str, str],
    metadata: Mapping[str, str],
) -> Path:
    """Write a checkpoint under `root`, and return its path once it is durable.

    The arguments and errors are those of `draft` and `publish`, which split this work between two threads.
    """
    return publish(root, draft(model=model, state=state, documents=documents, metadata=metadata))


def draft(
    *, model: Mapping[str, Tensor], state: Mapping[str, Any], documents: Mapping[str, str], metadata: Mapping[str, str]
) -> Draft:
    """Prepare a checkpoint in memory. Tensors are referred to, not copied; everything else is copied.

    model: the tensors of model.safetensors, dense and of a dtype in `NAMES`, on any device.
    state: a tree of all other values and tensors (see `split`), with integers `epoch` and `step`.
    documents: config.yaml, provenance.json and perhaps changes.patch, by name.
    metadata: text for the header of model.safetensors, so that this file alone can be traced to its run.
    Tensors that are cut among ranks become parts: each rank drafts its own, and `write_part` writes it.
    Raises: TreeError, with the value's path, for a state that could not be loaded exactly.
    """
    assert {CONFIG, PROVENANCE} <= set(documents), "a checkpoint needs its config and its provenance"
    version = {"savepoint.format": str(FORMAT)}
    with system.memory.growing():
        tensors, values = tree.split({"format": FORMAT, **state})
        cut = {MODEL: parallel.described(model), TRAINING: parallel.described(tensors)}
        several = any(cut.values())
        return Draft(
            name=name_of(epoch=state["epoch"], step=state["step"]),
            model=tensorfile.Plan(parallel.mine(model, several=several), {"format": "pt", **version, **metadata}),
            training=tensorfile.Plan(parallel.mine(tensors, several=several), version),
            values=values | {"shards": cut} if several else values,
            documents=dict(documents),
            ranks=parallel.count() if several else 1,
        )


def hidden(root: Path, draft: Draft, process: int) -> Path:
    """Return where a process writes a checkpoint before it has its name. process: the id of rank 0's."""
    return root / f".tmp-{draft.name}-{process}"


def publish(root: Path, draft: Draft, written: Mapping[str, tensorfile.Written] | None = None) -> Path:
    """Write a prepared checkpoint under `root`, and return its path once it is durable.

    A sound checkpoint of the same name is kept: its bytes would be the same. There is one exception: if it was saved
    when the evaluation of its step was interrupted, a draft with that evaluation replaces it. A damaged checkpoint is
    set aside.
    written: the tensor files of all ranks, which lie in `hidden` already; None to write them.
    Raises: OSError if the disk refuses, after whatever was written has been removed.
    """
    final, aside = root / draft.name, root / f"{SUPERSEDED}{draft.name}"
    directory, replaces, kept = hidden(root, draft, os.getpid()), False, False
    if final.exists():
        try:
            replaces = _lacks_evaluation(load(final).state, draft)
            kept = not replaces
        except CheckpointError:
            set_aside(final)
        except layout.NewerFormatError:
            kept = True
        if kept:
            shutil.rmtree(directory, ignore_errors=True)  # what other ranks have written
            return final
    try:
        written = dict(written or {}) | _write_files(directory, draft, tensors=written is None, texts=True)
        system.files.write(directory / layout.MANIFEST, layout.manifest(written))
        # The files' names must be on the disk before the directory gets the name that makes it a checkpoint.
        system.files.sync_directory(directory)
        if replaces:
            # If the process dies after this, `retention.clean` gives the checkpoint its name back.
            system.files.patiently(os.rename, final, aside)
        system.files.patiently(os.rename, directory, final)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        if replaces and not final.exists():
            system.files.patiently(os.rename, aside, final)
        raise
    system.files.sync_directory(root)
    if replaces:
        system.files.remove(aside)
    return final


def _lacks_evaluation(saved: Mapping[str, Any], draft: Draft) -> bool:
    """Whether a checkpoint was saved before the evaluation of its step, and the draft after it."""
    step = saved["step"]
    return bool(draft.values.get("evaluated") == step and saved.get("evaluated", step) != step)


def write_part(directory: Path, draft: Draft) -> dict[str, tensorfile.Written]:
    """Write the tensor files of this rank into a directory that another rank may have made. Returns: their entries.

    Raises: OSError if the disk refuses.
    """
    return _write_files(directory, draft, tensors=True, texts=False)


def _write_files(directory: Path, draft: Draft, *, tensors: bool, texts: bool) -> dict[str, tensorfile.Written]:
    """Write every file but the manifest. Digests take as long as writing, so two threads compute them meanwhile."""
    if not directory.parent.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Without this, a power cut could remove the directory together with its checkpoints.
        system.files.sync_directory(directory.parent.parent)
    directory.mkdir(exist_ok=draft.ranks > 1)
    chunks = {name: plan.chunks() for name, plan in draft.plans.items()} if tensors else {}
    with ThreadPoolExecutor(2) as hashers:
        digests = {name: hashers.submit(each.sha256) for name, each in chunks.items()}
        written = {STATE: json.dumps(draft.values, indent=1, allow_nan=False)} | draft.documents if texts else {}
        # A patch may hold bytes that are not UTF-8. They were decoded as surrogates, which this turns back.
        data = {name: text.encode(errors="surrogateescape") for name, text in written.items()}
        sizes = system.files.write_together({directory / name: each for name, each in (chunks | data).items()})
        hashed = {name: digest.result() for name, digest in digests.items()}
    hashed |= {name: hashlib.sha256(each).hexdigest() for name, each in data.items()}
    return {name: tensorfile.Written(sizes[directory / name], digest) for name, digest in hashed.items()}


def load(path: Path, *, part: bool = False) -> Checkpoint:
    """Read and verify a checkpoint. Each file is read once, so the bytes in use are the ones that were verified.

    The tensors are on the CPU, in the memory into which the files were read.
    part: read only what this rank needs of the parts that as many ranks have written. Tensors that were cut are then
    `parallel.Part`. The other tensors are in rank 0's files, which only rank 0 verifies: compare `shared` with its.
    Raises: CheckpointError that names the file, if one is missing, extra, malformed, or differs from the manifest;
    NewerFormatError if the checkpoint is sound and its format is newer than this version.
    """
    stated, entries = layout.read_manifest(path)
    files = list(zip(*layout.tensor_files(entries).values()))  # by rank
    others = {name for rank, names in enumerate(files) if part and rank != parallel.rank() for name in names}
    read = [name for name in entries if name not in others]
    # The two tensor files are read side by side: most of the time goes into their digests.
    with ThreadPoolExecutor(2) as readers:
        contents = dict(zip(read, readers.map(lambda name: layout.read(path / name, entries[name]), read)))
    contents |= {name: trust.map_file(path / name, exactly=entries[name].size) for name in others & {*files[0]}}
    with system.memory.growing():
        return _parse(path, contents, stated, part=part)


def _parse(path: Path, contents: dict[str, trust.Memory], stated: Any, *, part: bool) -> Checkpoint:
    """Build the checkpoint from its files' bytes, whose digests were checked. stated: the manifest's format."""
    values, files = trust.parse_json(contents[STATE], path / STATE), layout.tensor_files([*contents])
    names = [name for each in files.values() for name in each if name in contents]
    headers = {name: tensorfile.read_header(contents[name], name=str(path / name)) for name in names}
    layout.check_format(path, stated, values, [header.metadata for header in headers.values()])
    cut = values.pop("shards", {}) if len(files[MODEL]) > 1 else {}
    if not isinstance(cut, dict) or not all(isinstance(cut.get(kind, {}), dict) for kind in files):
        raise CheckpointError(f"{path / STATE}: its 'shards' do not describe tensors.")
    tensors = {name: tensorfile.read_tensors(contents[name], headers[name], name=str(path / name)) for name in names}
    whole = {
        kind: parallel.assemble(
            {rank: tensors[name] for rank, name in enumerate(parts) if name in tensors},
            described=cut.get(kind, {}),
            names=[str(path / name) for name in parts],
            alone=part,
        )
        for kind, parts in files.items()
    }
    try:
        state = tree.join(whole[TRAINING], values)
        config = bytes(contents[CONFIG]).decode()
    except (tree.TreeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_name(path, state)
    provenance = trust.parse_json(contents[PROVENANCE], path / PROVENANCE)
    return Checkpoint(path, whole[MODEL], state, config, provenance, _shared(whole) if part else None)


def _shared(files: dict[str, dict[str, Any]]) -> str:
    """Return the SHA-256 of the tensors that are not cut, in hexadecimal. files: the tensors of each kind of file."""
    named = [(f"{kind}/{name}", each) for kind, tensors in files.items() for name, each in tensors.items()]
    return tensorfile.Plan({name: each for name, each in named if isinstance(each, Tensor)}, {}).chunks().sha256()


def digests(path: Path) -> dict[str, str]:
    """Return the SHA-256 that the manifest states for each file. Raises: CheckpointError if there is no manifest."""
    return {name: entry.sha256 for name, entry in layout.read_manifest(path)[1].items()}


def verify(path: Path) -> str | None:
    """Return why a checkpoint is damaged, or None if it is sound, even if this version cannot read its format."""
    try:
        load(path)
    except CheckpointError as error:
        return str(error)
    except layout.NewerFormatError:
        return None
    return None


def _check_name(path: Path, state: Any) -> None:
    """Check that a checkpoint's name agrees with its state. A renamed one would count as another step."""
    epoch, step = (state.get("epoch"), state.get("step")) if isinstance(state, dict) else (None, None)
    if type(epoch) is not int or type(step) is not int or min(epoch, step) < 0:
        raise CheckpointError(f"{path / STATE}: it does not say its epoch and step.")
    own = name_of(epoch=epoch, step=step)
    if NAME.fullmatch(path.name) and path.name != own:
        raise CheckpointError(f"{path}: its state is that of {own}, so it was renamed.")


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to `.damaged-<name>`, so that it is ignored but can still be examined.

    Returns: its new path. Raises: OSError if the disk refuses.
    """
    target, copy = path.with_name(f".damaged-{path.name}"), 1
    while target.exists():
        copy += 1
        target = path.with_name(f".damaged-{path.name}-{copy}")
    system.files.patiently(os.rename, path, target)
    return target
