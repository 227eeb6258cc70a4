"""Name the files of a checkpoint, write and check its manifest, and check its format (docs/checkpoint-format.md)."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from savepoint import trust
from savepoint.checkpoint.tensorfile import Written
from savepoint.errors import CheckpointError, UserError, short_list

FORMAT = 2  # the newest one; all from 1 on are read
MODEL, TRAINING, STATE, CONFIG = "model.safetensors", "training.safetensors", "state.json", "config.yaml"
PROVENANCE, PATCH, MANIFEST = "provenance.json", "changes.patch", "manifest.json"
REQUIRED = frozenset({MODEL, TRAINING, STATE, CONFIG, PROVENANCE})
_MAX_MANIFEST = 2**20  # bytes
_DIGITS = re.compile(r"[0-9]{1,9}")


class NewerFormatError(UserError):
    """A sound checkpoint of a newer format. It is not damaged, so resume must not fall back to an older one."""


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
    if missing := sorted((set(entries) | REQUIRED) - present):
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
