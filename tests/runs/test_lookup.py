"""A run that lies outside runs/ and sweeps/, found by what the tracker says of it."""

from pathlib import Path
from typing import Any

import pytest
from tools.processes import REPOSITORY

from savepoint import runs, trackers
from savepoint.errors import UserError
from savepoint.trackers import Found

TRACKED = "0123456789abcdef" * 2


@pytest.fixture
def elsewhere(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "elsewhere", id="abcd0001", name=None, config="", overrides=[])


def answer(monkeypatch: pytest.MonkeyPatch, found: Found | None) -> list[str]:
    """What the tracker is asked for, each time."""
    asked: list[str] = []

    def find_run(_: Any, *, repository: Path, text: str) -> Found | None:
        asked.append(text)
        return found

    monkeypatch.setattr(trackers, "find_run", find_run)
    return asked


@pytest.mark.parametrize(("text", "chosen"), [("012345", None), ("012345@best", "best"), ("012345@20", "20")])
def test_an_id_that_only_the_tracker_knows_is_found(
    elsewhere: runs.Run, monkeypatch: pytest.MonkeyPatch, text: str, chosen: str | None
) -> None:
    asked = answer(monkeypatch, Found(TRACKED, elsewhere.id, str(elsewhere.directory)))
    found = runs.find(text, REPOSITORY)
    assert (found.run.id, found.run.directory, found.checkpoint) == (elsewhere.id, elsewhere.directory, chosen)
    assert asked == ["012345"]


def test_a_run_that_is_there_needs_no_tracker(elsewhere: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, None)
    assert runs.find(str(elsewhere.directory), REPOSITORY).run.id == elsewhere.id
    assert asked == []


@pytest.mark.parametrize("lie", ["another id", "no directory", "a directory that is none", "a directory without a run"])
def test_a_tracker_that_names_another_run_is_not_believed(
    elsewhere: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    told = {
        "another id": Found(TRACKED, "abcd0002", str(elsewhere.directory)),
        "no directory": Found(TRACKED, elsewhere.id, None),
        "a directory that is none": Found(TRACKED, elsewhere.id, str(tmp_path / "gone")),
        "a directory without a run": Found(TRACKED, elsewhere.id, str(tmp_path)),
    }
    answer(monkeypatch, told[lie])
    with pytest.raises(UserError, match="No run 012345"):
        runs.find("012345", REPOSITORY)
