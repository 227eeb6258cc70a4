"""Name the files of a checkpoint, write and check its manifest, and check its format (docs/checkpoint-format.md)."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from savepoint import trust
from savepoint.checkpoint.tensorfile import Written
from savepoint.errors import CheckpointError, UserError, short_list

FORMAT = 2  # the newest one; all from 1 on are read
MODEL, TRAINING, STATE, CONFIG = "model.safetensors", "training.safetensors", "state.json", "config.yaml"
PROVENANCE, PATCH, MANIFEST = "provenance.json", "changes.patch", "manifest.json"
REQUIRED = frozenset({MODEL, TRAINING, STATE, CONFIG, PROVENANCE})
# Where several ranks train a model in parts, each writes two files in place of model and training.safetensors.
_PART = re.compile(r"(model|training)\.rank_([0-9]{5})_of_([0-9]{5})\.safetensors")
_MAX_MANIFEST = 2**20  # bytes
_DIGITS = re.compile(r"[0-9]{1,9}")


class NewerFormatError(UserError):
    """A sound checkpoint of a newer format. It is not damaged, so resume must not fall back to an older one."""


def part_of(name: str, *, rank: int, ranks: int) -> str:
    """Return the name of a rank's part of model.safetensors or training.safetensors.

    >>> part_of("model.safetensors", rank=2, ranks=8)
    'model.rank_00002_of_00008.safetensors'
    """
    return name if ranks == 1 else name.replace(".", f".rank_{rank:05d}_of_{ranks:05d}.", 1)


def tensor_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the files that hold the tensors of model.safetensors, and those of training.safetensors, by rank.

    names: those of the files of a checkpoint. One that should be there and is not is returned nevertheless.
    """
    ranks = max((int(match[3]) for name in names if (match := _PART.fullmatch(name))), default=1)
    return {name: [part_of(name, rank=rank, ranks=ranks) for rank in range(ranks)] for name in (MODEL, TRAINING)}


def manifest(written: Mapping[str, Written]) -> bytes:
    """Return the bytes of manifest.json. written: every other file, by name."""
    entries = {name: vars(entry) for name, entry in written.items()}
    return json.dumps({"format": FORMAT, "files": entries}, indent=1).encode()


def read_manifest(path: Path) -> tuple[Any, dict[str, Written]]:
    """Read manifest.json, and check that it lists exactly the files of the directory.

    Returns: the format that it states, which `check_format` checks later, and its entries by file name.
    Raises: CheckpointError that names the files that are missing or extra, or says why the manifest cannot be read.
    """
    try:
        manifest = trust.parse_json(trust.read_file(path / MANIFEST, at_most=_MAX_MANIFEST), path / MANIFEST)
        listed = manifest["files"].items()
        entries = {name: Written(entry["size"], entry["sha256"]) for name, entry in listed}
        present = {entry.name for entry in os.scandir(path)} - {MANIFEST}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: not a manifest ({error}).") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}.") from error
    tensors = {name for names in tensor_files([*entries]).values() for name in names}
    if other := sorted(name for name in set(entries) - tensors if name in (MODEL, TRAINING) or _PART.fullmatch(name)):
        raise CheckpointError(f"{path}: {short_list(other)} beside the parts of another number of ranks.")
    if missing := sorted((set(entries) | tensors | REQUIRED - {MODEL, TRAINING}) - present):
        raise CheckpointError(f"{path}: missing {short_list(missing)}.")
    if extra := sorted(present - set(entries)):
        raise CheckpointError(f"{path}: {short_list(extra)} not in the manifest.")
    return manifest.get("format"), entries


def read(path: Path, entry: Written) -> trust.Memory:
    """Read a file. Raises: CheckpointError if its size or SHA-256 differs from its manifest entry."""
    data, digest = trust.read_digested(path, exactly=entry.size)
    if digest != entry.sha256:
        raise CheckpointError(f"{path}: its SHA-256 is not the manifest's.")
    return data


def check_format(path: Path, stated: Any, values: dict[str, Any], metadata: list[dict[str, str]]) -> None:
    """Check that every file names the same format, and that this version can read it.

    Files that disagree are damaged: a digit of one of them has changed.
    stated: the manifest's format. values: state.json. metadata: that of both tensor files.
    Raises: CheckpointError if the files disagree; NewerFormatError if they agree on a newer format.
    """
    named: list[Any] = [stated, values.get("format")]
    for each in metadata:
        text = each.get("savepoint.format", "")
        named.append(int(text) if _DIGITS.fullmatch(text) else text)
    if any(type(one) is not int or one != stated for one in named) or stated < 1:
        raise CheckpointError(f"{path}: its files name different formats ({', '.join(map(repr, named))}).")
    if stated > FORMAT:
        raise NewerFormatError(
            f"{path} has checkpoint format {stated}, and this version of Savepoint reads up to {FORMAT}. "
            "Take a newer Savepoint to load it."
        )
