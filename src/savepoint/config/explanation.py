"""Explain an error of Hydra or OmegaConf in one line for each wrong override.

Hydra is imported inside the functions: most commands never need it.
"""

from pathlib import Path
from typing import Any

import yaml

from savepoint.config.overrides import composed, missing_key, options, parse, value_at, wrong_option


def explain(error: Exception, overrides: list[str], conf_dir: Path) -> str | None:
    """Explain an error of Hydra or OmegaConf. overrides: as typed.

    The overrides are examined again, because the error's own text names one of them at best.
    Returns: one line for each wrong override, or what is wrong in conf/ itself; None for any other error.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra 1.3 refuses a number or null as a group's option by a plain ValueError.
    of_a_group = isinstance(error, ValueError) and str(error).startswith("Config group override")
    if not of_a_group and not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return None
    faults = _faults(overrides, conf_dir, alone="--multirun" in str(error))
    return "\n".join(faults) if faults else explain_conf(error, conf_dir)


def _faults(overrides: list[str], conf_dir: Path, *, alone: bool) -> list[str]:
    """List what is wrong with the overrides, given the options that they choose. alone: whether they start one run."""
    parsed = [(text, *parse(text)) for text in overrides]
    chosen = [text for text, override, _ in parsed if override and _is_choice(override, conf_dir)]
    config = composed(chosen, conf_dir)
    faults = (fault or _fault(text, override, config, conf_dir, alone=alone) for text, override, fault in parsed)
    return [fault for fault in faults if fault]


def _is_choice(override: Any, conf_dir: Path) -> bool:
    plain = override.type.name == "CHANGE" and not override.is_sweep_override() and override.package is None
    return plain and override.value() in options(override.key_or_group, conf_dir)


def _fault(text: str, override: Any, config: dict[str, Any] | None, conf_dir: Path, *, alone: bool) -> str | None:
    key, kind = override.key_or_group, override.type.name
    if override.package is not None or override.is_hydra_override():
        return None
    if override.is_sweep_override() and alone:
        listed = "" if options(key, conf_dir) else f" If it is one list, write {key}=[{text.partition('=')[2]}]."
        return f"{text}: several values make a sweep: add -m.{listed}"
    if options(key, conf_dir):
        if kind == "DEL":
            return f"{text}: another option is chosen." if override.value() is not None else None
        if kind == "ADD" and config is not None and key in config:
            return f"{text}: {key} is chosen already. Write {text[1:]}."
        return wrong_option(text, override, conf_dir)
    if config is None or kind == "FORCE_ADD":
        return None
    missing = missing_key(config, key, conf_dir)
    # Hydra says that there is no such key.
    if kind == "DEL" and not missing and value_at(config, key) is None:
        return f"{text}: {key} is null already. Leave the override out."
    if kind == "ADD":
        there_is_one = not missing and not isinstance(override.value(), dict | list)
        return f"{text}: {key} is there already. Write {text[1:]}." if there_is_one else None
    return f"{text}: {missing}" if missing else None


def explain_conf(error: Exception, conf_dir: Path) -> str | None:
    """Explain an error that lies in conf/ itself. Returns: one line, or None if the error lies elsewhere."""
    from hydra.errors import ConfigCompositionException, MissingConfigException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        ours = mark is not None and Path(str(mark.name)).is_relative_to(conf_dir.resolve())
        return f"{mark.name}, line {mark.line + 1}: {error.problem}." if mark is not None and ours else None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        first, *rest = str(error).splitlines()
        known = [line.strip() for line in rest if line.startswith("\t") and "provider=" not in line]
        there = f" There are: {', '.join(known)}." if known else ""
        return f"{first}.{there}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key} has no value (???). Set it: {cause.full_key}=…"
        return f"{cause.full_key}: {str(cause.msg or cause).partition(chr(10))[0]}."
    return " ".join(str(error).split()) or None if isinstance(error, ConfigCompositionException) else None
