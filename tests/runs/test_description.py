"""What a tracker shows of a run: a title that people recognise, its choices, its commands, its data."""

from pathlib import Path
from typing import Any

import pytest

from savepoint import runs
from savepoint.trackers import Dataset

CHOICES = {"model": "cnn", "optimizer": "adam", "data": "digits"}
TITLES = [
    (["model=cnn", "optimizer=adam", "optimizer.lr=0.01"], "cnn adam lr=0.01"),
    ([], "cnn adam"),
    (["tracker=none", "tracker.uri=x", "hydra.run.dir=/a", "resume=auto"], "cnn adam"),
    (["optimizer.lr=1", "task.lr=2"], "optimizer.lr=1 task.lr=2"),
    (["+model.width=3", "~scheduler"], "width=3 scheduler="),
    (["init_from=a1@best"], "init_from=a1@best"),
    (["data.dataset.text='two\nlines'"], "text='two lines'"),
]


@pytest.mark.parametrize(("overrides", "words"), TITLES, ids=[words for _, words in TITLES])
def test_a_title_is_what_was_typed(overrides: list[str], words: str) -> None:
    assert runs.title(None, overrides, CHOICES) == words


def test_a_name_comes_first_and_a_long_title_is_cut() -> None:
    assert runs.title("mine", ["model=cnn"], CHOICES) == "mine"
    words = runs.title(None, [f"model.key{number}=1" for number in range(99)], CHOICES)
    assert len(words) == 80 and words.endswith(" …")


def made(directory: Path, **record: Any) -> runs.Run:
    given = {"id": "ab12cd34", "name": None, "config": "", "overrides": ["optimizer.lr=0.1"], "choices": CHOICES}
    return runs.create(directory, **{**given, **record})


def test_a_fork_is_called_after_its_parent(tmp_path: Path) -> None:
    fork = made(tmp_path / "fork", forked_from={"run": "parent01", "checkpoint": "x", "sha256": "0"})
    assert runs.describe(fork, {}, {})["name"] == "fork of parent01 lr=0.1"
    assert runs.describe(made(tmp_path / "named", name="mine"), {}, {})["name"] == "mine"


def test_choices_are_tags_and_params_beside_the_config(tmp_path: Path) -> None:
    found = runs.describe(made(tmp_path / "run"), {"model": {"_target_": "a.B"}}, {})
    assert found["params"] == CHOICES | {"model._target_": "a.B"} and found["tags"] == CHOICES


def test_the_first_command_is_kept_and_the_others_are_a_history(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    times = ["2026-01-01T00:00:00.000001+00:00", "2026-01-02T00:00:00.000001+00:00"]
    run.update(commands=[{"time": times[0], "command": "train.py a=1"}, {"time": times[1], "command": "resume.py"}])
    tags = runs.describe(run, {}, {"git": {"commit": None}, "command": "resume.py"})["tags"]
    assert tags["command"] == "train.py a=1" and tags["savepoint.resumed"] == "2026-01-02T00:00:00Z resume.py"


def test_the_data_have_their_size_and_digest(tmp_path: Path) -> None:
    config = {"data": {"dataset": {"_target_": "project.data.digits.Digits"}}}
    source = {"git": {"commit": None}, "command": "x", "data": {"train": {"samples": 3, "sha256": "ab"}, "val": None}}
    found = runs.describe(made(tmp_path / "run"), config, source)["datasets"]
    assert found == [Dataset("digits", "train", "project.data.digits.Digits", 3, "ab")]
    before = made(tmp_path / "old", choices=None)  # as of a run that began before choices were recorded
    assert runs.describe(before, config, source)["datasets"][0].name == "Digits"
    assert runs.describe(before, config, {})["datasets"] == []
