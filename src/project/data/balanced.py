"""Every class as often as any other, however few samples it has."""

from typing import Any

import numpy as np
from torch.utils.data import WeightedRandomSampler

from savepoint.errors import ConfigError


class Balanced(WeightedRandomSampler):
    """Draws a class, each with the same chance, and then one of its samples. With replacement.

    It draws from torch's global generator, which the engine seeds for each epoch: so there is nothing to save.

    dataset: has `targets`, the class of each sample, as integers.
    samples: how many are drawn in an epoch; None for as many as the data set has.
    """

    def __init__(self, dataset: Any, *, samples: int | None = None) -> None:
        name = type(dataset).__name__
        if not hasattr(dataset, "targets"):
            raise ConfigError(f"data.sampler: {name} has no attribute targets, the class of each sample.")
        targets = np.asarray(dataset.targets)
        if targets.shape != (len(dataset),) or targets.dtype.kind not in "iu":
            raise ConfigError(f"data.sampler: the targets of {name} are no classes: one integer for each sample.")
        classes, sizes = np.unique(targets, return_inverse=True, return_counts=True)[1:]
        super().__init__((1.0 / sizes)[classes].tolist(), len(targets) if samples is None else samples)
