"""Start the processes of `trainer.processes=N` with torchrun's own agent, on this machine."""

import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from savepoint import parallel, runs, system
from savepoint.errors import ConfigError, UserError

KEY = "trainer.processes"


def wanted(overrides: list[str], conf_dir: Path) -> int:
    """Return how many processes the command line or conf/ asks for. Composes the config only if one of them does.

    Raises: ConfigError if jobs of a sweep are to have different numbers, or a launcher is to start them elsewhere.
    """
    if not any(each.lstrip("+").startswith(KEY) for each in overrides) and not _configured(conf_dir):
        return 1
    from savepoint.config import compose

    typed = [each.partition("=")[2] for each in overrides if each.lstrip("+").startswith(f"{KEY}=")]
    if typed and not re.fullmatch(r"null|[0-9]{1,4}", typed[-1]):
        raise ConfigError(f"{KEY}={typed[-1]}: must be a whole number, and the same for all jobs of a sweep.")
    if typed:
        count = 1 if typed[-1] == "null" else int(typed[-1])
    else:
        first = [re.sub(r"=([^\[\]{}(),]*),.*", r"=\1", each) for each in overrides]
        count = compose(first, conf_dir)["trainer"].get("processes") or 1
    launcher = next((each for each in overrides if re.match(r"hydra/launcher=(?!basic$)", each)), None)
    if count > 1 and launcher:
        raise ConfigError(f"{KEY}={count}: {launcher} starts each job as one process. Leave one of the two out.")
    return count


def _configured(conf_dir: Path) -> bool:
    """Whether some file of conf/ may set the number of processes to more than one."""
    pattern = re.compile(r"^\s*(trainer\.)?processes:\s*([2-9]|1[0-9])", re.MULTILINE)
    return any(pattern.search(path.read_text(encoding="utf-8", errors="replace")) for path in conf_dir.rglob("*.yaml"))


def of_run(query: str, overrides: list[str], repository: Path) -> int:
    """Return how many processes a resume asks for, or the run or the sweep that it goes on with."""
    if any(each.lstrip("+").startswith(KEY) for each in overrides):
        return wanted(overrides, repository / "conf")
    try:
        sweep = runs.find_sweep(query, repository)
        directories = sorted(sweep.glob("*/")) if sweep else [runs.find(query, repository).run.directory]
        configs = [runs.read_config(each) for each in directories if (each / runs.CONFIG).exists()]
    except UserError:
        return 1  # the resume itself says what is wrong
    found = [each["trainer"].get("processes") for each in configs if isinstance(each.get("trainer"), dict)]
    return max((each for each in found if type(each) is int), default=1)


def note(config: dict[str, Any]) -> None:
    """Let a config say how many processes of this machine train it, so that a resume starts as many."""
    if parallel.count() > 1 and parallel.on_one_machine() and isinstance(config.get("trainer"), dict):
        config["trainer"]["processes"] = parallel.count()


def start(count: int, command: list[str]) -> int:
    """Run a script in so many processes, and wait for them. command: the script and its arguments.

    Returns: the exit code of rank 0.

    Raises: UserError if a process was killed before rank 0 could say why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds for the last save
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=runs.new_id(),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        launch_agent(config, sys.executable, command)
    except SignalException as error:
        return system.signals.exit_code(error.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if (first := codes.get(0, 1)) > 0:
            return first if first != 1 or 0 in codes else 2
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UserError(f"Rank {rank} of {count} was ended by {how}. To go on: python resume.py run=latest") from None
    return 0
