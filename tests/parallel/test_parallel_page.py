"""docs/parallel.md is true: its commands run, in the processes that torchrun starts."""

import os
import re
import subprocess
import sys

from tools import pages
from tools.processes import REPOSITORY
from tools.workshop import Workshop

from savepoint import runs

QUICK = ("tracker=none", "trainer.threads=1", "data.limit_batches=2")


def test_the_commands_of_the_page_run(workshop: Workshop) -> None:
    programs = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    said = []
    for program, *arguments in pages.read(REPOSITORY / "docs" / "parallel.md").commands:
        quick = QUICK if "train.py" in arguments else QUICK[:2]
        done = subprocess.run(
            [*programs[program], *arguments, *quick],
            cwd=workshop.root,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall("^run ", done.stdout, re.MULTILINE)) == 1, "one set of lines"
        said.append(done.stdout)
    assert len(said) == 6
    assert ["(2 ranks, " in each for each in said] == [True, True, True, False, False, True]
    assert "(3 ranks, " in said[3] and "(3 ranks, " in said[4] and "bit" not in said[4]
    assert len(runs.all_runs(workshop.root)) == 3, "a run each for those with train.py, which the others continue"
