"""Whether a config can be trained: every fault that shows without importing torch, reported together."""

from pathlib import Path
from typing import Any

from savepoint import settings, trust
from savepoint.errors import ConfigError


def check(config: dict[str, Any], *, source: Path) -> settings.Settings:
    """A fresh config and a loaded one alike: what could not be resumed cannot be started.

    source: the directory that holds the `project` package. Raises: ConfigError with one line for each fault.
    """
    faults = trust.check(config, source=source)
    read, more = settings.read(config) if not faults else (None, [])
    if read is None:
        raise ConfigError("\n".join(faults + more))
    return read
