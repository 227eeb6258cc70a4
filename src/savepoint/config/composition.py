"""Compose conf/ and overrides with Hydra into a plain config, with every interpolation resolved."""

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
Train a model. Everything is a config: choose an option of a group, or change a value.

  python train.py optimizer=adam model=cnn trainer.max_epochs=20 data.batch_size=128 seed=1
  python train.py experiment=digits_cnn            a preset
  python train.py -m optimizer=adam,sgd seed=1,2   a sweep
  python resume.py run=latest                      continue where a run stopped

Groups and their options (group=option):

{groups}

Config (key=value):

{config}
--cfg job shows the config that a command would train. --hydra-help has the other flags."""


def help_text(overrides: list[str], conf_dir: Path) -> str:
    """Return the text of `--help`. Hydra's own takes a second, most of it to list its plugins' groups twice."""
    import yaml

    options: dict[str, list[str]] = {}
    for path in sorted(conf_dir.glob("*/*.yaml")):
        options.setdefault(path.parent.name, []).append(path.stem)
    composed = _compose(overrides, conf_dir)
    config = {key: composed[key] if key == RESUME else resolve(composed)[key] for key in composed}
    groups = "\n".join(f"  {group}: {', '.join(names)}" for group, names in options.items())
    return HELP.format(groups=groups, config=yaml.safe_dump(config, sort_keys=False))


def compose(overrides: list[str], conf_dir: Path) -> dict[str, Any]:
    """Compose the config that these overrides give, without a run. Raises: Hydra's errors."""
    return resolve(_compose(overrides, conf_dir))


def _compose(overrides: list[str], conf_dir: Path) -> Any:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    # train.py runs inside of Hydra, which can be entered only once: a task that looks for a run's weights is in there.
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir), version_base="1.3"):
            return hydra.compose("config", overrides)
    finally:
        GlobalHydra.instance().hydra = around
