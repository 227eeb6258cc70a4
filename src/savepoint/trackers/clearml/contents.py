"""Names, points and pictures in the form in which ClearML keeps them. ClearML is not imported."""

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from savepoint.trackers.points import Point

# Tags by which a task is found again.
RUN, SWEEP = "run {}", "sweep {}"
# Sections of a task's hyper-parameters: the config, the data sets, and the user properties.
CONFIG, DATA, OWN = "config", "datasets", "properties"


def allowed(text: str) -> str:
    """Return a name that a server takes: at least three characters, and no lone surrogates.

    >>> allowed("lr"), allowed("cnn adam"), allowed("a\\ud800b")
    ('lr_', 'cnn adam', 'a?b')
    """
    return text.strip().encode("utf-8", "replace").decode().ljust(3, "_")


def normalised(key: str) -> str:
    """Return a metric's key in the form that can be rebuilt from ClearML's two names for the metric (see `split`).

    >>> normalised("train/loss"), normalised("lr"), normalised("/a//b/"), normalised("")
    ('train/loss', 'lr/lr', 'a/b', '_/_')
    """
    parts = [part for part in key.encode("utf-8", "replace").decode().split("/") if part] or ["_"]
    return "/".join(parts if parts[1:] else parts * 2)


def split(key: str) -> tuple[str, str]:
    """Return ClearML's metric and variant: train/loss and val/loss are two lines in one picture called loss.

    >>> split("train/loss")
    ('loss', 'train')
    """
    variant, _, metric = normalised(key).rpartition("/")
    return metric, variant


def scalars(points: Iterable[Point]) -> Iterator[dict[str, Any]]:
    """Yield points as ClearML's events, without nan and inf: ClearML cannot store them, and its SDK would write 0.

    >>> [*scalars([Point("val/loss", 7, 0.5, 1500), Point("val/loss", 8, float("nan"), 1600)])]
    [{'metric': 'loss', 'variant': 'val', 'value': 0.5, 'iter': 7, 'timestamp': 1500}]
    """
    for point in points:
        if math.isfinite(point.value):
            metric, variant = split(point.key)
            event = {"metric": metric, "variant": variant, "value": point.value}
            yield event | {"iter": point.step, "timestamp": point.milliseconds}


def picture(file: Path, folder: str) -> dict[str, Any] | None:
    """Return a plot that holds a PNG file's picture, so that it outlives the file. Return None for any other file.

    folder: figures/<name> for a figure, whose file name ends with the step; empty for loss.png.
    """
    if file.suffix != ".png":
        return None
    digits, title = file.stem.rpartition("_")[2], folder.removeprefix("figures/") or file.stem
    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    step = int(digits) if digits.isdecimal() else 0
    stamp = int(file.stat().st_mtime * 1000)
    return {"metric": title, "variant": title, "source": source, "iter": step, "timestamp": stamp}


def artifact(path: str, file: Path, uri: str) -> dict[str, Any]:
    """Return the entry of a file in a task's list of artifacts. path: the entry's name."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        size, stamp = file.stat().st_size, int(file.stat().st_mtime)
    facts = {"hash": digest, "content_size": size, "timestamp": stamp}
    return {"key": path, "type": "custom", "mode": "output", "uri": uri, **facts}


def params(section: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    """Return hyper-parameters of a section.

    >>> params("config", {"seed": "1"})
    [{'section': 'config', 'name': 'seed', 'value': '1', 'type': 'str'}]
    """
    clean = {key: text.encode("utf-8", "replace").decode() for key, text in values.items()}
    return [{"section": section, "name": key, "value": text, "type": "str"} for key, text in clean.items()]


def own(order: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's user properties: its ids, directory, parents and tags."""
    facts = {"run_id": order["run_id"], "run_dir": order["run_dir"], "ended": ""}
    if start["parents"]:
        facts["parents"] = ",".join(start["parents"])
    return {key.removeprefix("mlflow."): text for key, text in start["tags"].items()} | facts


def datasets(given: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return one line for each data set, by the name of its split.

    >>> data = {"name": "digits", "split": "train", "source": "a.Digits", "samples": 7, "digest": "01ab"}
    >>> datasets([data, data | {"split": "val", "samples": None, "digest": None}])
    {'train': 'digits, 7 samples, SHA-256 01ab (a.Digits)', 'val': 'digits (a.Digits)'}
    """
    lines = {}
    for each in given:
        facts = [each["name"]]
        facts += [f"{each['samples']} samples"] if each["samples"] is not None else []
        facts += [f"SHA-256 {each['digest']}"] if each["digest"] else []
        lines[each["split"]] = f"{', '.join(facts)} ({each['source']})"
    return lines


def at(seconds: float) -> str:
    """Return a time as text in ISO 8601. seconds: since 1970.

    >>> at(1.5)
    '1970-01-01T00:00:01.500000+00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
