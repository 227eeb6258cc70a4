"""Read and write `.savepoint.json`: what the template wrote into a project. Upgrades tell by it what was edited."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from savepoint.errors import UserError
from savepoint.template.answers import Answers, read_answers
from savepoint.template.plan import Plan

RECORD = ".savepoint.json"


@dataclass(frozen=True)
class Record:
    """What the template wrote. version, commit: the template's. files: the digest of each file, by path."""

    answers: Answers
    version: str
    commit: str | None
    files: dict[str, str]


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, whichever line ends git gave it.

    >>> digest(b"a\\r\\n") == digest(b"a\\n")
    True
    """
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def write_record(directory: Path, plan: Plan, kept: dict[str, str]) -> None:
    """Record what a plan wrote. kept: the digests, as an earlier plan wrote them, of edited files that stay."""
    written = {path: digest(content) for path, content in plan.files.items() if not plan.own(path)}
    record = {
        "version": plan.version,
        "commit": plan.commit,
        "answers": asdict(plan.answers),
        "files": dict(sorted((written | kept).items())),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (directory / RECORD).write_text(text, encoding="utf-8", newline="\n")


def read_record(directory: Path) -> Record:
    """Read a project's record. Raises: UserError if there is none, or it is damaged."""
    file = directory / RECORD
    try:
        stored = json.loads(file.read_bytes())
        return Record(read_answers(stored["answers"]), stored["version"], stored["commit"], dict(stored["files"]))
    except FileNotFoundError:
        raise UserError(
            f"{directory} has no {RECORD}, so it was not made by `python -m savepoint new`, copier or cookiecutter. "
            "In a clone of the template, `git pull` brings the newer engine."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}. Get it back from git: git checkout {RECORD}") from None
