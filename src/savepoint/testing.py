"""Test configs of a project in a few lines: that they compose, train, and resume to the same bits.

    from savepoint.testing import check_resumes

    def test_dense_resumes_to_the_same_bits(tmp_path):
        check_resumes("model=dense", "data=spirals", directory=tmp_path)

`python -m savepoint verify <run> --exact` proves more, and takes longer.
"""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from savepoint import checkpoint, commands, launch, runs, trust
from savepoint.config import compose

REPOSITORY = Path(__file__).resolve().parents[2]
# Each resume begins in a process that has imported what training needs, and nothing of the project.
_PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
# Two epochs of two batches: one checkpoint lies within an epoch, another between two.
_SHORT = (
    *("trainer.max_epochs=2", "trainer.max_steps=null", "data.limit_batches=2", "tracker=none"),
    *("checkpoint.every_n_steps=1", "checkpoint.keep_last=99"),
)


def check_composes(*overrides: str, repository: Path = REPOSITORY) -> dict[str, Any]:
    """Compose the config that these overrides give, and check its values and classes. Nothing is built.

    Returns: the config. Raises: ConfigError, or Hydra's errors, for a config that cannot be trained.
    """
    config = compose(list(overrides), repository / "conf")
    trust.check_config(config, source=repository / "src")
    return config


def check_resumes(*overrides: str, directory: Path, repository: Path = REPOSITORY) -> None:
    """Train a few batches, resume a copy of the run from its middle in a new process, and compare every bit.

    overrides: as for train.py. directory: an empty directory. It keeps the two runs, and what the resume printed.
    Raises: AssertionError that says what differs, or how the resume failed; whatever the training raises.
    """
    overrides = (*overrides, *_SHORT)
    whole, resumed = directory / "whole", directory / "resumed"
    _train(overrides, whole, repository)
    shutil.copytree(whole, resumed)
    names = checkpoint.names(resumed / runs.CHECKPOINTS)
    for name in names[len(names) // 2 :]:
        shutil.rmtree(resumed / runs.CHECKPOINTS / name)
    output = directory / "output.txt"
    if sys.platform == "linux":
        _PROCESSES.set_forkserver_preload(["savepoint.training"])
    process = _PROCESSES.Process(target=_resume, args=(resumed, repository, output))
    process.start()
    process.join()
    printed = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    assert process.exitcode == 0, f"The resume failed:\n{printed}"
    differences = commands.diff_runs(runs.read(whole), runs.read(resumed))
    assert not differences, "The resumed run ends in other bits:\n" + "\n".join(differences[:10])


def _train(overrides: tuple[str, ...], directory: Path, repository: Path) -> None:
    """Train as `python train.py` does, in this process, so that a debugger can stop in the project's code."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(compose(list(overrides), repository / "conf"))
    directory.mkdir(parents=True)
    invocation = launch.Invocation(config, directory, runs.new_id(), list(overrides), repository)
    script = launch.load_script("train", repository)

    import torch

    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        script.train(invocation)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _resume(directory: Path, repository: Path, output: Path) -> None:
    """Resume a run as `python resume.py` does, in this process, which is a new one. Its output goes to a file."""
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["resume.py", f"run={directory}"]
    sys.exit(launch.load_script("resume", repository).main())
