"""Compose conf/ and the command line into one plain dict, and read its closed groups as typed settings.

Importing this package imports neither torch nor Hydra.

Rooms, in reading order:
    annotations  compare a value with a type annotation, in words
    settings     the closed groups as frozen dataclasses: keys, types and ranges
    patterns     choose and rename names by patterns
    difference   compare two plain configs key by key, flatten one
    composition  compose conf/ with Hydra; the text of --help
    overrides    overrides as people type them: quoting, errors in plain words, changes to a stored config
"""

from savepoint.config.annotations import hints, misfit
from savepoint.config.composition import compose, help_text, resolve, summary
from savepoint.config.difference import Difference, differences, flatten
from savepoint.config.overrides import apply_overrides, explain, quote_paths, quote_raw
from savepoint.config.patterns import match, rename
from savepoint.config.settings import (
    AmpSettings,
    CheckpointSettings,
    DataSettings,
    InitSettings,
    SchedulerSettings,
    Settings,
    TrackerSettings,
    TrainerSettings,
    by_name,
    closest,
    read_settings,
)

__all__ = [
    "AmpSettings",
    "CheckpointSettings",
    "DataSettings",
    "Difference",
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
