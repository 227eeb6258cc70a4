"""Complete resume.py's command line in a shell: after `run=` the ids of runs, elsewhere the overrides of train.py."""

import os
from collections.abc import Sequence
from pathlib import Path

import hydra

from savepoint import runs

_MOST = 100  # ids that are offered at most, the newest first


def complete(repository: Path, flags: Sequence[str]) -> None:
    """Print the words that may come next, on one line: ids of runs, flags, and what Hydra's completion offers.

    The shell puts the text typed so far into COMP_LINE. `python train.py -sc install=bash` prints the command that
    installs the completion.
    flags: the options that only resume.py has.
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
