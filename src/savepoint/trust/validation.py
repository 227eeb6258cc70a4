"""Whether a config can be trained: every fault that shows without importing torch, reported together."""

from pathlib import Path
from typing import Any

from savepoint.config import Settings, read_settings
from savepoint.errors import ConfigError
from savepoint.trust.policy import check_values

# Where a config names the class that it is about; it may go without the second ones.
CLASSES = ("model", "data.dataset", "task", "optimizer")
OPTIONAL = ("data.sampler",)


def check_config(config: dict[str, Any], *, source: Path) -> Settings:
    """A fresh config and a loaded one alike: what could not be resumed cannot be started.

    source: the directory that holds the `project` package. Raises: ConfigError with one line for each fault.
    """
    faults = check_values(config, source=source)
    read, more = read_settings(config) if not faults else (None, [])
    faults += more + ([] if faults else _missing_classes(config))
    if read is None or faults:
        raise ConfigError("\n".join(faults))
    return read


def _missing_classes(config: dict[str, Any]) -> list[str]:
    faults = []
    for path in (*CLASSES, *OPTIONAL):
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if node is None and path in OPTIONAL:
            continue
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            faults.append(f"{path}: needs a _target_, the class to build, for example {EXAMPLES[path]}.")
    for path in ("optimizer", "scheduler"):
        node = config.get(path)
        if isinstance(node, dict) and node.get("_target_") is not None and node.get("_partial_") is not True:
            faults.append(f"{path}._partial_: must be true: the engine adds what it is built on.")
    return faults


EXAMPLES = {
    "model": "project.models.mlp.Mlp",
    "data.dataset": "project.data.digits.Digits",
    "data.sampler": "project.data.balanced.Balanced",
    "task": "project.tasks.classification.Classification",
    "optimizer": "torch.optim.AdamW",
}
