"""Checkpoint: save a training state to files that hold no code, whole or not at all, and load it exactly.

This wing sees tensors and nested values, never a model. docs/checkpoint-format.md describes the files.
One checkpoint: `save` (or `draft`, then `publish`), `load`, `verify`. Many: `latest`, `best`, `select`, `prune`.

Rooms, in reading order:
    storage     one checkpoint: save, load, verify
    layout      the files of a checkpoint, and its manifest
    tree        nested values ⇄ (tensors, JSON), exactly
    encoding    one tensor of any kind ⇄ plain tensors and JSON
    tensorfile  tensors ⇄ the bytes of a safetensors file
    snapshot    copy a state to host memory, so that training can go on while it is written
    selection   many checkpoints: list them, find the newest, the best, or one by name
    retention   many checkpoints: decide which are kept, and delete the others
"""

from savepoint.checkpoint.layout import (
    CONFIG,
    MANIFEST,
    MODEL,
    PATCH,
    PROVENANCE,
    REQUIRED,
    STATE,
    TRAINING,
    NewerFormatError,
    tensor_files,
)
from savepoint.checkpoint.retention import clean, prune
from savepoint.checkpoint.selection import best, latest, measured, names, position, select
from savepoint.checkpoint.snapshot import Snapshot
from savepoint.checkpoint.storage import (
    SUPERSEDED,
    Checkpoint,
    Draft,
    digests,
    draft,
    hidden,
    load,
    name_of,
    publish,
    save,
    set_aside,
    verify,
    write_part,
)
from savepoint.checkpoint.tensorfile import MAX_HEADER, NAMES, Plan, Written, nameable, read_header, read_tensors
from savepoint.checkpoint.tree import TreeError, join, split

__all__ = [
    "CONFIG",
    "MANIFEST",
    "MAX_HEADER",
    "MODEL",
    "NAMES",
    "PATCH",
    "PROVENANCE",
    "REQUIRED",
    "STATE",
    "SUPERSEDED",
    "TRAINING",
    "Checkpoint",
    "Draft",
    "NewerFormatError",
    "Plan",
    "Snapshot",
    "TreeError",
    "Written",
    "best",
    "clean",
    "digests",
    "draft",
    "hidden",
    "join",
    "latest",
    "load",
    "measured",
    "name_of",
    "nameable",
    "names",
    "position",
    "prune",
    "publish",
    "read_header",
    "read_tensors",
    "save",
    "select",
    "set_aside",
    "split",
    "tensor_files",
    "verify",
    "write_part",
]
