"""Read resume.py's command line: the run, the overrides, and two flags."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from savepoint import parallel, runs
from savepoint.errors import UserError
from savepoint.launch import processes, ranks
from savepoint.launch.finish import resume_sweep
from savepoint.launch.script import load_script, run_script

USAGE = "usage: python resume.py run=<id|prefix|directory|latest>[@best|@<step>] [key=value …] [--same-code] [--force]"
OPTIONS = """
       python resume.py run=<sweep|latest-sweep> [retry=failed] [+jobs='key=value,…']
  --same-code  refuse to go on if the commit or the uncommitted changes differ from the checkpoint's
  --force      go on without the run's lock: for a disk without locks, or a lock that a lost machine seems to hold"""
FLAGS = ("--same-code", "--force")
DIRECTORY = "hydra.run.dir="


@dataclass(frozen=True)
class Request:
    """The command line of resume.py, parsed.

    query: the text after `run=`. overrides: all but the tracker's. tracker: the tracker's overrides.
    directory: where a fork is to live.
    """

    query: str
    overrides: list[str]
    tracker: list[str]
    directory: Path | None = None
    same_code: bool = False
    force: bool = False


def run_resume(resume: Callable[[Request | ranks.Order], None], repository: Path, *, description: str) -> int:
    """Do what resume.py's command line asks for. The `train` of train.py trains the jobs of a sweep.

    resume: continues or forks the run of a request. Returns: the exit code.
    """

    arguments = sys.argv[1:]  # a copy: `resume_sweep` changes sys.argv, where Hydra reads a sweep's overrides

    def work() -> int | None:
        if not parallel.leads():
            ranks.follow(resume)
            return 0
        with ranks.leading():
            return lead()

    def lead() -> int | None:
        if {"-h", "--help"} & set(arguments):
            print(f"{description}\n{USAGE}{OPTIONS}")
        elif {"-sc", "--shell-completion"} & set(arguments):
            from savepoint.launch.completion import complete  # imports Hydra, which a resume does not need

            complete(repository, FLAGS)
        else:
            request = _read(arguments)
            if parallel.count() == 1 and (count := processes.of_run(request.query, request.overrides, repository)) > 1:
                return processes.start(count, [str(repository / "resume.py"), *arguments])
            if (sweep := runs.find_sweep(request.query, repository)) is None:
                resume(request)
            else:
                changes = [*request.overrides, *request.tracker]
                resume_sweep(load_script("train", repository).train, repository, sweep, changes)
        return None

    return run_script(work, overrides=lambda: _read(arguments).overrides, conf_dir=repository / "conf")


def _read(arguments: list[str]) -> Request:
    """Read the command line. The query is taken as typed: Hydra's parser would read the id 123e4567 as infinity."""
    queries = [each.removeprefix("run=") for each in arguments if each.startswith("run=")]
    if len(queries) != 1:
        raise UserError(f"Which run? {USAGE}")
    for argument in arguments:
        if argument.startswith("-") and argument not in FLAGS:
            raise UserError(f"{argument}: resume.py has no such option. {USAGE}")
    places = [each.removeprefix(DIRECTORY) for each in arguments if each.startswith(DIRECTORY)]
    others = [each for each in arguments if not each.startswith(("run=", DIRECTORY, "-"))]
    return Request(
        queries[0],
        [each for each in others if not _is_tracker(each)],
        [each for each in others if _is_tracker(each)],
        Path(places[-1]).absolute() if places else None,
        same_code="--same-code" in arguments,
        force="--force" in arguments,
    )


def _is_tracker(override: str) -> bool:
    return override.partition("=")[0].partition(".")[0].lstrip("+~") == "tracker"
