"""Fill in and check the answers that make a new project. copier.yml and cookiecutter.json ask the same questions."""

import keyword
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from savepoint.errors import UserError

LICENCES = ("MIT", "BSD-3-Clause", "none")
TRACKERS = ("mlflow", "none")
EXAMPLES = ("all", "one", "none")
# Packages that a project's own would hide, or be hidden by.
TAKEN = {"savepoint", "conf", "tests", "docs", "src", "torch", "numpy", "hydra", "omegaconf", "yaml", "safetensors"} | {
    *("mlflow", "aim", "clearml", "matplotlib", "rich", "sklearn", "pytest", "hypothesis", "setuptools", "pip")
}


@dataclass(frozen=True)
class Answers:
    """What distinguishes a project from the template.

    name: for people, in any script. package: the importable name, in place of `project`. author: may be empty.
    licence: one of LICENCES. tracker: one of TRACKERS. examples: one of EXAMPLES.
    """

    name: str
    package: str
    author: str
    licence: str
    tracker: str
    examples: str

    @property
    def distribution(self) -> str:
        """The name that pyproject.toml gives to what pip installs."""
        return self.package.replace("_", "-")


def default_answers(directory_name: str, given: Mapping[str, str]) -> Answers:
    """Fill in the answers that were not given. directory_name: the last part of the project's path, its default name.

    Raises: UserError with a line for each answer that is not allowed.
    """
    name = given.get("name") or directory_name
    answers = Answers(
        name=name.strip(),
        package=given.get("package") or package_name(name),
        author=given["author"].strip() if "author" in given else _git_name(),
        licence=given.get("licence", LICENCES[0]),
        tracker=given.get("tracker", TRACKERS[0]),
        examples=given.get("examples", EXAMPLES[0]),
    )
    if faults := check(answers):
        raise UserError("\n".join(faults))
    return answers


def read_answers(stored: Any) -> Answers:
    """Return the answers that a project's record holds. Raises: UserError if the record is damaged."""
    try:
        answers = Answers(**stored)
        faults = check(answers)
    except TypeError as error:
        faults = [str(error)]
    if faults:
        raise UserError(f"The project's record of its answers is damaged: {'; '.join(faults)}.")
    return answers


def check(answers: Answers) -> list[str]:
    """Return a line for each answer that is not allowed."""
    faults = []
    if not answers.name or not answers.name.isprintable() or len(answers.name) > 100:
        faults.append(f"name {answers.name!r}: give a name of one line, at most 100 characters.")
    if not answers.author.isprintable() or len(answers.author) > 100:
        faults.append(f"author {answers.author!r}: give a name of one line, at most 100 characters.")
    package = answers.package
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package) or keyword.iskeyword(package) or keyword.issoftkeyword(package):
        example = package_name(package)
        faults.append(
            f"package {package!r}: give a name that Python can import: a-z, 0-9 and _: for example {example}."
        )
    elif package in TAKEN or package in sys.stdlib_module_names:
        faults.append(f"package {package!r}: another package has that name. Give another, for example my_{package}.")
    choices = (("licence", LICENCES), ("tracker", TRACKERS), ("examples", EXAMPLES))
    for field, options in choices:
        if (value := getattr(answers, field)) not in options:
            faults.append(f"{field} {value!r}: choose {', '.join(options[:-1])} or {options[-1]}.")
    return faults


def package_name(name: str) -> str:
    """Make the name of a package from any text.

    >>> package_name("Überlab — Vision 2"), package_name("2 late"), package_name("物理"), package_name("torch")
    ('uberlab_vision_2', 'project_2_late', 'project', 'my_torch')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not words or keyword.iskeyword(words) or not words[0].isalpha():
        words = f"project_{words}".rstrip("_")
    return f"my_{words}" if words in TAKEN or words in sys.stdlib_module_names else words


def _git_name() -> str:
    """Return the user's name as git knows it; "" if git knows none."""
    try:
        asked = subprocess.run(["git", "config", "user.name"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return asked.stdout.decode(errors="replace").strip()
