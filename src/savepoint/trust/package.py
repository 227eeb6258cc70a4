"""Name the package under src/ that belongs to the project: `project`, or what pyproject.toml says."""

import functools
import tomllib
from pathlib import Path

from savepoint.errors import ConfigError

DEFAULT = "project"


def package(source: Path) -> str:
    """Return the name of the project's own package: the one whose classes a config may name.

    pyproject.toml, beside `source`, gives the name: package = "…" under [tool.savepoint].
    source: the directory src/. Raises: ConfigError if the file cannot be read, or the name is not one of a package.
    """
    file = source.parent / "pyproject.toml"
    try:
        return _read(file, file.stat().st_mtime_ns)
    except FileNotFoundError:
        return DEFAULT
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: the name of the project's package cannot be read: {error}.") from None


@functools.lru_cache(maxsize=16)
def _read(file: Path, _changed: int) -> str:
    table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("savepoint", {})
    name = table.get("package", DEFAULT)
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or name == "savepoint":
        raise ValueError(f"package = {name!r} under [tool.savepoint] is not the name of a package in src/")
    return name
