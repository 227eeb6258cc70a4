"""src/project/data/table.py: a table of numbers, standardised by what may be known of it."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from project.data.table import Csv, Diabetes, Table, moments, read_csv, read_diabetes, split_rows
from savepoint.errors import ConfigError

PRICES = "rooms,price,area\n3,100,70\n2,80.5,50\n\n5,3e2,1.5e2\n"


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(PRICES, encoding="utf-8")
    return path


def test_diabetes_is_that_of_scikit_learn() -> None:
    """The digest of `load_diabetes(scaled=False)`, data and target, which takes seconds to import."""
    inputs, targets = read_diabetes()
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((442, 10), np.float64, np.float64)
    found = hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest()
    assert found == "e9c1f7559552854a24dc45b41c446ce5f79f96e5da081bcce24b57492720b3f7"


def test_diabetes_is_read_without_importing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    read_diabetes.cache_clear()
    Diabetes("train")
    assert "sklearn" not in sys.modules


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    read_diabetes.cache_clear()
    with pytest.raises(ConfigError, match=r"^Diabetes ships .* not installed: pip install scikit-learn$"):
        Diabetes("train")


def test_diabetes_is_354_training_and_88_validation_rows() -> None:
    for split, size in (("train", 354), ("val", 88)):
        table = Diabetes(split)
        assert len(table) == size
        inputs, target, scale = table[size - 1]
        assert (inputs.shape, target.shape, scale.shape) == ((10,), (), ())
        assert {inputs.dtype, target.dtype, scale.dtype} == {torch.float32}


def test_a_column_is_standardised_by_the_training_rows_alone() -> None:
    rng = np.random.RandomState(0)
    inputs, targets = rng.normal(5, 3, (50, 2)), rng.normal(-100, 20, 50)
    train, val, _ = split_rows(50, 0.2, 0.0, split_seed=0).values()
    inputs[val] += 1e6  # what validates must leave no trace in the mean
    targets[val] += 1e6
    seen, held = (Table(split, inputs=inputs, targets=targets) for split in ("train", "val"))
    for values in (seen.inputs, seen.targets):
        assert values.double().mean(dim=0).abs().max() < 1e-6
        assert (values.double().std(dim=0, correction=0) - 1).abs().max() < 1e-6
    expected = (inputs[val] - inputs[train].mean(axis=0)) / inputs[train].std(axis=0)
    assert torch.equal(held.inputs, torch.from_numpy(expected).float())
    assert torch.equal(held.scale, seen.scale)


def test_scale_brings_a_target_back_to_its_own_units() -> None:
    _, targets = read_diabetes()
    train = split_rows(len(targets), 0.2, 0.0, split_seed=0)["train"]
    _, standardised, scale = Diabetes("train").__getitems__([0, 1])
    apart = (standardised[1] - standardised[0]) * scale
    assert apart.item() == pytest.approx(targets[train[1]] - targets[train[0]], rel=1e-5)


def test_a_column_that_never_changes_becomes_zero() -> None:
    inputs = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0], [0.1, 4.0]])
    table = Table("train", inputs=inputs, targets=np.arange(4.0), val_fraction=0.25)
    # 0.1 is no binary fraction: the computed deviation of equal numbers need not be 0.
    assert table.inputs[:, 0].abs().max() < 1e-12
    assert moments(np.full((7, 1), 0.1))[1].tolist() == [1.0]


def test_a_fetched_batch_equals_its_rows_stacked() -> None:
    table, indices = Diabetes("train"), [5, 0, 353, 5]
    inputs, targets, scale = table.__getitems__(indices)
    assert torch.equal(inputs, torch.stack([table[index][0] for index in indices]))
    assert torch.equal(targets, torch.stack([table[index][1] for index in indices]))
    assert torch.equal(scale, table[0][2])


@pytest.mark.parametrize("val_fraction", [0.01, 0.2, 0.99])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("rows", [2, 3, 442])
def test_splits_are_disjoint_complete_and_never_empty(rows: int, val_fraction: float, share: float) -> None:
    splits = split_rows(rows, val_fraction, share * (1 - val_fraction), split_seed=0)
    assert sorted(row for each in splits.values() for row in each) == list(range(rows))
    assert len(splits["train"]) and len(splits["val"])
    assert np.array_equal(splits["val"], split_rows(rows, val_fraction, 0.0, split_seed=0)["val"])


def test_split_depends_on_its_own_seed_and_nothing_else() -> None:
    np.random.seed(1)
    train, val, _ = split_rows(442, 0.2, 0.0, split_seed=0).values()
    np.random.seed(2)
    assert np.array_equal(val, split_rows(442, 0.2, 0.0, split_seed=0)["val"])
    assert not np.array_equal(val, split_rows(442, 0.2, 0.0, split_seed=1)["val"])
    # Pinned: another split would make old runs and new ones incomparable.
    assert train[:8].tolist() == [52, 74, 26, 45, 389, 154, 4, 386]
    assert val[:8].tolist() == [362, 249, 271, 435, 400, 403, 12, 399]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_file_gives_its_numbers_with_the_target_taken_out(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(mark + PRICES, encoding="utf-8")
    inputs, targets = read_csv(str(path), "price")
    assert inputs.tolist() == [[3, 70], [2, 50], [5, 150]]
    assert targets.tolist() == [100, 80.5, 300]
    assert read_csv(str(path), "rooms")[1].tolist() == [3, 2, 5]


def test_a_csv_file_becomes_a_table(prices: Path) -> None:
    train, val = (Csv(split, csv=str(prices), target="price") for split in ("train", "val"))
    assert (len(train), len(val), train[0][0].shape) == (2, 1, (2,))


def refusal(text: str | bytes, tmp_path: Path, target: str = "y") -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        Csv("train", csv=str(path), target=target)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "table.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,z\n1,2\n3,4\n", "data.dataset.target: table.csv has no column 'y'. It has: x, z."),
        ("x,y,y\n1,2,3\n", "data.dataset.target: table.csv has 2 columns 'y'. It has: x, y, y."),
        ("x,y\n1,2\n3,many\n", "data.dataset.csv: table.csv, line 3, column y: 'many' is not a finite number."),
        ("x,y\n1,2\n,4\n", "data.dataset.csv: table.csv, line 3, column x: '' is not a finite number."),
        ("x,y\nnan,2\n3,4\n", "data.dataset.csv: table.csv, line 2, column x: 'nan' is not a finite number."),
        ("x,y\n1,2\n3\n", "data.dataset.csv: table.csv, line 3: 1 cells, and the header has 2."),
        ("", "data.dataset.csv: table.csv is empty. Its first row must name the columns."),
        ("\n\n", "data.dataset.csv: table.csv is empty. Its first row must name the columns."),
        (
            "x,y\n",
            "data.dataset.csv: table.csv has 0 rows below its header, and 1 columns beside the target. At least 2",
        ),
        (
            "y\n1\n2\n",
            "data.dataset.csv: table.csv has 2 rows below its header, and 0 columns beside the target. At least",
        ),
        (
            "größe,y\n1,2\n".encode("latin-1"),
            "data.dataset.csv: table.csv is not a CSV file in UTF-8 that can be read: ",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal(text, tmp_path).startswith(message)


def test_a_cell_is_found_again_by_its_line_where_others_are_empty(tmp_path: Path) -> None:
    assert "line 4, column y: 'b'" in refusal("x,y\n\n1,2\n3,b\n", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "data=csv: which table? Add data.dataset.csv=<path> data.dataset.target=<column>."),
        ({"csv": "a.csv"}, "data=csv: which table? Add data.dataset.csv=<path> data.dataset.target=<column>."),
        ({"csv": "/nowhere/a.csv", "target": "y"}, "data.dataset.csv: there is no file /nowhere/a.csv."),
        ({"csv": "/dev/null", "target": "y"}, "data.dataset.csv: there is no file /dev/null."),
    ],
)
def test_a_missing_table_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Csv("train", **arguments)
    assert str(error.value) == message


def test_mistakes_in_the_config_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^data\.dataset\.test_fraction=0: no row is set aside for testing"):
        Diabetes("test")
    with pytest.raises(ConfigError, match=r"^data\.dataset\.test_fraction=-1: must be at least 0"):
        Diabetes("test", test_fraction=-1)
    with pytest.raises(ConfigError, match=r"^data\.dataset\.val_fraction=1\.0: must be between 0 and 1, for example 0"):
        Diabetes("val", val_fraction=1.0)
