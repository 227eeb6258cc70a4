"""docs/project.md is true: its commands make and upgrade projects, and its test passes in one."""

import os
import subprocess
import sys
from pathlib import Path

from tools import pages
from tools.processes import REPOSITORY
from tools.templates import IDENTITY, commit, committed
from tools.warm import Warm

PAGE = REPOSITORY / "docs" / "project.md"


def run(warm: Warm, directory: Path, *command: str) -> str:
    environment = os.environ | IDENTITY | {"PYTHONPATH": str(directory / "src"), "HOME": str(directory)}
    if command[0] == sys.executable:
        ended = warm.run(command, cwd=directory, env=environment)
    else:
        ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_its_commands_and_its_test_run(warm: Warm, tmp_path: Path) -> None:
    template = committed(tmp_path / "savepoint")
    page = pages.read(PAGE)
    made, copied, cut, upgrade, update = page.commands
    assert (made[0], copied[:2], cut[:2], update[:2]) == ("python", *[["pipx", "run"]] * 3)
    run(warm, tmp_path, sys.executable, *made[1:])
    project = tmp_path / "my-lab"
    page.write(project)
    run(warm, project, "git", "add", "--all")
    assert "files replaced, added or removed: none" in run(warm, project, sys.executable, *upgrade[1:])
    # In a warm process, whose modules pytest can no longer rewrite.
    assert "1 passed" in run(warm, project, sys.executable, "-m", "pytest", "-q", "--assert=plain", *page.files)
    scripts = Path(sys.executable).parent
    run(warm, tmp_path, str(scripts / copied[2]), *copied[3:], "--defaults", "--quiet")
    run(warm, tmp_path, str(scripts / cut[2]), *cut[3:], "--no-input")
    assert (tmp_path / "my-project" / ".savepoint.json").exists()
    answers = tmp_path / "my-copy" / ".copier-answers.yml"
    answers.write_text(answers.read_text().replace(": savepoint", f": {template}"))  # a relative path, as the page says
    commit(tmp_path / "my-copy")
    run(warm, tmp_path / "my-copy", str(scripts / update[2]), *update[3:], "--defaults", "--quiet", "--vcs-ref", "HEAD")
