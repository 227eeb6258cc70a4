"""Read and write configs as strict YAML: parse_config(dump_config(config)) equals config, types included.

A config.yaml may come from a stranger. Anchors, aliases, tags, merges, duplicate keys and interpolations have no use in
a resolved config, and each is a known way to run code, to exhaust memory, or to show two readers two different things.
"""

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from savepoint.errors import ConfigError, HostileError
from savepoint.trust.text import join_path, shown

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 100_000
_MAX_NUMBER = 64  # characters: YAML's base-60 integers take quadratic time

_TAG = "tag:yaml.org,2002:"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_config(text: bytes | str) -> dict[str, Any]:
    """Parse a resolved config from a file that a stranger may have written.

    Raises: HostileError for what a resolved config never holds; ConfigError for what is no YAML, or no group of keys.
    Both name the place.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_BYTES:
        raise HostileError(f"config.yaml has {len(raw)} bytes; at most {MAX_BYTES} are read.")
    try:
        return _Reader(raw.decode("utf-8")).document()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = ascii(" ".join(str(error).split())[:300])[1:-1]
        raise ConfigError(f"config.yaml is not valid YAML: {line}") from None


def dump_config(config: dict[str, Any]) -> str:
    """Write a checked config as YAML, in its own order, so that parse_config(dump_config(config)) == config."""
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    assert isinstance(text, str)
    return text


class _Reader:
    """Builds plain values from YAML events. There is no graph of nodes, so nothing can be shared or expanded."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._scalars: Any = yaml.SafeLoader("")  # resolves and constructs single scalars; it reads no stream
        self._nodes = 0

    def document(self) -> dict[str, Any]:
        next(self._events)
        if not isinstance(next(self._events), yaml.DocumentStartEvent):
            raise ConfigError("config.yaml is empty.")
        config = self._value(next(self._events), "", depth=1)
        next(self._events)
        if not isinstance(next(self._events), yaml.StreamEndEvent):
            _refuse("", "more than one document")
        if not isinstance(config, dict):
            raise ConfigError("config.yaml must hold keys and values at its top.")
        return config

    def _value(self, event: Any, path: str, *, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            _refuse(path, f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            _refuse(path, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            _refuse(path, f"the alias *{shown(event.anchor)[1:-1]}")
        if event.anchor is not None:
            _refuse(path, f"the anchor &{shown(event.anchor)[1:-1]}")
        if event.tag is not None:
            _refuse(path, f"the tag {shown(event.tag)}")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path, depth=depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth=depth)
        return self._scalar(event, path)

    def _mapping(self, path: str, *, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, path, depth=depth + 1)
            if type(key) is not str:
                raise ConfigError(f"{path or 'config.yaml'}: the key {shown(key)} must be text. Quote it.")
            if key in values:
                _refuse(join_path(path, key), "a duplicate key")
            values[key] = self._value(next(self._events), join_path(path, key), depth=depth + 1)
        return values

    def _sequence(self, path: str, *, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, join_path(path, len(values)), depth=depth + 1))
        return values

    def _scalar(self, event: Any, path: str) -> Any:
        tag = self._scalars.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = tag.removeprefix(_TAG)
        if kind == "str":
            if "${" in event.value:
                _refuse(path, f"the interpolation {shown(event.value)}")
            return event.value
        if kind == "merge":
            _refuse(path, "the merge key <<")
        if kind not in ("int", "float", "bool", "null") or len(event.value) > _MAX_NUMBER:
            raise ConfigError(f"{path}={shown(event.value)}: is no plain value (it reads as {kind}). Quote it.")
        try:
            return self._scalars.construct_object(yaml.ScalarNode(tag, event.value))
        except ValueError:
            raise ConfigError(f"{path}={shown(event.value)}: is no {kind}. Quote it.") from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True  # parse_config refuses aliases, so a value that occurs twice is written twice


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # YAML 1.2 reads 1e5 and 0o17 as numbers, YAML 1.1 (PyYAML) as text. Quoted, both read text.
    style = "'" if value[:1] in "+-.0123456789" else None
    if any(mark in value for mark in "\x85\u2028\u2029"):
        style = '"'  # PyYAML folds these line breaks in any other style
    return dumper.represent_scalar(f"{_TAG}str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def _refuse(path: str, what: str) -> NoReturn:
    place = f"config.yaml: {path}" if path else "config.yaml"
    raise HostileError(f"{place}: {what}. Savepoint writes no config that holds that, so it is refused.")
