"""Messages stay short however much there is to name: a few names, newest first, and how many more there are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from savepoint import checkpoint, runs
from savepoint.commands import contrast, verify
from savepoint.config import TrackerSettings
from savepoint.errors import UserError

MANY = 30


def save(root: Path, step: int = 0, **state: Any) -> Path:
    return checkpoint.save(
        root,
        model={},
        state={"epoch": 0, "step": step} | state,
        documents={checkpoint.CONFIG: "", checkpoint.PROVENANCE: "{}"},
        metadata={},
    )


def create(repository: Path, number: int, id: str) -> runs.Run:
    made = runs.create(repository / "runs" / "d" / str(number), id=id, name=None, config="", overrides=[])
    made.update(started=f"2026-01-01T00:00:{number:02d}")
    return made


def prefix_of_many_runs(repository: Path) -> None:
    for number in range(MANY):
        create(repository, number, f"abcd00{number:02d}")
    runs.find("abcd", repository)


def unknown_id(repository: Path) -> None:
    for number in range(MANY):
        create(repository, number, f"abcd00{number:02d}")
    runs.find("nosuchrun", repository, tracker=TrackerSettings(kind="none"))


def run_of_many_copies(repository: Path) -> None:
    for number in range(MANY):
        create(repository, number, "abcd0001")
    runs.find("abcd0001", repository)


def checkpoint_of_many(repository: Path) -> None:
    for step in range(MANY):
        save(repository, step)
    checkpoint.select(repository, "77", monitor=None, mode="min")


def checkpoint_of_many_to_verify(repository: Path) -> None:
    made = create(repository, 0, "abcd0001")
    for step in range(MANY):
        save(made.checkpoints, step)
    verify.find("abcd0001@77", repository)


def checkpoint_with_many_files_too_many(repository: Path) -> None:
    path = save(repository)
    for number in range(MANY):
        (path / f"extra{number:02d}").touch()
    checkpoint.load(path)


@pytest.mark.parametrize(
    "ask, first, last",
    [
        (prefix_of_many_runs, "abcd could be any of abcd0029, abcd0028, ", "abcd0025 and 25 more. Give more characters."),
        (unknown_id, "No run nosuchrun. The newest are abcd0029, abcd0028, ", "abcd0025 and 25 more."),
        (run_of_many_copies, "Run abcd0001 has been copied. Give one of its directories: {root}/runs/d/29, ", "/25 and 25 more."),
        (checkpoint_of_many, "No checkpoint @77. There are: epoch_0000_step_00000029, ", "_00000025 and 25 more."),
        (
            checkpoint_of_many_to_verify,
            "No checkpoint @77 in run abcd0001. There are: epoch_0000_step_00000029, ",
            "_00000025 and 25 more.",
        ),
        (
            checkpoint_with_many_files_too_many,
            "{root}/epoch_0000_step_00000000: extra00, extra01, ",
            "extra04 and 25 more not in the manifest.",
        ),
    ],
)  # fmt: skip
def test_a_list_in_a_message_has_five_names_and_a_count(
    ask: Callable[[Path], None], first: str, last: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        ask(tmp_path)
    message = str(caught.value)
    assert message.startswith(first.format(root=tmp_path)) and message.endswith(last), message


def test_diff_prints_the_first_differences_and_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [create(tmp_path, number, f"abcd000{number}") for number in range(2)]
    for one in pair:
        save(one.checkpoints, extra={str(key): key + int(one.id[-1]) for key in range(100)})
        one.metrics.touch()
    assert contrast.compare(tmp_path, ["abcd0000", "abcd0001"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "state" and lines[-2:] == ["  and 60 more differences", "different"] and len(lines) == 43, lines
    shutil.rmtree(pair[1].checkpoints)
    shutil.copytree(pair[0].checkpoints, pair[1].checkpoints)
    assert contrast.compare(tmp_path, ["abcd0000", "abcd0001"]) == 0
    assert capsys.readouterr().out == "identical\n"
