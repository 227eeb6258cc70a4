"""Run the engine's tests: in the template where they stand, in a project in a temporary copy of the template."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from savepoint.errors import UserError
from savepoint.template.plan import ORIGINALS
from savepoint.template.record import RECORD

USAGE = "usage: python -m savepoint test-engine [arguments of pytest]"


def run_engine_tests(repository: Path, arguments: list[str]) -> int:
    """Run all tests of the engine. arguments: for pytest; those of `make test` if there are none.

    Returns: pytest's exit code.
    """
    arguments = arguments or ["-n", "2", "--dist", "loadfile", "-m", "not long"]
    if not (repository / RECORD).exists():
        return _pytest(repository, ["--ignore=tests/project", *arguments])
    with tempfile.TemporaryDirectory(prefix="savepoint-engine-") as place:
        template = Path(os.path.realpath(place)) / "savepoint"
        assemble(repository, template)
        return _pytest(template, arguments)


def assemble(project: Path, template: Path) -> None:
    """Put the template together again from tests/engine/, which has all its files but the engine, and from the engine.

    Raises: UserError if the project has no tests/engine/.
    """
    originals = project / ORIGINALS
    if not originals.is_dir():
        raise UserError(f"{ORIGINALS}/ is missing. Get it back from git: git checkout {ORIGINALS}")
    shutil.copytree(originals, template)
    shutil.copytree(project / "src" / "savepoint", template / "src" / "savepoint")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--no-gpg-sign", "-m", "The engine"]):
        identity = ["-c", "user.name=Savepoint", "-c", "user.email=", "-c", f"core.hooksPath={os.devnull}"]
        subprocess.run(["git", *identity, *command], cwd=template, check=True, stdin=subprocess.DEVNULL)


def _pytest(place: Path, arguments: list[str]) -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "src"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=place, env=environment).returncode
