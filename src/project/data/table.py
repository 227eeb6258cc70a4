"""Tables of numbers, one column of which is to be predicted: scikit-learn's diabetes, or a CSV file of your own.

Source of the first: Efron, Hastie, Johnstone & Tibshirani 2004, "Least Angle Regression", section 1.
"""

import csv
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from savepoint.errors import ConfigError

Numbers = NDArray[np.float64]
SHOWN = 20  # column names in an error


class Table(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """One split of a table: `inputs` (columns,) and `target` (), float32, and `scale` (), the target's deviation.

    Every column, the target's too, has the mean 0 and the standard deviation 1 over the training rows: those alone, so
    that nothing is known of the validation rows. An error times `scale` is in the target's own units.

    split: "train", "val", or "test", which is empty unless test_fraction sets rows aside.
    inputs, targets: all rows, (rows, columns) and (rows,).
    val_fraction, test_fraction, split_seed: which rows validate and test. They do not depend on the run's seed, so runs
    can be compared.
    """

    def __init__(
        self,
        split: str,
        *,
        inputs: Numbers,
        targets: Numbers,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        rows = split_rows(len(targets), val_fraction, test_fraction, split_seed)
        chosen = rows[split]
        if len(chosen) == 0:
            raise ConfigError("data.dataset.test_fraction=0: no row is set aside for testing. Try 0.2.")
        mean, deviation = moments(inputs[rows["train"]])
        target_mean, scale = moments(targets[rows["train"]])

        self.inputs = torch.from_numpy((inputs[chosen] - mean) / deviation).float()
        self.targets = torch.from_numpy((targets[chosen] - target_mean) / scale).float()
        self.scale = torch.tensor(float(scale))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs[index], self.targets[index], self.scale

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The finished batch: inputs (n, columns), targets (n,), scale ()."""
        chosen = torch.tensor(indices)
        return self.inputs[chosen], self.targets[chosen], self.scale


class Diabetes(Table):
    """442 patients: how far their diabetes went in a year (25..346), from 10 measurements. Ships with scikit-learn."""

    def __init__(
        self, split: str, *, val_fraction: float = 0.2, test_fraction: float = 0.0, split_seed: int = 0
    ) -> None:
        inputs, targets = read_diabetes()
        parts: Any = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": split_seed}
        super().__init__(split, inputs=inputs, targets=targets, **parts)


class Csv(Table):
    """A CSV file: UTF-8, names of columns in its first row, a number in every other cell.

    csv: its path. target: the name of the column to predict; all others are inputs, in their order.
    """

    def __init__(
        self,
        split: str,
        *,
        csv: str | None = None,
        target: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        if csv is None or target is None:
            raise ConfigError("data=csv: which table? Add data.dataset.csv=<path> data.dataset.target=<column>.")
        inputs, targets = read_csv(csv, target)
        parts: Any = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": split_seed}
        super().__init__(split, inputs=inputs, targets=targets, **parts)


@cache
def read_diabetes() -> tuple[Numbers, Numbers]:
    """All measurements (442, 10) and outcomes (442,), in the order of the files.

    Finds scikit-learn without importing it, which would take two seconds. Raises: ConfigError if it is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("Diabetes ships with scikit-learn, which is not installed: pip install scikit-learn")
    folder = Path(package.origin).parent / "datasets" / "data"
    return np.loadtxt(folder / "diabetes_data_raw.csv.gz"), np.loadtxt(folder / "diabetes_target.csv.gz")


def read_csv(file: str, target: str) -> tuple[Numbers, Numbers]:
    """The inputs (rows, columns) and targets (rows,) of a CSV file, in its order; empty lines are skipped.

    Raises: ConfigError that says which file, column or cell is wrong.
    """
    (_, header), *rows = _rows(file)
    if header.count(target) != 1:
        found = f"{header.count(target)} columns {target!r}" if target in header else f"no column {target!r}"
        more = ", …" if len(header) > SHOWN else ""
        raise ConfigError(f"data.dataset.target: {file} has {found}. It has: {', '.join(header[:SHOWN])}{more}.")
    if len(rows) < 2 or len(header) < 2:
        raise ConfigError(
            f"data.dataset.csv: {file} has {len(rows)} rows below its header, and {len(header) - 1} columns beside "
            "the target. At least 2 rows and 1 column are needed."
        )
    table = np.array([_numbers(row, header, place=f"{file}, line {line}") for line, row in rows])
    place = header.index(target)
    return np.delete(table, place, axis=1), table[:, place].copy()


def _rows(file: str) -> list[tuple[int, list[str]]]:
    """Each row that is not empty, with the number of its line, by which it is found again."""
    path = Path(file)
    # Nothing but a file: a device or a pipe could be read for ever.
    if not path.is_file():
        raise ConfigError(f"data.dataset.csv: there is no file {path.absolute()}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"data.dataset.csv: {file} is not a CSV file in UTF-8 that can be read: {error}.") from error
    if not rows:
        raise ConfigError(f"data.dataset.csv: {file} is empty. Its first row must name the columns.")
    return rows


def _numbers(row: list[str], header: list[str], *, place: str) -> list[float]:
    if len(row) != len(header):
        raise ConfigError(f"data.dataset.csv: {place}: {len(row)} cells, and the header has {len(header)}.")
    numbers = []
    for name, cell in zip(header, row, strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"data.dataset.csv: {place}, column {name}: {cell[:40]!r} is not a finite number.")
        numbers.append(number)
    return numbers


def split_rows(rows: int, val_fraction: float, test_fraction: float, split_seed: int) -> dict[str, NDArray[np.int64]]:
    """Indices of the rows of "train", "val" and "test", each shuffled; the first two have one row at least.

    Raises: ConfigError if val_fraction is not between 0 and 1, or test_fraction leaves nothing to train on.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.dataset.val_fraction={val_fraction}: must be between 0 and 1, for example 0.2.")
    if not 0 <= test_fraction < 1 - val_fraction:
        raise ConfigError(
            f"data.dataset.test_fraction={test_fraction}: must be at least 0, and below 1 - val_fraction."
        )
    # RandomState, since NumPy promises its stream for good (NEP 19): the split survives an upgrade.
    order = np.random.RandomState(split_seed).permutation(rows).astype(np.int64)
    cut = min(max(round(rows * val_fraction), 1), rows - 1)
    end = min(cut + round(rows * test_fraction), rows - 1)
    return {"train": order[end:], "val": order[:cut], "test": order[cut:end]}


def moments(values: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of each column; the deviation of a column that never changes is given as 1.

    >>> mean, deviation = moments(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), deviation.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    # Compared, not computed: the deviation of equal numbers may round to something above 0.
    varies = values.max(axis=0) > values.min(axis=0)
    return values.mean(axis=0), np.where(varies, values.std(axis=0), 1.0)
