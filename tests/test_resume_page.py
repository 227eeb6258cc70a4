"""docs/resume.md is true: its commands do what it says."""

import re

import pytest
from tools import pages
from tools.processes import REPOSITORY
from tools.workshop import Workshop

from savepoint import runs
from savepoint.launch.continues import CONTINUES

PAGE = REPOSITORY / "docs" / "resume.md"
QUICK = ("tracker=none", "trainer.threads=1")


def test_the_commands_of_the_page_run(workshop: Workshop) -> None:
    outputs = []
    for _, script, *arguments in pages.read(PAGE).commands:
        if "scheduler.T_max=92" in arguments:
            alone = [each for each in arguments if not each.startswith("scheduler")]
            refused = workshop.run("resume.py", *alone, *QUICK)
            assert refused.status == 2 and "scheduler.T_max=92 trainer.max_epochs=4" in refused.output
        sweep = "run=latest-sweep" in arguments  # whose overrides are its own
        ended = workshop.run(script, *arguments, *(() if sweep else QUICK))
        assert ended.status == 0, ended.output
        outputs.append(ended.output)
    assert "resumed from epoch_0004" in outputs[1] and "fork" not in outputs[1]
    shown = re.findall(r"^```text\nfork of \S+\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert shown and shown[0] in outputs[2]
    sweeps = [run for run in runs.all_runs(workshop.root) if run.record["sweep"]]
    assert len(sweeps) == 8 and any(output.count("finished before") == 4 for output in outputs)
    others = [run for run in runs.all_runs(workshop.root) if not run.record["sweep"]]
    assert [bool(run.record["parents"]) for run in others] == [False, True, False, True]


@pytest.mark.parametrize("key", [*CONTINUES])
def test_the_page_names_each_setting_that_continues(key: str) -> None:
    text = PAGE.read_text().partition("## What continues")[2].partition("## What a fork does")[0]
    assert f"`{key}`" in text or f"`{key}.*`" in text or f"`{key.partition('.')[2]}`" in text
