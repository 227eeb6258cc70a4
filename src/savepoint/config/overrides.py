"""Read an override as a person types it, and find what it names in conf/ and in a config.

Hydra is imported inside the functions: most commands never need it.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from savepoint.config import composition
from savepoint.config.reading import closest

_KEY = re.compile(r"[~+]*[A-Za-z_$][\w$/-]*([.:@][\w$/-]+)*", re.ASCII)


def parse(text: str) -> tuple[Any, str | None]:
    """Parse an override. Returns: Hydra's Override and None, or None and what is wrong."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if text.startswith("-"):
        return None, f"{text}: an override has no dashes. Write {text.lstrip('-')}."
    if not text.startswith("~") and (not equals or not key.strip("+")):
        return None, f"{text or repr(text)}: an override reads key=value."
    try:
        return OverridesParser.create().parse_override(text), None
    except HydraException:
        if not _KEY.fullmatch(key):
            return None, f"{text}: {key!r} is not a key. Keys read like trainer.max_epochs."
        hint = f"""If it is text, quote it: '{key}="{value}"'."""
        return None, f"{text}: Hydra cannot read the value {value}. Are all brackets and quotes closed? {hint}"


def wrong_option(text: str, override: Any, conf_dir: Path) -> str | None:
    """Return what is wrong with the options that an override of a group names, or None."""
    known = options(override.key_or_group, conf_dir)
    there = ", ".join(known)
    choice = override.is_choice_sweep() and override.value_type.name != "GLOB_CHOICE_SWEEP"
    values = list(override.sweep_iterator()) if choice else override.value()
    for value in values if isinstance(values, list) else [values]:
        value = getattr(value, "text", value)  # a quoted choice
        if isinstance(value, dict):
            return f"{text}: {override.key_or_group} takes an option. It has: {there}."
        name = "null" if value is None else str(value)
        if name.removesuffix(".yaml") not in known and not override.value_type.name.startswith("GLOB"):
            return f"{text}: {override.key_or_group} has no option {name}.{closest(name, known)} It has: {there}."
    return None


def missing_key(config: Any, key: str, conf_dir: Path) -> str | None:
    """Return where the path `key` ends in the config and what exists there, or None if the key exists."""
    node, path = config, ""
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node, path = node[int(part)], f"{path}.{part}"
            continue
        if isinstance(node, list):
            return f"{path} is a list of {len(node)}. Write an index from 0, or the whole list."
        if not isinstance(node, dict):
            return f"{path} is a value, {node}, and has no keys."
        if part not in node:
            known = sorted({*node, *([] if path else group_names(conf_dir))})
            return f"{path or 'the config'} has no key {part}.{closest(part, known)} It has: {', '.join(known)}."
        node, path = node[part], f"{path}.{part}" if path else part
    return None


def value_at(config: Any, key: str) -> Any:
    """Return the value at a path that is known to exist."""
    for part in key.split("."):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def options(group: str, conf_dir: Path) -> list[str]:
    """List the options of a group; [] if there is no such group."""
    return sorted(file.stem for file in (conf_dir / group).glob("*.yaml")) if group and group != "." else []


def group_names(conf_dir: Path) -> list[str]:
    """List the groups of conf/, without Hydra's own."""
    return sorted(each.name for each in conf_dir.iterdir() if each.name != "hydra" and options(each.name, conf_dir))


def composed(overrides: list[str], conf_dir: Path) -> dict[str, Any] | None:
    """Compose a config as plain data, its interpolations unresolved. None if conf/ itself is broken."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(composition.compose_unresolved(overrides, conf_dir), resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError):
        return None
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]  # YAML with other keys than text is refused when it is checked
