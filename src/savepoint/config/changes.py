"""Apply overrides to the stored config of a run, as Hydra would to a fresh one.

OmegaConf is imported inside the functions: most commands never need it.
"""

from pathlib import Path
from typing import Any

from savepoint.config import composition
from savepoint.config.explanation import explain_conf
from savepoint.config.overrides import composed, missing_key, options, parse, value_at, wrong_option
from savepoint.errors import ConfigError


def apply_overrides(config: dict[str, Any], overrides: list[str], conf_dir: Path) -> dict[str, Any]:
    """Return a stored config with overrides applied, in Hydra's grammar.

    `a.b=c` sets a value, `+a.b=c` adds one, `~a.b` removes one, and `group=option` takes an option of conf_dir. As in
    Hydra, options are applied first, and interpolations are resolved in the whole result.
    Raises: ConfigError with one line for each override that does not fit. The result is not checked yet.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    changed = OmegaConf.create(config)
    faults, parsed = [], []
    for text in overrides:
        override, fault = parse(text)
        fault = fault or _refused_on_resume(text, override)
        faults += [fault] if fault else []
        parsed += [] if fault else [(text, override)]
    for text, override in sorted(parsed, key=lambda each: not options(each[1].key_or_group, conf_dir)):
        fault = _apply(changed, text, override, conf_dir)
        faults += [fault] if fault else []
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        result = OmegaConf.to_container(changed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_conf(error, conf_dir) or str(error)) from error
    assert isinstance(result, dict)
    return result  # type: ignore[return-value]  # its keys are those of config: text


def _refused_on_resume(text: str, override: Any) -> str | None:
    if override.is_sweep_override():
        return f"{text}: resume trains one run. For several, start a sweep: python train.py -m …"
    if override.is_hydra_override() or override.package is not None:
        return f"{text}: this is fixed when a run starts."
    return None


def _apply(changed: Any, text: str, override: Any, conf_dir: Path) -> str | None:
    """Apply one override to the OmegaConf container `changed`. Returns: what is wrong with it, or None."""
    from omegaconf import OmegaConf

    kind, key = override.type.name, override.key_or_group
    stored = OmegaConf.to_container(changed, resolve=False)
    missing = missing_key(stored, key, conf_dir)
    if kind == "DEL":
        return f"{text}: {missing}" if missing else _remove(changed, text, override)
    if kind == "ADD" and not missing:
        return f"{text}: {key} is {'chosen' if options(key, conf_dir) else 'there'} already. Write {text[1:]}."
    if options(key, conf_dir):
        return _take_option(changed, text, override, conf_dir)
    if kind == "CHANGE" and missing and not _is_newer(stored, key, conf_dir):
        return f"{text}: {missing}"
    OmegaConf.update(changed, key, override.value(), merge=True, force_add=True)
    return None


def _remove(changed: Any, text: str, override: Any) -> str | None:
    from omegaconf import OmegaConf

    key = override.key_or_group
    there = value_at(OmegaConf.to_container(changed, resolve=False), key)
    if override.value() is not None and override.value() != there:
        return f"{text}: {key} is {there}. Write ~{key} to remove it."
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(changed, parent) if parent else changed
    del node[int(name) if OmegaConf.is_list(node) else name]
    return None


def _take_option(changed: Any, text: str, override: Any, conf_dir: Path) -> str | None:
    from omegaconf import OmegaConf

    group = override.key_or_group
    if fault := wrong_option(text, override, conf_dir):
        return fault
    path = group.replace("/", ".")
    node = OmegaConf.select(composition.compose_unresolved([text], conf_dir), path)
    if node is None:
        return f"{text}: a preset changes many keys. To resume with it, write out those that you mean."
    OmegaConf.update(changed, path, node, merge=False)
    return None


def _is_newer(stored: Any, key: str, conf_dir: Path) -> bool:
    """Whether conf/ has gained a key since the run was started. Arguments of a class do not count."""
    node = stored
    for part in key.split(".")[:-1]:
        node = node.get(part, {}) if isinstance(node, dict) else None
    fresh = composed([], conf_dir)
    if not isinstance(node, dict) or "_target_" in node or fresh is None:
        return False
    return missing_key(fresh, key, conf_dir) is None
