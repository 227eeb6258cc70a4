"""docs/weights.md is true: its commands and its code run."""

import os
import sys

import pytest
from tools import pages
from tools.processes import REPOSITORY
from tools.warm import Warm
from tools.workshop import Workshop

import savepoint
from savepoint import runs

PAGE = REPOSITORY / "docs" / "weights.md"
SMALL = ("tracker=none", "trainer.threads=1", "data.limit_batches=2", "trainer.max_epochs=1")


def export(workshop: Workshop, warm: Warm, line: list[str]) -> str:
    """Run a line `python -m savepoint export …` in the current directory, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(workshop.root / "src")}
    done = warm.run([sys.executable, *line[1:]], env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_and_the_code_of_the_page_run(
    workshop: Workshop, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pages.read(PAGE)
    assert workshop.run("train.py", *SMALL, "model.hidden=[256]").status == 0
    first = runs.all_runs(workshop.root)[-1]
    monkeypatch.chdir(workshop.root)
    exports = 0
    for line in page.commands:
        if line[1] == "train.py":
            ended = workshop.run("train.py", *line[2:], *SMALL)
            assert ended.status == 0 and "weights from run" in ended.output, ended.output
            assert runs.all_runs(workshop.root)[-1].record["parents"], "it names its parent"
        else:
            output = export(workshop, warm, line)
            assert "loaded again, the same bits" in output, output
            exports += 1
    assert exports == 2
    for place in ("exports/best", "exports/graphs"):
        savepoint.load_model(workshop.root / place)
    # In the notebook of a checkout `latest` is a run of that checkout; here it is one of the workshop.
    code = (
        "\n".join(page.snippets)
        .replace('"latest@best"', f'"{first.directory}@best"')
        .replace('"latest"', f'"{first.directory}"')
    )
    names: dict[str, object] = {}
    exec(code, names)
    assert names["notes"] == ["left as it was built: head.weight, head.bias"]
