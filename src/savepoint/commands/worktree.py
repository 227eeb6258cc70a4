"""Check out the code of a run in a temporary directory. The user's own checkout, index and branch stay as they are."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from savepoint import runs
from savepoint.errors import UserError

LINES = 20  # of a failed command's output that are shown


@contextlib.contextmanager
def checked_out(repository: Path, commit: str, patch: bytes | None, *, keep: bool) -> Iterator[Path]:
    """Make a temporary directory whose `tree` is the repository at a commit, with a patch applied.

    Files that git ignores or does not track in the repository (data, runs) are linked into the tree, unless the tree
    has a file of that name. The directory is removed at the end unless `keep`.
    Raises: UserError if there is no git, no such commit, or the patch does not apply.
    """
    _check_commit(repository, commit)
    place = Path(tempfile.mkdtemp(prefix="savepoint-reproduce-")).resolve()
    tree = place / "tree"
    try:
        # A hook of the user's would run in the new tree, before the patch is there.
        added = _git(repository, "-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(tree), commit)
        if added.returncode:
            raise UserError(f"git cannot check out {commit[:12]}: {_first_line(added)}")
        if patch is not None:
            _apply(tree, patch)
        if not (tree / "resume.py").is_file():
            raise UserError(f"Commit {commit[:12]} has no resume.py, so its code cannot train a run again.")
        _link_what_git_does_not_have(repository, tree)
        yield place
    finally:
        if not keep:
            _git(repository, "worktree", "remove", "--force", "--force", str(tree))
            shutil.rmtree(place, ignore_errors=True)


def _check_commit(repository: Path, commit: str) -> None:
    try:
        inside = _git(repository, "rev-parse", "--git-dir")
    except OSError as error:
        raise UserError("git is not installed, and reproducing a run checks out its commit.") from error
    if inside.returncode:
        raise UserError(f"{repository} is no git repository, so the run's commit {commit[:12]} cannot be checked out.")
    if _git(repository, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise UserError(
            f"Commit {commit} is not in this repository. It may be in another clone, or was never pushed and is gone. "
            "Bring it here first: git fetch <where it is>."
        )


def _apply(tree: Path, patch: bytes) -> None:
    applied = _git(tree, "apply", "--whitespace=nowarn", "-", input=patch)
    if applied.returncode:
        secret = " It was redacted of a secret, which may be why." if b"[redacted]" in patch else ""
        raise UserError(f"The run's changes.patch does not apply to its commit: {_first_line(applied)}.{secret}")


def _link_what_git_does_not_have(repository: Path, tree: Path) -> None:
    """Link files and folders that no commit and no patch holds into the tree, so that relative paths find them."""
    listing = ("ls-files", "--others", "--exclude-standard", "-z")
    ignored = _git(repository, *listing, "--ignored", "--directory").stdout.decode(errors="surrogateescape").split("\0")
    untracked = _git(repository, *listing).stdout.decode(errors="surrogateescape").split("\0")
    # Untracked source comes from the patch. The file that is there now may be younger than the run.
    for name in [*ignored, *(each for each in untracked if each and not runs.in_patch(repository / each))]:
        link = tree / name
        if name and link.name != "__pycache__" and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(repository / name, target_is_directory=(repository / name).is_dir())
            except OSError as error:
                why = "Windows allows links in its developer mode only" if os.name == "nt" else error.strerror
                raise UserError(f"{repository / name} cannot be linked into {tree}: {why}.") from error


def build_environment(place: Path, versions: Any) -> Path:
    """Make a virtual environment in `place` with the recorded versions. Returns: its Python.

    Raises: UserError if pip cannot install them.
    """
    python = place / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = requirements(place / "tree", versions)
    install = [str(python), "-m", "pip", "install", "--quiet", *wanted]
    if told := _run([sys.executable, "-m", "venv", str(place / "venv")]):
        raise UserError("\n".join(["No virtual environment can be made:", *told]))
    if told := _run(install):
        builds = [each for each in wanted if "+" in each]
        hint = f" {', '.join(builds)} may be on an index of its own: set PIP_EXTRA_INDEX_URL." if builds else ""
        raise UserError("\n".join([f"The recorded versions cannot be installed.{hint} pip says:", *told]))
    return python


def _run(command: list[str]) -> list[str]:
    """Run a command. Returns: the last lines that it printed if it failed, otherwise []."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = done.stdout.decode(errors="replace").splitlines()[-LINES:]
    return (lines or [f"exit code {done.returncode}"]) if done.returncode else []


def requirements(tree: Path, versions: Any) -> list[str]:
    """List what pip is to install: exactly the recorded versions, and whatever else the tree needs.

    versions: what the provenance records. Raises: UserError if that names no versions.
    """
    if not isinstance(versions, dict):
        raise UserError("The checkpoint records no versions, so there is nothing to install.")
    exact = {name: version for name, version in versions.items() if version is not None and name != "python"}
    for name, version in exact.items():
        plain = isinstance(version, str) and re.fullmatch(r"[A-Za-z0-9][\w.+!-]*", version)
        if not plain or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise UserError(f"The checkpoint records the version {version!r} of {name!r}, which is none.")
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    others = [each for each in project["dependencies"] if re.split(r"[^\w.-]", each)[0] not in exact]
    return [*(f"{name}=={version}" for name, version in exact.items()), *others]


def _git(where: Path, *arguments: str, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], cwd=where, input=input, capture_output=True)


def _first_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[0].removeprefix("error: ").removeprefix("fatal: ") if lines else f"exit code {done.returncode}"
