"""A sweep's directory: one subdirectory for each job, and a table of results once all jobs have ended.

The table is made from the files on the disk, so it also lists jobs that failed or were refused.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import system
from savepoint.runs import directory as runs
from savepoint.runs import history
from savepoint.trackers import Sweep
from savepoint.trust import redact

FAILURE, TABLE, RECORD = "failure.json", "results.csv", "multirun.yaml"


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
    record = sweep / RECORD
    if record.exists():
        system.files.replace(record, redact(record.read_text(encoding="utf-8")).encode())


def remove_unstarted_sweep(sweep: Path) -> None:
    """Remove the directory of a sweep that was refused before its first job."""
    (sweep / RECORD).unlink(missing_ok=True)
    runs.remove_empty(sweep)


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
    return sorted(found, key=Result.rank)


def _order(job: Path) -> tuple[int, str]:
    return int(job.name) if job.name.isdecimal() else 0, job.name


def _result(path: Path) -> Result:
    record = runs.read(path).record
    settings = runs.read_config(path)["checkpoint"]
    monitor, ascending = settings["monitor"], settings["mode"] == "min"
    lines = [line for line in history.read_history(path / runs.METRICS) if monitor in line]
    scored = [(float(str(line[monitor])), line["epoch"]) for line in lines]
    scored = [pair for pair in scored if not math.isnan(pair[0])]
    best: Any = (min if ascending else max)(scored, key=lambda pair: pair[0], default=(None, None))
    overrides = _pairs(record["overrides"])
    return Result(path.name, record["status"], overrides, best[0], best[1], record["id"], monitor, ascending)


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
    """Return `finished` if every job has finished, else `failed`."""
    return "finished" if all(result.status == "finished" for result in results(sweep)) else "failed"
