"""A sweep's results, read from its directory once its jobs are done: a job that failed takes no other with it."""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import system, trust
from savepoint.runs import directory as runs
from savepoint.runs import history
from savepoint.trackers import Sweep
from savepoint.trust import redact

FAILURE, TABLE, RECORD = "failure.json", "results.csv", "multirun.yaml"


@dataclass(frozen=True)
class Result:
    """One job. score: the best value of checkpoint.monitor; None if none was measured."""

    number: str
    status: str
    typed: dict[str, str]
    score: float | None = None
    epoch: int | None = None
    run_id: str = ""
    monitor: str | None = None
    ascending: bool = field(default=True, repr=False)

    def rank(self) -> tuple[bool, float]:
        score = math.inf if self.score is None else self.score if self.ascending else -self.score
        return self.score is None, score


def sweep_of(directory: Path) -> Sweep:
    """The sweep whose jobs lie in `directory`, the same in every process: its id ends the directory's name."""
    return Sweep(id=directory.name.rpartition("-")[2], name=directory.name, dir=directory)


def redact_sweep_record(sweep: Path) -> None:
    """Hydra writes what was typed into multirun.yaml before any config is checked: take out what is secret."""
    record = sweep / RECORD
    if record.exists():
        system.files.replace(record, redact(record.read_text(encoding="utf-8")).encode())


def remove_unstarted_sweep(sweep: Path) -> None:
    """Leave nothing of a sweep that was refused before its first job."""
    (sweep / RECORD).unlink(missing_ok=True)
    runs.remove_empty(sweep)


def note_refused_job(job: Path, typed: list[str], error: str) -> None:
    """Leave a word where a job was refused: such a job leaves no run, and the table of results should show it."""
    job.mkdir(parents=True, exist_ok=True)
    system.files.replace(job / FAILURE, json.dumps({"overrides": typed, "error": error}, indent=1).encode())


def results(sweep: Path) -> list[Result]:
    """Every job's result, best first, equal ones as the jobs were; those that measured nothing last."""
    found = []
    for path in sorted((path for path in sweep.iterdir() if path.is_dir()), key=_order):
        if (path / FAILURE).exists():
            typed = json.loads((path / FAILURE).read_bytes())["overrides"]
            found.append(Result(path.name, "refused", _pairs(typed)))
        elif (path / runs.RECORD).exists():
            found.append(_result(path))
    return sorted(found, key=Result.rank)


def _order(job: Path) -> tuple[int, str]:
    return int(job.name) if job.name.isdecimal() else 0, job.name


def _result(path: Path) -> Result:
    record = runs.read(path).record
    settings = trust.parse_config((path / runs.CONFIG).read_bytes())["checkpoint"]
    monitor, ascending = settings["monitor"], settings["mode"] == "min"
    lines = [line for line in history.read_history(path / runs.METRICS) if monitor in line]
    scored = [(float(str(line[monitor])), line["epoch"]) for line in lines]
    scored = [pair for pair in scored if not math.isnan(pair[0])]
    best: Any = (min if ascending else max)(scored, key=lambda pair: pair[0], default=(None, None))
    typed = _pairs(record["overrides"])
    return Result(path.name, record["status"], typed, best[0], best[1], record["id"], monitor, ascending)


def _pairs(overrides: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def write_sweep_table(sweep: Path) -> tuple[Path, str]:
    """Write results.csv into the sweep's directory. Returns its path and the same table as aligned text."""
    found = results(sweep)
    typed = dict.fromkeys(key for result in found for key in result.typed)
    keys = [key for key in typed if len({result.typed.get(key) for result in found}) > 1]
    monitor = next((result.monitor for result in found if result.monitor), "score")
    rows = [["job", *keys, f"best {monitor}", "epoch", "status", "run"]]
    for one in found:
        score = "" if one.score is None else f"{one.score:.6g}"
        choices = [one.typed.get(key, "") for key in keys]
        rows.append([one.number, *choices, score, str(one.epoch or ""), one.status, one.run_id])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    system.files.replace(sweep / TABLE, buffer.getvalue().encode())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return sweep / TABLE, "\n".join(lines)


def sweep_status(sweep: Path) -> str:
    """Of the sweep as a whole: finished if each of its jobs is."""
    return "finished" if all(result.status == "finished" for result in results(sweep)) else "failed"
