"""Checkpoint: a training state as files that hold no code, written whole or not at all.

This wing sees tensors and nested values, never a model. docs/checkpoint-format.md describes the files.

Rooms, in reading order:
    storage     one checkpoint: save, load, verify
    layout      the files of a checkpoint, and its manifest
    tree        nested values ⇄ (tensors, JSON), exactly
    encoding    one tensor of any kind ⇄ plain tensors and JSON
    tensorfile  tensors ⇄ the bytes of a safetensors file
    snapshot    a copy of a state in host memory, so that training can go on while it is written
    selection   a run's checkpoints: the newest, the best, one by name
    retention   which checkpoints are kept, and how the others are deleted
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
)
from savepoint.checkpoint.retention import clean, prune
from savepoint.checkpoint.selection import best, latest, names, select
from savepoint.checkpoint.snapshot import Snapshot
from savepoint.checkpoint.storage import Checkpoint, Draft, draft, load, name_of, publish, save, set_aside, verify
from savepoint.checkpoint.tensorfile import MAX_HEADER, NAMES, nameable, read_header
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
    "TRAINING",
    "Checkpoint",
    "Draft",
    "NewerFormatError",
    "Snapshot",
    "TreeError",
    "best",
    "clean",
    "draft",
    "join",
    "latest",
    "load",
    "name_of",
    "nameable",
    "names",
    "prune",
    "publish",
    "read_header",
    "save",
    "select",
    "set_aside",
    "split",
    "verify",
]
