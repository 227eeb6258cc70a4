"""Handwritten digits: 1,797 real images of 8 x 8 pixels in 10 classes, which ship with scikit-learn.

Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits".
"""

import importlib.util
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from savepoint.errors import ConfigError

# Where a shifted image is cut from its margin of one pixel (rows down, columns right): unmoved, or one pixel to a side.
CORNERS = np.array([(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)])
DARKEST = 0.8


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """One split of the digits: `inputs` (8, 8) float32 in 0..1, `target` () int64 in 0..9.

    split: "train" (1,437 images), "val" (360), or "test", which is empty unless test_fraction sets images aside.
    augment: shift, dim and erase training images at random. Validation images never change.
    limit: keep only the first `limit` samples of each split; None keeps all.
    val_fraction, test_fraction, split_seed: which images validate and test. They do not depend on the run's seed, so
    runs can be compared.
    """

    def __init__(
        self,
        split: str,
        *,
        augment: bool = False,
        limit: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"data.dataset.limit={limit}: must be at least 1, or null for all samples.")
        images, targets = read_digits()
        chosen = split_indices(targets, val_fraction, test_fraction, split_seed)[split][:limit]
        if len(chosen) == 0:
            raise ConfigError("data.dataset.test_fraction=0: no image is set aside for testing. Try 0.2.")

        self.augment = augment and split == "train"
        self.images = images[chosen]
        self.targets = targets[chosen]
        # The nine crops of each image with a margin of one empty pixel, (n, 3, 3, 8, 8): a view, not nine copies.
        self.crops = sliding_window_view(np.pad(self.images, ((0, 0), (1, 1), (1, 1))), (8, 8), axis=(1, 2))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The finished batch: inputs (n, 8, 8), targets (n,).

        One index operation for the whole batch. Sample by sample, fetching and collating cost as much as the
        training step of a small model.
        """
        chosen = np.array(indices)
        images = self.augmented(chosen) if self.augment else self.images.take(chosen, axis=0)
        return torch.from_numpy(images), torch.from_numpy(self.targets.take(chosen))

    def augmented(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """The chosen images, each shifted by at most one pixel, dimmed by up to a fifth, with one pixel erased.

        Draws from torch, NumPy and `random`, to show that any of them will do: the engine seeds all three for each
        batch, so an augmentation depends neither on the number of workers nor on where a run was interrupted.
        Returns: (n, 8, 8), a new array.
        """
        n = len(chosen)
        down, right = CORNERS[torch.randint(len(CORNERS), (n,)).numpy()].T
        images: NDArray[np.float32] = self.crops[chosen, down, right]
        images *= np.random.uniform(DARKEST, 1.0, (n, 1, 1)).astype(np.float32)
        erased = np.array(random.choices(range(64), k=n))
        images[np.arange(n), erased // 8, erased % 8] = 0.0
        return images


@cache
def read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images (1797, 8, 8) in 0..1 and their classes (1797,), in the order of the file.

    Finds scikit-learn without importing it, which would take two seconds. Raises: ConfigError if it is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("The digits ship with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # each row: 64 pixels of 0..16, then the class
    return (table[:, :64] / 16).astype(np.float32).reshape(-1, 8, 8), table[:, 64].copy()


def split_indices(
    targets: NDArray[np.int64], val_fraction: float, test_fraction: float, split_seed: int
) -> dict[str, NDArray[np.int64]]:
    """Indices of the samples of "train", "val" and "test", each shuffled, with every class in proportion.

    Sorted by class, every 1/val_fraction-th sample validates, and of the others as many test as test_fraction asks
    for: so each class gives its share, to within one sample.
    Raises: ConfigError if val_fraction is not between 0 and 1, or test_fraction leaves nothing to train on.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.dataset.val_fraction={val_fraction}: must be between 0 and 1, for example 0.2.")
    if not 0 <= test_fraction < 1 - val_fraction:
        raise ConfigError(
            f"data.dataset.test_fraction={test_fraction}: must be at least 0, and below 1 - val_fraction."
        )
    # RandomState, since NumPy promises its stream for good (NEP 19): the split survives an upgrade.
    order = np.random.RandomState(split_seed).permutation(len(targets))
    by_class = order[np.argsort(targets[order], kind="stable")]
    validates = _every(by_class, val_fraction, of=len(targets))
    tests = _every(by_class[~validates[by_class]], test_fraction / (1 - val_fraction), of=len(targets))
    chosen = {"train": ~(validates | tests), "val": validates, "test": tests}
    return {split: order[each[order]] for split, each in chosen.items()}


def _every(indices: NDArray[np.int64], share: float, *, of: int) -> NDArray[np.bool_]:
    """Mark every 1/share-th of the indices, the first one among them. Returns: (of,), for all samples."""
    marked = np.zeros(of, dtype=bool)
    marked[indices] = np.diff(np.ceil(np.arange(len(indices) + 1) * share)) > 0
    return marked
