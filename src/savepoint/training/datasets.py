"""Build a split of the data that the config describes, and its batches."""

import functools
import inspect
from pathlib import Path
from typing import Any

import torch

from savepoint import parallel, system, trust
from savepoint.config import Settings
from savepoint.data import Batches, NoData, Stream, is_stream
from savepoint.errors import ConfigError

LOCK = ".prepare.lock"  # beside src/
PATH = "data.dataset"


def make_batches(
    config: dict[str, Any], settings: Settings, split: str, *, source: Path, device: torch.device, divided: bool = False
) -> Batches | Stream | NoData:
    """Build a split of the data set and its batches.

    split: `train`, `val` or `test`. source: the directory that holds the `project` package.
    divided: whether each rank gets its own part of every batch, where several train.
    Raises: ConfigError for what is no data set, and for a sampler or a collate that does not go with it.
    """
    node, options = config["data"]["dataset"], settings.data
    if node is None:
        assert options.limit_batches is not None  # trust.check_config has seen to that
        return NoData(options.limit_batches if split == "train" else 0)
    dataset = make_dataset(node, split, source=source)
    about: Any = {
        "split": split,
        "settings": options,
        "seed": settings.seed,
        "pin_memory": options.pin_memory and device.type == "cuda",
        "collate": _collate(config["data"].get("collate"), source),
    }
    if divided:
        about |= {"rank": parallel.rank(), "ranks": parallel.count()}
    sampler = config["data"].get("sampler") if split == "train" else None
    if is_stream(dataset):
        if sampler is not None:
            raise ConfigError(
                f"data.sampler: {node['_target_']} is a stream, which has an order of its own. Set it to null."
            )
        return Stream(dataset, **about)
    if not hasattr(dataset, "__len__") or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")):
        raise ConfigError(
            f"{PATH}: {node['_target_']} is no data set. Give it __len__ and __getitem__ (a map-style data set), "
            "or __iter__, state_dict and load_state_dict (a stream)."
        )
    if sampler is not None:
        maker = trust.make({**sampler, "_partial_": True}, path="data.sampler", source=source)
        sampler = trust.call(maker, path="data.sampler", dataset=dataset)
    return Batches(dataset, sampler=sampler, **about)


def make_dataset(node: dict[str, Any], split: str, *, source: Path) -> Any:
    """Build a split of the data set. If its class has `prepare`, that is called first, by one process at a time."""
    maker = trust.make({**node, "_partial_": True}, path=PATH, source=source)
    if (prepare := getattr(maker.func, "prepare", None)) is not None:
        with system.files.locked(source.parent / LOCK):
            trust.call(functools.partial(prepare, **_named(prepare, maker.keywords)), path=PATH)
    return trust.call(maker, path=PATH, split=split)


def _named(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function has parameters for."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def _collate(node: Any, source: Path) -> Any:
    """Build what makes a batch of a list of samples. None stands for torch's default_collate."""
    if node is None:
        return None
    collate = trust.make(node, path="data.collate", source=source)
    if not callable(collate):
        raise ConfigError(
            f"data.collate: {node['_target_']} cannot be called. It has to make a batch of a list of samples."
        )
    return collate


def check_sizes(settings: Settings, train: Batches | Stream | NoData, val: Batches | Stream | NoData) -> None:
    """Check that a batch fits into the training set, and that the validation set is not empty. Raises: ConfigError."""
    # A sampler has a length of its own, which was checked when the order was made.
    if not train.sampled and train.samples is not None and settings.data.batch_size > train.samples:
        raise ConfigError(
            f"data.batch_size={settings.data.batch_size} exceeds the training set ({train.samples} samples). "
            "Lower data.batch_size or raise data.dataset.limit."
        )
    if val.samples == 0:
        raise ConfigError("data.dataset: its validation split is empty.")
