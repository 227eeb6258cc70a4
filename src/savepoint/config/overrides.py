"""Handle overrides as people type them: quote raw text, explain errors of Hydra, change a stored config.

Hydra is imported inside the functions: most commands never need it.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from savepoint.config.settings import closest
from savepoint.errors import ConfigError, UserError

CONFIG_NAME = "config"
_KEY = re.compile(r"[~+]*[A-Za-z_$][\w$/-]*([.:@][\w$/-]+)*", re.ASCII)


def quote_raw(argv: list[str], keys: tuple[str, ...]) -> list[str]:
    """Quote `key=RAW` on the command line for each of `keys`, so that Hydra takes RAW as text, whatever it holds.

    Unquoted, the run id 123e4567 would arrive as infinity, 12345678 as an integer, and abc=def as an error.
    Raises: UserError for `${` and `???`, which OmegaConf interprets even inside quotes.

    >>> quote_raw(["init_from=123e4567", "seed=1"], ("init_from",))
    ["init_from='123e4567'", 'seed=1']
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted = []
    for argument in argv:
        key, equals, raw = argument.partition("=")
        if not equals or key not in keys:
            quoted.append(argument)
        elif "${" in raw or raw == "???":
            raise UserError(f"{argument}: '${{' and '???' have a meaning in configs and cannot name a run. Rename it.")
        else:
            quoted.append(f"{key}={QuotedString(raw, Quote.single).with_quotes()}")
    return quoted


def quote_paths(argv: list[str], keys: tuple[str, ...]) -> list[str]:
    """Quote `key=PATH` on the command line for each of `keys`, unless it is quoted, or Hydra is to fill in a `${`.

    Unquoted, Hydra would read a path that holds `~`, brackets or a comma as something else, or refuse it.

    >>> quote_paths(["hydra.run.dir=C:\\\\RUNNER~1", "hydra.run.dir='a'"], ("hydra.run.dir",))
    ["hydra.run.dir='C:\\\\RUNNER~1'", "hydra.run.dir='a'"]
    """
    begun = tuple(f"{key}=" for key in keys)
    plain = [each.startswith(begun) and "${" not in each and each.partition("=")[2][:1] not in "'\"" for each in argv]
    return [quote_raw([each], keys)[0] if paths else each for each, paths in zip(argv, plain)]


def explain(error: Exception, overrides: list[str], conf_dir: Path) -> str | None:
    """Explain an error of Hydra or OmegaConf, one line for each wrong override. None for any other error.

    The overrides are examined again, since the error's own text names one of them at best.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra 1.3 refuses a number or null as a group's option by a plain ValueError.
    of_a_group = isinstance(error, ValueError) and str(error).startswith("Config group override")
    if not of_a_group and not isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return None
    faults = _faults(overrides, conf_dir, alone="--multirun" in str(error))
    return "\n".join(faults) if faults else _explain_conf(error, conf_dir)


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
        override, fault = _parse(text)
        fault = fault or _refused_on_resume(text, override)
        faults += [fault] if fault else []
        parsed += [] if fault else [(text, override)]
    for text, override in sorted(parsed, key=lambda each: not _options(each[1].key_or_group, conf_dir)):
        fault = _apply(changed, text, override, conf_dir)
        faults += [fault] if fault else []
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        result = OmegaConf.to_container(changed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain_conf(error, conf_dir) or str(error)) from error
    assert isinstance(result, dict)
    return result  # type: ignore[return-value]  # its keys are those of config: text


def _parse(text: str) -> tuple[Any, str | None]:
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


def _faults(overrides: list[str], conf_dir: Path, *, alone: bool) -> list[str]:
    """List what is wrong with the overrides, given the options that they choose. alone: one run, not a sweep."""
    parsed = [(text, *_parse(text)) for text in overrides]
    chosen = [text for text, override, _ in parsed if override and _is_choice(override, conf_dir)]
    config = _composed(chosen, conf_dir)
    faults = (fault or _fault(text, override, config, conf_dir, alone=alone) for text, override, fault in parsed)
    return [fault for fault in faults if fault]


def _fault(text: str, override: Any, config: dict[str, Any] | None, conf_dir: Path, *, alone: bool) -> str | None:
    key, kind = override.key_or_group, override.type.name
    if override.package is not None or override.is_hydra_override():
        return None
    if override.is_sweep_override() and alone:
        listed = "" if _options(key, conf_dir) else f" If it is one list, write {key}=[{text.partition('=')[2]}]."
        return f"{text}: several values make a sweep: add -m.{listed}"
    if options := _options(key, conf_dir):
        if kind == "DEL":
            return f"{text}: another option is chosen." if override.value() is not None else None
        if kind == "ADD" and config is not None and key in config:
            return f"{text}: {key} is chosen already. Write {text[1:]}."
        return _not_an_option(text, override, options)
    if config is None or kind == "FORCE_ADD":
        return None
    missing = _missing(config, key, conf_dir)
    if kind == "DEL" and not missing and _value(config, key) is None:  # Hydra says of such a key that it does not exist
        return f"{text}: {key} is null already. Leave the override out."
    if kind == "ADD":
        there_is_one = not missing and not isinstance(override.value(), dict | list)
        return f"{text}: {key} is there already. Write {text[1:]}." if there_is_one else None
    return f"{text}: {missing}" if missing else None


def _not_an_option(text: str, override: Any, options: list[str]) -> str | None:
    choice = override.is_choice_sweep() and override.value_type.name != "GLOB_CHOICE_SWEEP"
    values = list(override.sweep_iterator()) if choice else override.value()
    for value in values if isinstance(values, list) else [values]:
        value = getattr(value, "text", value)  # a quoted choice
        if isinstance(value, dict):
            return f"{text}: {override.key_or_group} takes an option. It has: {', '.join(options)}."
        name = "null" if value is None else str(value)
        if name.removesuffix(".yaml") not in options and not override.value_type.name.startswith("GLOB"):
            there = ", ".join(options)
            return f"{text}: {override.key_or_group} has no option {name}.{closest(name, options)} It has: {there}."
    return None


def _missing(config: Any, key: str, conf_dir: Path) -> str | None:
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
            known = sorted({*node, *([] if path else _groups(conf_dir))})
            return f"{path or 'the config'} has no key {part}.{closest(part, known)} It has: {', '.join(known)}."
        node, path = node[part], f"{path}.{part}" if path else part
    return None


def _value(config: Any, key: str) -> Any:
    """Return the value at a path that is known to exist."""
    for part in key.split("."):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config


def _explain_conf(error: Exception, conf_dir: Path) -> str | None:
    """Explain what is wrong inside conf/ itself."""
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
    missing = _missing(stored, key, conf_dir)
    if kind == "DEL":
        return f"{text}: {missing}" if missing else _remove(changed, text, override)
    if kind == "ADD" and not missing:
        return f"{text}: {key} is {'chosen' if _options(key, conf_dir) else 'there'} already. Write {text[1:]}."
    if _options(key, conf_dir):
        return _take_option(changed, text, override, conf_dir)
    if kind == "CHANGE" and missing and not _is_newer(stored, key, conf_dir):
        return f"{text}: {missing}"
    OmegaConf.update(changed, key, override.value(), merge=True, force_add=True)
    return None


def _remove(changed: Any, text: str, override: Any) -> str | None:
    from omegaconf import OmegaConf

    key = override.key_or_group
    there = _value(OmegaConf.to_container(changed, resolve=False), key)
    if override.value() is not None and override.value() != there:
        return f"{text}: {key} is {there}. Write ~{key} to remove it."
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(changed, parent) if parent else changed
    del node[int(name) if OmegaConf.is_list(node) else name]
    return None


def _take_option(changed: Any, text: str, override: Any, conf_dir: Path) -> str | None:
    from omegaconf import OmegaConf

    group = override.key_or_group
    fault = _not_an_option(text, override, _options(group, conf_dir))
    if fault:
        return fault
    path = group.replace("/", ".")
    node = OmegaConf.select(_compose([text], conf_dir), path)
    if node is None:
        return f"{text}: a preset changes many keys. To resume with it, write out those that you mean."
    OmegaConf.update(changed, path, node, merge=False)
    return None


def _is_newer(stored: Any, key: str, conf_dir: Path) -> bool:
    """Whether conf/ has gained that key since the run was started. Arguments of a class do not count."""
    node = stored
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    composed = _composed([], conf_dir)
    if not isinstance(node, dict) or "_target_" in node or composed is None:
        return False
    return _missing(composed, key, conf_dir) is None


def _is_choice(override: Any, conf_dir: Path) -> bool:
    plain = override.type.name == "CHANGE" and not override.is_sweep_override() and override.package is None
    return plain and override.value() in _options(override.key_or_group, conf_dir)


def _options(group: str, conf_dir: Path) -> list[str]:
    """List the options of a group; [] if there is no such group."""
    return sorted(file.stem for file in (conf_dir / group).glob("*.yaml")) if group and group != "." else []


def _groups(conf_dir: Path) -> list[str]:
    return sorted(each.name for each in conf_dir.iterdir() if each.name != "hydra" and _options(each.name, conf_dir))


def _compose(overrides: list[str], conf_dir: Path) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    # Hydra keeps one application for the whole process, and refuses another while train.py's is under way.
    under_way = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir.resolve()), version_base="1.3"):
            return compose(CONFIG_NAME, overrides)
    finally:
        GlobalHydra.instance().hydra = under_way


def _composed(overrides: list[str], conf_dir: Path) -> dict[str, Any] | None:
    """Compose the config without resolving it. None if conf/ itself is broken."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(_compose(overrides, conf_dir), resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError):
        return None
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]  # YAML with other keys than text is refused when it is checked
