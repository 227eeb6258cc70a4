"""From conf/ to a plain config: composed by Hydra, every interpolation resolved, nothing left of OmegaConf."""

from pathlib import Path
from typing import Any


def plain(composed: Any) -> dict[str, Any]:
    """A composed DictConfig as plain data. Raises: OmegaConf's errors for what cannot be resolved or is missing."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def compose(overrides: list[str], conf_dir: Path) -> dict[str, Any]:
    """The config that these overrides give, without a run. Raises: Hydra's errors."""
    import hydra

    with hydra.initialize_config_dir(str(conf_dir), version_base="1.3"):
        return plain(hydra.compose("config", overrides))
