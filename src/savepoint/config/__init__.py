"""Compose conf/ and the command line into one plain dict, and read its closed groups as typed settings.

Importing this package imports neither torch nor Hydra.

Rooms, in reading order:
    annotations  compare a value with a type annotation, in words
    settings     the closed groups as frozen dataclasses: keys, types, ranges and defaults
    reading      read the closed groups of a config into these, and report all faults together
    patterns     choose and rename names by patterns
    difference   compare two plain configs key by key, flatten one
    composition  compose conf/ with Hydra; the text of --help
    quoting      quote raw text and paths on the command line
    overrides    read an override as a person types it, and find what it names
    explanation  explain Hydra's errors in plain words
    changes      apply overrides to a stored config
"""

from savepoint.config.annotations import hints, misfit
from savepoint.config.changes import apply_overrides
from savepoint.config.composition import compose, help_text, resolve, summary
from savepoint.config.difference import Difference, differences, flatten
from savepoint.config.explanation import explain
from savepoint.config.patterns import match, rename
from savepoint.config.quoting import quote_paths, quote_raw
from savepoint.config.reading import closest, read_settings
from savepoint.config.settings import (
    AmpSettings,
    CheckpointSettings,
    DataSettings,
    FsdpSettings,
    InitSettings,
    SchedulerSettings,
    Settings,
    TrackerSettings,
    TrainerSettings,
    by_name,
)

__all__ = [
    "AmpSettings",
    "CheckpointSettings",
    "DataSettings",
    "Difference",
    "FsdpSettings",
    "InitSettings",
    "SchedulerSettings",
    "Settings",
    "TrackerSettings",
    "TrainerSettings",
    "apply_overrides",
    "by_name",
    "closest",
    "compose",
    "differences",
    "explain",
    "flatten",
    "help_text",
    "hints",
    "match",
    "misfit",
    "quote_paths",
    "quote_raw",
    "read_settings",
    "rename",
    "resolve",
    "summary",
]
