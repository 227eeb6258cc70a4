"""Plan every file of a project from the template and the answers. Creation, copier and upgrades write this plan."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from savepoint.errors import UserError
from savepoint.template.answers import Answers
from savepoint.template.examples import kept
from savepoint.template.pages import pages
from savepoint.template.reference import PAGE, of_project
from savepoint.template.renaming import rename_path, rename_text

# Files of the template that no project has: its check of a submission, and the tests of `new` and `upgrade`.
_TEMPLATE = (".ci/", "tests/template/")
# Files that a project has too, in their places. tests/engine/ has the originals of all but the engine itself.
_SHARED = (
    *("train.py", "resume.py", "Makefile", "pyproject.toml", "constraints.txt", "SECURITY.md"),
    *("conf/", "docs/", "src/", "tests/project/", ".github/workflows/", ".devcontainer/"),
    *(".gitignore", ".gitattributes", ".editorconfig", ".pre-commit-config.yaml", "Dockerfile", ".dockerignore"),
)
# Files that a project writes once, and that no upgrade touches.
_OWN = ("README.md", "CHANGELOG.md", "LICENSE", "tests/project/")
ORIGINALS = "tests/engine"
# Folders that git ignores, for a template that is no clone: at its root, and anywhere.
_IGNORED_ROOTS = {".git", ".venv", "runs", "sweeps", "build", "dist", "exports"} | {
    *("mlartifacts", "mlruns", ".aim", "aimartifacts", "clearml_offline")
}
_IGNORED = {"__pycache__", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


@dataclass(frozen=True)
class Plan:
    """The files of a project.

    files: contents by path, with / between folders. executable: the paths of scripts. version, commit: the template's.
    """

    answers: Answers
    files: dict[str, bytes]
    executable: frozenset[str]
    version: str
    commit: str | None

    def own(self, path: str) -> bool:
        """Whether a file belongs to the project alone, so that no upgrade touches it."""
        return path.startswith((*_OWN, f"src/{self.answers.package}/"))

    @staticmethod
    def engine(path: str) -> bool:
        """Whether a file belongs to the engine or its tests, which a project leaves alone."""
        return path.startswith(("src/savepoint/", f"{ORIGINALS}/"))


def plan(template: Path, answers: Answers) -> Plan:
    """Return all files of a project that is made from this template.

    template: a clone of Savepoint, or an unpacked archive of one.
    Raises: UserError if the directory is no template.
    """
    files = {path: (template / path).read_bytes() for path in _paths(template)}
    if "src/savepoint/__init__.py" not in files or "copier.yml" not in files:
        raise UserError(f"{template} is no clone of the Savepoint template: copier.yml or src/savepoint/ is missing.")
    version = _version(files["src/savepoint/__init__.py"].decode())
    written = {path: text.encode() for path, text in pages(answers, version=version).items()}
    written["src/savepoint/LICENSE"] = files["LICENSE"]
    for path, content in files.items():
        if path.startswith(_SHARED) and path not in written and kept(path, answers.examples):
            written[rename_path(path, answers)] = _renamed(path, content, answers)
    written[PAGE] = of_project(written[PAGE].decode(), written).encode()
    originals = {
        f"{ORIGINALS}/{path}": content
        for path, content in files.items()
        if not path.startswith((*_TEMPLATE, "src/savepoint/"))
    }
    written = {path: _relinked(path, content, {*written, *originals}) for path, content in written.items()}
    executable = {path for path in files if os.access(template / path, os.X_OK)}
    executable |= {f"{ORIGINALS}/{path}" for path in executable}
    complete = written | originals
    return Plan(answers, complete, frozenset(executable & complete.keys()), version, _commit(template))


def _paths(template: Path) -> list[str]:
    """List the template's files: those that git tracks. Without git, those that it would not ignore."""
    if (listed := _git(template, "ls-files", "-z")) is not None:
        return [each for each in listed.split("\0") if each and (template / each).is_file()]
    found = []
    for folder, folders, names in os.walk(template):
        ignored = _IGNORED | _IGNORED_ROOTS if Path(folder) == template else _IGNORED
        folders[:] = [each for each in folders if each not in ignored and not each.endswith(".egg-info")]
        found += [(Path(folder) / each).relative_to(template).as_posix() for each in names]
    return sorted(each for each in found if not re.match(r"mlflow\.db|\.\w+\.lock", each))


def _renamed(path: str, content: bytes, answers: Answers) -> bytes:
    if path.startswith("src/savepoint/"):
        return content
    try:
        return rename_text(path, content.decode(), answers).encode()
    except UnicodeDecodeError:
        return content


def _relinked(path: str, content: bytes, present: set[str]) -> bytes:
    """Point the links of a page to where the project has their targets. Some are only among the originals."""
    if not path.endswith(".md"):
        return content
    folder = PurePosixPath(path).parent

    def link(found: "re.Match[str]") -> str:
        target, _, anchor = found[1].partition("#")
        place = os.path.normpath(folder / target).replace(os.sep, "/")
        if not target or ":" in target or place in present or f"{ORIGINALS}/{place}" not in present:
            return found[0]
        moved = os.path.relpath(f"{ORIGINALS}/{place}", folder).replace(os.sep, "/")
        return f"]({moved}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, content.decode()).encode()


def _version(text: str) -> str:
    found = re.search(r'^__version__ = "(.+)"$', text, re.M)
    return found[1] if found else "unknown"


def _commit(template: Path) -> str | None:
    """Return the template's commit, or None where there is no git."""
    asked = _git(template, "rev-parse", "HEAD")
    return asked and asked.strip()


def _git(template: Path, *arguments: str) -> str | None:
    """Return what git prints about the template, or None if there is no git, or the template is no clone."""
    if not (template / ".git").exists():  # git would find the repository that the template lies in
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=template, capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout.decode() if done.returncode == 0 else None
