"""Describe a run as a tracker shows it besides its values: title, params, tags, and the data that it was trained on."""

import contextlib
import getpass
import re
from collections.abc import Mapping, Sequence
from typing import Any

from savepoint.config import flatten
from savepoint.runs.directory import Run
from savepoint.trackers import Dataset

# Groups and keys whose overrides say nothing about what is trained.
_ASIDE = ("tracker", "hydra", "name", "resume")
_LIMIT = 80  # characters of a title


def title(name: str | None, overrides: Sequence[str], choices: Mapping[str, str]) -> str:
    """Name a run or a sweep for people: by its own name, else by what was typed, else by model and optimizer.

    choices: the option chosen in each group of conf/. Returns: at most 80 characters; "" if nothing is known.

    >>> title(None, ["model=cnn", "optimizer=adam", "optimizer.lr=0.01", "tracker=none"], {"model": "cnn"})
    'cnn optimizer=adam lr=0.01'
    """
    typed = [each.partition("=") for each in overrides]
    relevant = [
        (key.lstrip("+~"), value) for key, _, value in typed if re.split(r"[./]", key.lstrip("+~"))[0] not in _ASIDE
    ]
    ends = [key.rpartition(".")[2] for key, _ in relevant]
    words = []
    for key, value in relevant:
        end = key.rpartition(".")[2]
        words.append(value if key in choices else f"{end if ends.count(end) == 1 else key}={value}")
    chosen = [choices[group] for group in ("model", "optimizer") if group in choices]
    text = " ".join((name or " ".join(words) or " ".join(chosen)).split())
    return text if len(text) <= _LIMIT else text[: _LIMIT - 2] + " …"


def describe(run: Run, config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments `name`, `params`, `tags`, `parents` and `datasets` of `Tracker.start`.

    config: the run's. source: the provenance of this process, or of a checkpoint; {} if there is none.
    """
    record = run.record
    choices = {group: str(option) for group, option in (record.get("choices") or {}).items()}
    words = title(record["name"], [] if record.get("forked_from") else record["overrides"], choices)
    if record.get("forked_from") and not record["name"]:
        words = f"fork of {record['forked_from']['run']} {title(None, record['overrides'], choices)}"
    commands = record.get("commands") or []
    tags = choices | _tags(source)
    if commands:
        tags["command"] = commands[0]["command"]
    if len(commands) > 1:
        tags["savepoint.resumed"] = "\n".join(f"{each['time'][:19]}Z {each['command']}" for each in commands[1:])
    return {
        "name": words or None,
        "params": choices | flatten(config),
        "tags": tags,
        "parents": record["parents"],
        "datasets": _datasets(config, choices, source.get("data")),
    }


def _tags(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a provenance, in MLflow's own names where its page shows and links those."""
    if not source:
        return {}
    git = source["git"]
    tags = {f"git.{key}": str(value) for key, value in git.items() if value is not None}
    tags |= {"command": source["command"], "mlflow.source.name": "train.py"}
    if git["commit"] is not None:
        tags["mlflow.source.git.commit"] = git["commit"]
    with contextlib.suppress(KeyError, OSError, ImportError):  # a container may run as a user without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _datasets(config: Mapping[str, Any], choices: Mapping[str, str], found: Any) -> list[Dataset]:
    """Return a data set for each split. found: the fingerprints in a provenance, by split; format 1 may lack them."""
    if not isinstance(found, dict):
        return []
    dataset = (config.get("data") or {}).get("dataset") or {}
    target = str(dataset.get("_target_", ""))
    name = choices.get("data") or target.rpartition(".")[2] or "data"
    return [
        Dataset(name, split, target, facts.get("samples"), facts.get("sha256"))
        for split, facts in found.items()
        if isinstance(facts, dict)
    ]
