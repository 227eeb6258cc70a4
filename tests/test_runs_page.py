"""docs/runs.md is true: its commands run, and print what it says."""

import re
from pathlib import Path

import pytest
from tools import pages
from tools.processes import REPOSITORY
from tools.workshop import Workshop

from savepoint import __main__, runs

PAGE = REPOSITORY / "docs" / "runs.md"
QUICK = ("tracker=none", "trainer.threads=1", "data.limit_batches=2")


def test_the_commands_of_the_page_run(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "REPOSITORY", workshop.root)
    monkeypatch.chdir(tmp_path)
    outputs = {}
    for _, script, *arguments in pages.read(PAGE).commands:
        if script.endswith(".py"):
            quick = QUICK if script == "train.py" else QUICK[:2]
            ended = workshop.run(script, *arguments, *quick)
            assert ended.status == 0, ended.output
        else:
            newest = runs.all_runs(workshop.root)[-1].id
            meant = [runs.all_runs(workshop.root)[0].id if each == "RUN" else each for each in arguments[1:]]
            assert __main__.main(meant) == 0
            outputs[" ".join(arguments[1:])] = capsys.readouterr().out
            if arguments[1:] == ["show", "latest"]:
                assert outputs["show latest"].startswith(f"id                {newest}\n")
    shown = re.findall(r"^```text\n(id .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0].splitlines()
    listed = outputs["ls"].splitlines()
    assert [columns(line) for line in listed] == [columns(line) for line in shown]
    assert [len(outputs[each].splitlines()) for each in outputs if each.startswith("ls ") and "json" not in each] == [
        2,
        2,
    ]
    assert '"name": "colder"' in outputs["ls colder --json"]
    assert outputs["sync --all"].count("left out: ") == 3
    assert {path.name for path in tmp_path.glob("*.png")} == {"plot.png", "both.png"}
    assert len(runs.all_runs(workshop.root)) == 3


def columns(line: str) -> list[str]:
    """The cells of a row that do not depend on the run: its name, what was chosen, its status."""
    return re.findall(
        r"\b(?:name|choices|status|base|colder|adam|sgd|max_epochs=2|max_epochs=3|lr=0.001|finished)\b", line
    )
