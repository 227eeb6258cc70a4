"""Let the children of a warm process take the default config's files as it has read them: Hydra reads 22 for each run.

A child has them for its own, without a copy, so it takes each one once: its second config is read from the disk, and so
is a file that has changed since.
"""

from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository

from savepoint.config import compose

load = ConfigRepository.load_config


def warm_up(conf: Path) -> None:
    """Compose the default config, which also lets Hydra find its plugins, and keep what is read for it."""
    ready: dict[Any, Any] = {}

    def key(repository: ConfigRepository, name: str) -> Any:
        file = conf / f"{name}.yaml"
        sources = [(source.provider, source.path) for source in repository.get_sources()]
        return name, *sources, file.read_text() if file.is_file() else None

    def keep(repository: ConfigRepository, config_path: str) -> Any:
        ready[key(repository, config_path)] = load(repository, config_path)
        return load(repository, config_path)  # another one, since Hydra writes into what it gets

    def take(repository: ConfigRepository, config_path: str) -> Any:
        return ready.pop(key(repository, config_path), None) or load(repository, config_path)

    ConfigRepository.load_config = keep
    compose(["trainer.max_epochs=1"], conf)
    ConfigRepository.load_config = take
