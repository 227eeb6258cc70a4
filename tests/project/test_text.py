"""src/project/data/text.py: a text as windows of bytes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from project.data.text import Text, read_manual
from savepoint.errors import ConfigError

ABC = bytes(range(104))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "abc.txt"
    path.write_bytes(ABC)
    return str(path)


def test_the_manual_is_half_a_megabyte_of_english() -> None:
    text = read_manual().tobytes().decode()
    assert len(text) > 400_000
    assert "indentation" in text
    assert text.count(" the ") > 3000
    assert len(text.encode()) / len(text) < 1.01, "a byte is a character, nearly always"


def test_targets_are_the_bytes_that_follow(file: str) -> None:
    text = Text("train", file=file, context=10, shift=False, val_fraction=0.5)
    inputs, targets = text[0]
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert bytes(inputs.tolist()) == ABC[:10]
    assert bytes(targets.tolist()) == ABC[1:11]


def test_windows_lie_side_by_side_and_miss_no_more_than_the_end(file: str) -> None:
    text = Text("train", file=file, context=10, shift=False, val_fraction=0.5)
    assert len(text) == 5
    inputs, targets = text.__getitems__(list(range(5)))
    assert bytes(inputs.flatten().tolist()) == ABC[:50]
    assert bytes(targets.flatten().tolist()) == ABC[1:51]
    # 50 bytes: the last window would have no successor for its last byte.
    assert len(Text("train", file=file, context=10, val_fraction=54 / 104)) == 4


def test_the_beginning_trains_and_the_end_validates(file: str) -> None:
    train, val = (Text(split, file=file, context=3, shift=False, val_fraction=0.25) for split in ("train", "val"))
    assert bytes(train.windows[0].tolist()) == ABC[:4]
    assert bytes(train.windows[-1].tolist()) == ABC[74:78]
    assert bytes(val.windows[0].tolist()) == ABC[78:82]
    assert bytes(val.windows[-1].tolist()) == ABC[-4:]


def test_training_windows_move_at_random_and_repeat_under_the_same_seed(file: str) -> None:
    text, every = Text("train", file=file, context=10, val_fraction=0.1), list(range(9))
    torch.manual_seed(3)
    first = text.__getitems__(every)
    assert not torch.equal(first[0], text.__getitems__(every)[0])
    torch.manual_seed(3)
    again = text.__getitems__(every)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_moved_windows_stay_within_the_text_and_reach_both_ends(file: str) -> None:
    text = Text("train", file=file, context=10, val_fraction=0.5)
    torch.manual_seed(0)
    starts, ends = set(), set()
    for _ in range(200):
        inputs, targets = text.__getitems__([0, 4])
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        starts.add(int(inputs[0, 0]))
        ends.add(bytes(targets[1].tolist()))
    assert starts == set(range(10))
    assert ends == {ABC[41:51], ABC[42:52]}, "52 bytes train: the last window can only move by one"


def test_validation_windows_never_move(file: str) -> None:
    text, torch_before = Text("val", file=file, context=5, shift=True, val_fraction=0.5), torch.get_rng_state()
    numpy_before, random_before = str(np.random.get_state()), random.getstate()
    assert torch.equal(text.__getitems__([0, 1])[0], text.__getitems__([0, 1])[0])
    assert torch.equal(torch_before, torch.get_rng_state())
    assert (numpy_before, random_before) == (str(np.random.get_state()), random.getstate())


def test_a_fetched_batch_equals_its_windows_stacked() -> None:
    text, indices = Text("val"), [5, 0, 77, 5]
    inputs, targets = text.__getitems__(indices)
    assert torch.equal(inputs, torch.stack([text[index][0] for index in indices]))
    assert torch.equal(targets, torch.stack([text[index][1] for index in indices]))
    assert inputs.is_contiguous() and targets.is_contiguous()


def test_a_changed_batch_leaves_the_text_alone(file: str) -> None:
    text = Text("val", file=file, context=5, val_fraction=0.5)
    first = text.__getitems__([0, 1])[0].clone()
    text.__getitems__([0, 1])[0].zero_()
    assert torch.equal(first, text.__getitems__([0, 1])[0])


def test_any_bytes_are_a_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 2)
    text = Text("train", file=str(path), context=255, shift=False, val_fraction=0.4)
    assert text[0][0].tolist() == list(range(255))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "data.dataset.test_fraction=0: no text is set aside for testing. Try 0.1."),
        (
            {"split": "test", "test_fraction": 0.9},
            "data.dataset.test_fraction=0.9: must be at least 0, and below 1 - val",
        ),
        ({"split": "val", "context": 0}, "data.dataset.context=0: must be at least 1."),
        ({"split": "val", "val_fraction": 0}, "data.dataset.val_fraction=0: must be between 0 and 1, for example 0.1."),
        ({"split": "val", "file": "/nowhere/a.txt"}, "data.dataset.file: there is no file /nowhere/a.txt."),
        ({"split": "val", "file": "/dev/null"}, "data.dataset.file: there is no file /dev/null."),
        ({"split": "val", "context": 10**6}, "data.dataset.file: the manual is too short: its val split has "),
    ],
)
def test_mistakes_in_the_config_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Text(**arguments)
    assert str(error.value).startswith(message)


def test_a_text_that_is_too_short_for_one_window_says_how_long_it_is(file: str) -> None:
    with pytest.raises(ConfigError) as error:
        Text("val", file=file, context=10)
    assert str(error.value) == (
        f"data.dataset.file: {file} is too short: its val split has 10 bytes, and a window of data.dataset.context=10 "
        "needs 11. Lower data.dataset.context."
    )
    assert len(Text("val", file=file, context=9)) == 1


def test_a_python_without_its_manual_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.data.text.importlib.util.find_spec", lambda name: None)
    read_manual.cache_clear()
    with pytest.raises(
        ConfigError, match=r"^data=text: this Python has no pydoc_data\. Give a text: data\.dataset\.fi"
    ):
        Text("train")
