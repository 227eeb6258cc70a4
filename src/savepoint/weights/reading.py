"""Read weights from a checkpoint or from safetensors files, and note where they come from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from savepoint import checkpoint, runs
from savepoint.checkpoint import Checkpoint
from savepoint.errors import CheckpointError, short_list
from savepoint.weights.source import Source, files


@dataclass(frozen=True)
class Origin:
    """Where weights come from. query: as typed. run, checkpoint: None for files. sha256: digests by file name."""

    query: str
    run: str | None
    checkpoint: str | None
    sha256: dict[str, str]

    @property
    def title(self) -> str:
        return f"run {self.run}, {self.checkpoint}" if self.run else self.query


@dataclass(frozen=True)
class Weights:
    """Weights by name.

    entries: tensors on the CPU. Those of a checkpoint include all other values of the model's state_dict.
    versions: the versions of the model's modules, as torch records them; {} for files.
    """

    origin: Origin
    entries: dict[str, Any]
    versions: dict[str, Any]


def read(source: Source, *, query: str) -> Weights:
    """Read the weights of a source. query: what a person typed, for the record of their origin.

    Raises: CheckpointError if the files are damaged, or there is no such checkpoint.
    """
    if isinstance(source, runs.Found):
        return of_checkpoint(load_checkpoint(source), query=query, run=source.run.id)
    if (source / checkpoint.MANIFEST).exists():
        loaded = checkpoint.load(source)
        return of_checkpoint(loaded, query=query, run=None)
    return _of_files(source, query=query)


def load_checkpoint(found: runs.Found) -> Checkpoint:
    """Load the checkpoint that was named, or the newest sound one. `@best` follows the run's own checkpoint.monitor.

    Raises: CheckpointError if there is no such checkpoint, or it is damaged.
    """
    kept: Any = runs.read_config(found.run.directory).get("checkpoint")
    kept = kept if isinstance(kept, dict) else {}
    root, choice = found.run.checkpoints, found.checkpoint or "last"
    return checkpoint.select(root, choice, monitor=kept.get("monitor"), mode=kept.get("mode", "min"))


def of_checkpoint(loaded: Checkpoint, *, query: str, run: str | None, ema: bool = False) -> Weights:
    """Return the weights of a loaded checkpoint.

    run: the id of its run; None if it lies outside of any. ema: whether the averaged weights are used. They lie in
    another file, whose digest is then recorded too.
    Raises: CheckpointError if its state has no entries of a model.
    """
    stated = checkpoint.digests(loaded.path)
    files = checkpoint.tensor_files(stated)
    names = files[checkpoint.MODEL] + (files[checkpoint.TRAINING] if ema else [])
    origin = Origin(query, run, loaded.path.name, {name: stated[name] for name in names})
    return Weights(origin, *model_entries(loaded))


def model_entries(loaded: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the whole state_dict of a checkpoint's model, and the versions of its modules.

    Raises: CheckpointError if the state has no such entries.
    """
    extra, versions = (loaded.state.get(name) for name in ("model_extra", "model_versions"))
    if not isinstance(extra, dict) or not isinstance(versions, dict):
        raise CheckpointError(f"{loaded.path} holds no model: model_extra or model_versions is missing in state.json.")
    return loaded.model | extra, versions


def _of_files(path: Path, *, query: str) -> Weights:
    root = path.parent if path.is_file() else path
    entries: dict[str, Any] = {}
    digests = {}
    for name, stated in files(path).items():
        try:
            with (root / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            with safe_open(root / name, framework="pt") as tensors:
                held = set(tensors.keys())
                if stated is not None and held != stated:
                    wrong = short_list(sorted(held ^ stated))
                    raise CheckpointError(f"{root / name}: it does not hold what the index says: {wrong}.")
                entries |= {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        except OSError as error:
            raise CheckpointError(f"{root / name}: {error.strerror or error}.") from error
        except SafetensorError as error:
            raise CheckpointError(f"{root / name}: it is no sound safetensors file ({error}).") from error
    return Weights(Origin(query, None, None, digests), entries, {})
