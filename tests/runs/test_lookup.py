"""Every message about a query repeats it as it was typed. A run that lies elsewhere is found through the tracker."""

from pathlib import Path
from typing import Any

import pytest
from tools.processes import REPOSITORY

from savepoint import runs, trackers
from savepoint.config import TrackerSettings
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
    answers = {
        "another id": Found(TRACKED, "abcd0002", str(elsewhere.directory)),
        "no directory": Found(TRACKED, elsewhere.id, None),
        "a directory that is none": Found(TRACKED, elsewhere.id, str(tmp_path / "gone")),
        "a directory without a run": Found(TRACKED, elsewhere.id, str(tmp_path)),
    }
    answer(monkeypatch, answers[lie])
    asked = []

    def fetch_run(*_: object, found: Found, **__: object) -> list[str]:
        asked.append(found)
        raise UserError("fetched in vain")

    monkeypatch.setattr(trackers, "fetch_run", fetch_run)
    before = sorted((REPOSITORY / "runs").glob("*"))
    with pytest.raises(UserError, match="fetched in vain"):
        runs.find("012345", REPOSITORY)
    assert asked == [answers[lie]] and sorted((REPOSITORY / "runs").glob("*")) == before


def test_a_run_of_somebody_else_in_the_tracker_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, Found(TRACKED, None, None))
    with pytest.raises(UserError, match="No run 012345"):
        runs.find("012345", REPOSITORY)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to type paths in: a run with a checkpoint, a broken run, a stray checkpoint, two bad links."""
    for directory in (
        "here/run/checkpoints/epoch_0001_step_00000002",
        "here/stray/epoch_0001_step_00000002",
        "here/empty",
    ):
        (tmp_path / directory).mkdir(parents=True)
    runs.create(tmp_path / "here" / "other", id="abcd0001", name=None, config="", overrides=[])
    for broken in ("run", "list"):
        (tmp_path / "here" / broken).mkdir(exist_ok=True)
        (tmp_path / "here" / broken / "run.json").write_text("[]" if broken == "run" else "[")
    (tmp_path / "here" / "link").symlink_to("nowhere")
    (tmp_path / "here" / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "here" / "empty")
    return tmp_path


NO_RUN = "is neither a run (it has no run.json) nor a checkpoint (it has no manifest.json)."


@pytest.mark.parametrize(
    "query, message",
    [
        (".", f".: {{root}}/here/empty {NO_RUN}"),
        ("../..", f"../..: {{root}} {NO_RUN}"),
        ("../..@best", f"../..: {{root}} {NO_RUN}"),
        ("../link", f"../link: {{root}}/here/nowhere {NO_RUN}"),
        ("../loop", f"../loop: {{root}}/here/loop {NO_RUN}"),
        ("{root}", f"{{root}} {NO_RUN}"),
        ("../list", "../list: {root}/here/list/run.json cannot be read (Expecting value: line 1 column 2 (char 1))."),
        ("../run@20", "../run: {root}/here/run/run.json cannot be read (it is not a JSON object)."),
        ("../run/checkpoints/epoch_0001_step_00000002", "{query}: {root}/here/run/run.json cannot be read (it is not a JSON object)."),
        (
            "../stray/epoch_0001_step_00000002",
            "{query}: {root}/here/stray/epoch_0001_step_00000002 is a checkpoint without its run: {root}/here has no run.json.",
        ),
        ("../other@", "../other@: nothing follows the @. Give @best, @last, @<step> or a checkpoint's name."),
        ("../other/checkpoints", "No run ../other/checkpoints."),
        ("x" * 300, "No run {query}."),
        ("abcd\0e", "No run abcd\0e."),
        ("abc", "The id abc is too short. Give at least 4 characters of it."),
        ("", "Which run? Give its id, a run directory, or latest."),
        ("@best", "Which run? Give its id, a run directory, or latest."),
    ],
)  # fmt: skip
def test_a_message_repeats_what_was_typed(query: str, message: str, inside: Path) -> None:
    query = query.format(root=inside)
    with pytest.raises(UserError) as caught:
        runs.find(query, inside, tracker=TrackerSettings(kind="none"))
    assert str(caught.value) == message.format(root=inside, query=query)
