"""Compose conf/ and overrides with Hydra into a plain config, with every interpolation resolved."""

import textwrap
from pathlib import Path
from typing import Any

# The key of conf/config.yaml that says what to do, and not what to train. No config that is stored has it.
RESUME = "resume"


def resolve(composed: Any) -> dict[str, Any]:
    """Convert a composed DictConfig to plain data, without the key `resume`.

    Raises: OmegaConf's errors for a missing value and for an interpolation that cannot be resolved.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key != RESUME}


HELP = """\
Train a model. Everything is a config: choose an option of a group, or change a
value.

  python train.py optimizer=adam model=cnn trainer.max_epochs=20 seed=1
  python train.py experiment=digits_cnn            a preset
  python train.py -m optimizer=adam,sgd seed=1,2   a sweep
  python resume.py run=latest                      continue where a run stopped

Groups, each with the option that it has if you say nothing, and all options:

{groups}

Config (key=value):

{config}
--cfg job shows the config that a command would train. --hydra-help has the
other flags."""
WIDTH = 80  # columns of a terminal
_NO_COMMENT = ("# @package", "# conf/")


def help_text(overrides: list[str], conf_dir: Path) -> str:
    """Return the text of `--help`. Hydra's own takes a second: it lists the groups of its plugins, twice."""
    import yaml

    defaults = yaml.safe_load((conf_dir / "config.yaml").read_text(encoding="utf-8")).get("defaults", [])
    chosen = {f"{group}={option}" for each in defaults if isinstance(each, dict) for group, option in each.items()}
    undecided = [each.removesuffix("=???") for each in sorted(chosen) if each.endswith("=???")]
    if undecided and not overrides:
        config = f"Nothing yet: conf/config.yaml leaves open {', '.join(undecided)}.\n"
    else:
        composed = compose_unresolved(overrides, conf_dir)
        values = {key: composed[key] if key == RESUME else resolve(composed)[key] for key in composed}
        config = yaml.safe_dump(values, sort_keys=False)
    return HELP.format(groups=_groups(conf_dir, chosen), config=config)


def _groups(conf_dir: Path, chosen: set[str]) -> str:
    """Return a heading for each group of conf/, and a line for each option with what its file says first.

    chosen: `group=option` of each default.
    """
    groups: dict[str, dict[str, str]] = {}
    for path in sorted(conf_dir.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, {})[path.stem] = summary(path)
    lines = []
    for group, options in groups.items():
        default = [f"{group}={option}" for option in options if f"{group}={option}" in chosen]
        lines.append(f"  {default[0] if default else group}")
        width = max(map(len, options))
        for option, text in options.items():
            name = f"    {option:{width}}  "
            lines.append((name + textwrap.shorten(text, max(WIDTH - len(name), 10), placeholder=" …")).rstrip())
    return "\n".join(lines)


def summary(option: Path) -> str:
    """Return the first comment of an option's file, or "". option: a YAML file of conf/.

    Two comments do not count: Hydra's `@package`, and the file's own path, with which files in the docs begin.
    """
    try:
        text = option.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a broken link, or a folder of that name
        return ""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith(_NO_COMMENT)), "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def compose(overrides: list[str], conf_dir: Path) -> dict[str, Any]:
    """Compose the config that these overrides give, without a run. Raises: Hydra's errors."""
    return resolve(compose_unresolved(overrides, conf_dir))


def compose_unresolved(overrides: list[str], conf_dir: Path) -> Any:
    """Compose a config as Hydra's DictConfig, whose interpolations are not resolved yet. Raises: Hydra's errors."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    # Hydra keeps one application in a process, and refuses another while train.py's is under way: a task that looks for
    # a run's weights asks for one then.
    under_way = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir.resolve()), version_base="1.3"):
            return hydra.compose("config", overrides)
    finally:
        GlobalHydra.instance().hydra = under_way
