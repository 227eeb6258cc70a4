"""Complete resume.py's command line in a shell: the ids of runs after `run=`, and otherwise what train.py takes."""

import os
from collections.abc import Sequence
from pathlib import Path

import hydra

from savepoint import runs

_MOST = 100  # ids that are offered, the newest


def complete(repository: Path, flags: Sequence[str]) -> None:
    """Print what may come next, on one line: Hydra's shell completion, with ids of runs.

    The shell puts what was typed so far into COMP_LINE. `python train.py -sc install=bash` prints what installs it.
    flags: options of resume.py's own.
    """
    words = os.environ.get("COMP_LINE", "").split(" ")
    current = words[-1]
    if current.startswith("run="):
        ids = ["latest", *(run.id for run in reversed(runs.all_runs(repository)))]
        print(" ".join(f"run={each}" for each in ids[: _MOST + 1] if f"run={each}".startswith(current)))
        return
    missing = [] if any(each.startswith("run=") for each in words) else ["run="]
    for offered in (*missing, *flags):
        if offered.startswith(current):
            print(offered, end=" ")
    os.environ["COMP_LINE"] = " ".join(each for each in words if not each.startswith("run=") and each not in flags)
    hydra.main(version_base="1.3", config_path=str(repository / "conf"), config_name="config")(lambda _: None)()
