"""Copies of this repository's tracked files, as they are now, and git without the user's own settings."""

import os
import shutil
import subprocess
from pathlib import Path

from tools.processes import REPOSITORY

IDENTITY = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, env=os.environ | IDENTITY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(directory: Path, message: str = "All") -> None:
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)


def copy_tracked(root: Path) -> None:
    """Copy what git tracks in this repository, with edits that are not committed."""
    for path in git(REPOSITORY, "ls-files", "-z").split("\0"):
        if path and (REPOSITORY / path).is_file():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / path, root / path)


def committed(root: Path) -> Path:
    """Make a repository of its own with these files in one commit: copier reads commits, and no working tree."""
    copy_tracked(root)
    git(root, "init", "--quiet")
    commit(root)
    return root
