"""Write a new project, and make its first commit."""

import argparse
import os
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from savepoint.errors import UserError, short_list
from savepoint.template.answers import Answers, default_answers
from savepoint.template.plan import Plan, plan
from savepoint.template.record import RECORD, write_record

USAGE = """\
usage: python -m savepoint new DIR [--name TEXT] [--package NAME] [--author TEXT] [--licence MIT|BSD-3-Clause|none]
                                   [--tracker mlflow|none] [--examples all|one|none]"""
# Files that copier and cookiecutter may have made in a project's directory before this module completes it.
_THEIRS = {".copier-answers.yml", ".git", ".gitkeep"}


def new_project(template: Path, arguments: list[str]) -> int:
    """Write a project into a new directory: `python -m savepoint new`. arguments: as typed. Returns: the exit code.

    Raises: UserError if the directory exists and is not empty, or an answer is not allowed.
    """
    directory, given, _ = _parse(arguments)
    place = Path(directory).resolve()
    if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{directory} exists already. Give the name of a new directory.")
    planned = plan(template, default_answers(place.name, given))
    _write(place, planned, own=True)
    answers = planned.answers
    print(f"{answers.name}: a project in {directory}, its package {answers.package}, examples: {answers.examples}")
    print(first_commit(place, planned))
    return 0


def complete_project(template: Path, arguments: list[str]) -> int:
    """Write a project into the directory that copier or cookiecutter made for it. Returns: the exit code.

    arguments: as for `new`. copier adds --update when it brings a newer version; the project's own files then stay.
    Raises: UserError if the directory holds anything else, or an answer is not allowed.
    """
    directory, given, updating = _parse(arguments)
    place = Path(directory).resolve()
    planned = plan(template, default_answers(place.name, given))
    updating = updating or (place / RECORD).exists()
    if not updating and (others := sorted({each.name for each in place.iterdir()} - _THEIRS)):
        raise UserError(f"{place} is not empty: it has {short_list(others)}. Choose a new directory.")
    _write(place, planned, own=not updating)
    if not updating:
        print(first_commit(place, planned))
    return 0


def _parse(arguments: list[str]) -> tuple[str, dict[str, str], bool]:
    """Return the directory, the answers that were given, and whether --update was given."""
    parser = _Parser(prog="python -m savepoint new", usage=USAGE.removeprefix("usage: "), add_help=False)
    parser.add_argument("directory")
    for field in fields(Answers):
        parser.add_argument(f"--{field.name}", default=None)
    parser.add_argument("--update", action=argparse.BooleanOptionalAction, default=False)
    given = vars(parser.parse_args(arguments))
    directory, updating = given.pop("directory"), given.pop("update")
    return directory, {name: value for name, value in given.items() if value is not None}, updating


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.\n{USAGE}")


def _write(directory: Path, planned: Plan, *, own: bool) -> None:
    """Write the files of a plan, and the record of them. own: whether to write the project's own files too."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in planned.files:
            if own or not planned.own(path):
                write_file(directory, path, planned)
        write_record(directory, planned, {})
    except OSError as error:
        raise UserError(f"{error.filename or directory}: the project cannot be written: {error.strerror}.") from error


def write_file(directory: Path, path: str, planned: Plan) -> None:
    """Write one file of a plan into a project."""
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(planned.files[path])
    if path in planned.executable:
        file.chmod(file.stat().st_mode | 0o111)


def first_commit(directory: Path, planned: Plan) -> str:
    """Make the project a git repository with one commit. Returns: what to tell the user."""
    todo = "git init && git add --all && git commit -m 'Begin'"
    next_steps = f"next: cd {directory} && make {'test' if planned.answers.examples == 'none' else 'train'}"
    try:
        inside = _git(directory, "rev-parse", "--is-inside-work-tree")
    except OSError:
        return f"git is not installed, so there is no first commit. Once it is: {todo}\n{next_steps}"
    if inside.returncode == 0:
        return f"the directory lies in another git repository: commit it there\n{next_steps}"
    identity = []
    if _git(directory, "config", "user.email").returncode:  # a new machine: git would refuse to commit
        identity = ["-c", f"user.name={planned.answers.author or planned.answers.name}", "-c", "user.email="]
    message = f"Begin {planned.answers.name}, from the Savepoint template {planned.version}"
    steps: tuple[tuple[str, ...], ...] = (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        # Without the hooks that the user has for all repositories, and without a question for a signing key.
        (*identity, "-c", f"core.hooksPath={os.devnull}", "commit", "--quiet", "--no-gpg-sign", "-m", message),
    )
    for step in steps:
        done = _git(directory, *step)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            return f"git {step[0]} failed: {lines[0]}. Make the first commit by hand: {todo}\n{next_steps}"
    return f"first commit made\n{next_steps}"


def _git(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, stdin=subprocess.DEVNULL)
