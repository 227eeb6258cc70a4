"""Check a whole config before torch is imported, and report all faults together."""

import re
from pathlib import Path
from typing import Any

from savepoint.config import Settings, by_name, read_settings
from savepoint.errors import ConfigError
from savepoint.trust.package import package
from savepoint.trust.policy import check_values
from savepoint.trust.text import join_path

# Every group of conf/ that a run is made of, each with an option to suggest where the group is missing.
GROUPS = {
    "model": "mlp",
    "data": "digits",
    "task": "classification",
    "optimizer": "adamw",
    "scheduler": "none",
    "amp": "none",
    "trainer": "default",
    "checkpoint": "default",
    "tracker": "none",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # an optimizer's name, which becomes part of the names of metrics
# Nodes that name a class, each with a class of the project to suggest where the name is missing.
CLASSES = {
    "model": "models.mlp.Mlp",
    "data.dataset": "data.digits.Digits",
    "data.sampler": "data.balanced.Balanced",
    "data.collate": "data.padded.Padded",
    "task": "tasks.classification.Classification",
}
OPTIONAL = ("data.sampler", "data.collate")
# Groups that name one class, or several by name. The engine adds an argument when it builds such a class.
PARTIAL = {"optimizer": "torch.optim.AdamW", "scheduler": "torch.optim.lr_scheduler.StepLR"}


def check_config(config: dict[str, Any], *, source: Path) -> Settings:
    """Check values, groups, settings and classes of a config, and return its settings.

    A fresh config and the config of a checkpoint are checked alike, so a run that was allowed to start can be resumed.

    config: plain data, every interpolation resolved. source: the directory that holds the project's own package.
    Raises: ConfigError with one line for each fault.
    """
    faults = check_values(config, source=source) or _missing_groups(config)
    if faults:
        raise ConfigError("\n".join(faults))
    settings, faults = read_settings(config)
    faults += _missing_classes(config, source)
    if settings is None or faults:
        raise ConfigError("\n".join(faults))
    return settings


def _missing_groups(config: dict[str, Any]) -> list[str]:
    return [
        f"{group}: the config needs this group, and has {'none' if config.get(group) is None else 'a value instead'}. "
        f"Choose one of its options, for example {group}={option}."
        for group, option in GROUPS.items()
        if not isinstance(config.get(group), dict)
    ]


def _missing_classes(config: dict[str, Any], source: Path) -> list[str]:
    """Return a line for each node that does not name the class that it must name, or lacks `_partial_: true`."""
    faults = []
    for path, example in CLASSES.items():
        group, _, key = path.partition(".")
        node = config[group].get(key) if key else config[group]
        if node is None and path in OPTIONAL:
            continue
        if node is None and path == "data.dataset" and config["data"].get("limit_batches") is not None:
            continue  # no data
        faults += _missing_class(node, path, f"{package(source)}.{example}")
    for group, example in PARTIAL.items():
        for name, node in by_name(config[group]).items():
            path = join_path(group, name) if name else group
            faults += _missing_class(node, path, example, partial=True, optional=group == "scheduler")
            if group == "optimizer" and node.get("fallback") is not None:
                faults += _missing_class(node["fallback"], f"{path}.fallback", example, partial=True)
            if name and not NAME.fullmatch(name):
                faults.append(f"{path}: a name has letters, digits and _ only, and begins with a letter.")
    optimizers, schedulers = by_name(config["optimizer"]), by_name(config["scheduler"])
    if "" not in schedulers and (unknown := sorted(schedulers.keys() - optimizers.keys())):
        names = ", ".join(sorted(optimizers)) if "" not in optimizers else "without a name"
        faults.append(f"scheduler.{unknown[0]}: there is no optimizer of that name. The config's optimizers: {names}.")
    if "" in schedulers and schedulers[""].get("_target_") is None:
        faults += [
            f"{join_path('scheduler', key)}: would have no effect beside scheduler._target_=null, which is for all "
            "optimizers. Write a file in conf/scheduler/ that has those with names alone: see docs/recipes/rates.md."
            for key, value in schedulers[""].items()
            if isinstance(value, dict) and "_target_" in value
        ]
    return faults


def _missing_class(
    node: object, path: str, example: str, *, partial: bool = False, optional: bool = False
) -> list[str]:
    if not isinstance(node, dict) or "_target_" not in node or (node["_target_"] is None and not optional):
        none = ", or null for no schedule" if optional else ""
        return [f"{path}: needs a _target_, the class to build, for example {example}{none}."]
    if partial and node["_target_"] is not None and node.get("_partial_") is not True:
        return [f"{path}._partial_: must be true, because the engine adds an argument when it builds it."]
    return []
