"""Read and write a sweep's directory: sweep.json, a subdirectory for each job, and in the end a table of results.

The table is made from the files on the disk, so it also lists jobs that failed, were refused or did not begin.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.errors import UserError, short_list
from savepoint.runs import directory as runs
from savepoint.runs import history, provenance
from savepoint.trackers import Sweep
from savepoint.trust import redact

FAILURE, TABLE, RECORD, HYDRAS = "failure.json", "results.csv", "sweep.json", "multirun.yaml"
LATEST = "latest-sweep"
# How jobs end that a resume of the sweep has nothing to do with. A person has stopped those of the second kind.
DONE = ("finished", "stopped")


@dataclass(frozen=True)
class Result:
    """One job's result.

    number: the job's directory name. score: the best value of checkpoint.monitor, None if none was measured.
    epoch: when it was measured. ascending: whether a smaller score is better.
    """

    number: str
    status: str
    overrides: dict[str, str]
    score: float | None = None
    epoch: int | None = None
    run_id: str = ""
    monitor: str | None = None
    ascending: bool = field(default=True, repr=False)

    def rank(self) -> tuple[bool, float]:
        """Return the sort key: best score first, jobs without a score last."""
        score = math.inf if self.score is None else self.score if self.ascending else -self.score
        return self.score is None, score


def sweep_of(directory: Path) -> Sweep:
    """Return the sweep whose jobs lie in `directory`. Its id follows the last dash in the directory's name."""
    return Sweep(id=directory.name.rpartition("-")[2], name=directory.name, dir=directory)


def redact_sweep_record(sweep: Path) -> None:
    """Remove secrets from multirun.yaml. Hydra writes the command line there before any config is checked."""
    record = sweep / HYDRAS
    if record.exists():
        system.files.replace(record, redact(record.read_text(encoding="utf-8")).encode())


def remove_unstarted_sweep(sweep: Path) -> None:
    """Remove the directory of a sweep that was refused before its first job."""
    for name in (HYDRAS, RECORD):
        (sweep / name).unlink(missing_ok=True)
    runs.remove_empty(sweep)


def record_sweep(sweep: Path, *, command: list[str], jobs: list[list[str]], batch: int = 0) -> None:
    """Record in sweep.json how a batch of jobs was started. A batch that is recorded already stays as it is.

    command: the arguments of train.py, without secrets. jobs: the overrides of each job; an empty list for a job whose
    overrides are chosen later. batch: 0 for the jobs that the sweep began with, then 1, 2, … for those that were added.
    """
    kept = [each for each in command if not each.startswith("hydra.sweep.")]  # it may be moved
    if batch == 0 and not (sweep / RECORD).exists():
        record: dict[str, Any] = {"started": provenance.now(), "command": kept, "jobs": jobs}
    elif batch > 0 and len((record := read_sweep(sweep)).setdefault("added", [])) < batch:
        record["added"].append({"command": kept, "jobs": jobs})
    else:
        return
    system.files.replace(sweep / RECORD, json.dumps(record, indent=1).encode() + b"\n")


def read_sweep(sweep: Path) -> dict[str, Any]:
    """Read sweep.json: `started`, `command` and `jobs`, and in `added` the command and the jobs of each later batch.

    Raises: UserError if it cannot be read.
    """
    try:
        record = json.loads((sweep / RECORD).read_bytes())
        batches = [record, *record.get("added", [])]
        lists = [each for batch in batches for each in (batch["command"], *batch["jobs"])]
        if not all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists):
            raise ValueError("it holds something else than overrides")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{sweep / RECORD} cannot be read: {error}.") from error
    return dict(record)


def find_sweep(query: str, repository: Path) -> Path | None:
    """Find the sweep that a person names: its directory, its id or at least 4 characters of it, or `latest-sweep`.

    Returns: its directory; None if `query` names no sweep.
    Raises: UserError if there is no sweep for `latest-sweep`, or if several ids begin with `query`.
    """
    if (Path(query) / RECORD).is_file():
        return Path(query).resolve()
    found = sorted(path.parent for path in (repository / "sweeps").glob(f"*/*/{RECORD}"))
    if query == LATEST:
        if not found:
            raise UserError(f"There are no sweeps yet under {repository}. Start one: python train.py -m seed=1,2")
        return max(found, key=lambda path: str(read_sweep(path)["started"]))
    named = [path for path in found if len(query) >= 4 and sweep_of(path).id.startswith(query)]
    if len(named) > 1:
        raise UserError(f"{query} could be any of {short_list([sweep_of(path).id for path in named])}.")
    return named[0] if named else None


def is_refused(job: Path) -> bool:
    """Whether a job was refused before it began."""
    return (job / FAILURE).exists()


def forget_refusal(job: Path) -> None:
    """Remove the record of a refused job, so that it can begin."""
    (job / FAILURE).unlink(missing_ok=True)


def score(job: Path) -> float | None:
    """Return the best value of checkpoint.monitor that a job has measured; None if it has measured none."""
    return _result(job).score if (job / runs.RECORD).exists() else None


def note_refused_job(job: Path, overrides: list[str], error: str) -> None:
    """Record in the job's directory that it was refused. Such a job has no run, and the table should still list it."""
    job.mkdir(parents=True, exist_ok=True)
    system.files.replace(job / FAILURE, json.dumps({"overrides": overrides, "error": error}, indent=1).encode())


def results(sweep: Path) -> list[Result]:
    """Read every job's result, best first. Equal scores keep the order of the jobs; jobs without a score come last."""
    found = []
    for path in sorted((path for path in sweep.iterdir() if path.is_dir()), key=_order):
        if (path / FAILURE).exists():
            overrides = json.loads((path / FAILURE).read_bytes())["overrides"]
            found.append(Result(path.name, "refused", _pairs(overrides)))
        elif (path / runs.RECORD).exists():
            found.append(_result(path))
    there, names = [result.overrides for result in found], {result.number for result in found}
    if (sweep / RECORD).exists():
        record = read_sweep(sweep)
        for batch, each in enumerate([record, *record.get("added", [])]):
            for number, overrides in enumerate(each["jobs"]):
                name = f"{batch_prefix(batch)}{number}"
                if _pairs(overrides) not in there if overrides else name not in names:
                    found.append(Result(name, "not begun", _pairs(overrides)))
    return sorted(found, key=Result.rank)


def batch_prefix(batch: int) -> str:
    """Return the beginning of the names of a batch's jobs. The first batch has 0, 1, …, the next one 1-0, 1-1, …"""
    return f"{batch}-" if batch else ""


def _order(job: Path) -> tuple[int, int, str]:
    batch, _, number = job.name.rpartition("-")
    return int(batch) if batch.isdecimal() else 0, int(number) if number.isdecimal() else 0, job.name


def _result(path: Path) -> Result:
    run = runs.read(path)
    record = run.record
    settings = runs.read_config(path)["checkpoint"]
    monitor, ascending = settings["monitor"], settings["mode"] == "min"
    lines = [line for line in history.read_history(path / runs.METRICS) if monitor in line]
    scored = [(float(str(line[monitor])), line["epoch"]) for line in lines]
    scored = [pair for pair in scored if not math.isnan(pair[0])]
    best: Any = (min if ascending else max)(scored, key=lambda pair: pair[0], default=(None, None))
    overrides = _pairs(record["overrides"])
    status = run.current_status()
    status = "stopped" if status == "interrupted" and run.stop_file.exists() else status
    return Result(path.name, status, overrides, best[0], best[1], record["id"], monitor, ascending)


def _pairs(overrides: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def write_sweep_table(sweep: Path) -> tuple[Path, str]:
    """Write results.csv into the sweep's directory, one row for each job, best first.

    Its columns are the overrides in which the jobs differ, then the score, epoch, status and run id.
    Returns: the path of results.csv, and the same table as aligned text.
    """
    found = results(sweep)
    given = dict.fromkeys(key for result in found for key in result.overrides)
    keys = [key for key in given if len({result.overrides.get(key) for result in found}) > 1]
    monitor = next((result.monitor for result in found if result.monitor), "score")
    rows = [["job", *keys, f"best {monitor}", "epoch", "status", "run"]]
    for one in found:
        score = "" if one.score is None else f"{one.score:.6g}"
        choices = [one.overrides.get(key, "") for key in keys]
        rows.append([one.number, *choices, score, str(one.epoch or ""), one.status, one.run_id])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    system.files.replace(sweep / TABLE, buffer.getvalue().encode())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return sweep / TABLE, "\n".join(lines)


def sweep_status(sweep: Path) -> str:
    """Return `finished` if every job has finished or was stopped by a file, else `failed`."""
    return "finished" if all(result.status in DONE for result in results(sweep)) else "failed"
