"""docs/first_steps.md is true: a project is made as its first line says, and everything else is done in that project."""

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tools import pages
from tools.moments import Strike
from tools.processes import REPOSITORY, Ended, Zygote

from savepoint import runs

PAGE = REPOSITORY / "docs" / "first_steps.md"
LINES = [" ".join(line) for line in pages.read(PAGE).commands]
NEW, LONG, UI = LINES[0], "python train.py trainer.max_epochs=100", "python -m savepoint ui"
PRESET = "python train.py experiment=waves"
INSTALL = LINES[1:4]
FEW = ("trainer.max_epochs=3", "data.limit_batches=2")
DONE = [line for line in LINES if line not in (NEW, UI, *INSTALL)]


@dataclass
class Steps:
    """The project of a reader who has done every step. ended: how each line ended. notebook: how the page's code did."""

    root: Path
    page: pages.Page
    notebook: Ended
    ended: dict[str, Ended] = field(default_factory=dict)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    folder = tmp_path_factory.mktemp("first_steps")
    root = folder / "my-project"
    assert NEW.startswith("python3 ")
    order = [sys.executable, *NEW.split()[1:]]
    made = subprocess.run([str(root) if each == "../my-project" else each for each in order], cwd=REPOSITORY)
    assert made.returncode == 0
    # The reader has the page of the new project, in which its package has its own name.
    page = pages.read(root / "docs" / "first_steps.md")
    page.write(root)
    shutil.copytree(REPOSITORY / "tests" / "tools", root / "tests" / "tools")
    zygote = Zygote(tmp_path_factory.mktemp("outputs"), root, ("matplotlib.figure",))
    ended = {}
    for line in DONE:
        ended[line] = run(zygote, root, line)
    (snippet,) = page.snippets
    placed = snippet.replace('"exports/', f'"{root}/exports/')
    (root / "tests" / "notebook.py").write_text(f"def main():\n{textwrap.indent(placed, '    ')}    return 0\n")
    yield Steps(root, page, zygote.run("notebook.py"), ended)
    zygote.close()


def run(zygote: Zygote, root: Path, line: str) -> Ended:
    _, *arguments = line.split()
    if arguments[0] == "-m":
        module, *arguments = arguments[1:]
        placed = [str(root / each) if each.startswith(("exports/", "tests/")) else each for each in arguments]
        # In a warm process, whose modules pytest can no longer rewrite.
        warm = ("-c", str(root / "pyproject.toml"), "--assert=plain") if module == "pytest" else ()
        return zygote.run(module, *placed, *warm)
    script, *arguments = arguments
    quick = () if "--help" in arguments else ("tracker=none", "trainer.threads=1")
    if script == "train.py" and quick and line != PRESET:
        quick = (*quick, *FEW)
    return zygote.run(script, *arguments, *quick, strike=Strike(5, of="step.update") if line == LONG else None)


@pytest.mark.parametrize("line", DONE)
def test_a_step_runs(steps: Steps, line: str) -> None:
    ended = steps.ended[line]
    assert ended.status == (-9 if line == LONG else 0) and "Traceback" not in ended.output, ended.output


def test_installing_is_the_same_as_in_the_readme() -> None:
    lines = [" ".join(line) for line in pages.read(REPOSITORY / "README.md").commands]
    assert lines[(begin := lines.index(INSTALL[0])) : begin + 3] == INSTALL


def test_the_killed_run_goes_on(steps: Steps) -> None:
    assert "resumed from" in steps.ended["python resume.py run=latest"].output
    listed = steps.ended["python -m savepoint ls experiment=waves --sort best"].output.splitlines()
    assert len(listed) == 1 + 1 + 4, "the preset, and the jobs of the sweep"


def test_help_shows_what_the_new_files_say_of_themselves(steps: Steps) -> None:
    from savepoint.config import help_text

    shown = help_text([], steps.root / "conf")
    for path, text in steps.page.files.items():
        if path.startswith("conf/"):
            said = next(line for line in text.splitlines() if not line.startswith(("# @", "# conf/")))
            assert re.search(rf"^    {Path(path).stem} +{re.escape(said[2:])}$", shown, re.M), said


def test_the_model_learns_and_the_preset_judges_by_the_metric_of_the_page(steps: Steps) -> None:
    preset = steps.ended[PRESET].output
    found = re.search(r"best val/worst_class (\S+) at epoch", preset)
    assert found and float(found[1]) > 0.9, preset


def test_the_tests_of_the_project_pass(steps: Steps) -> None:
    ended = steps.ended["python -m pytest tests/project -k waves"]
    assert re.search(r"\b5 passed\b", ended.output), ended.output


def test_the_export_is_what_the_notebook_loads(steps: Steps) -> None:
    latest = runs.find("latest", steps.root).run
    assert f"run {latest.id} " in steps.ended["python -m savepoint export latest@best --to exports/waves"].output
    assert "device" not in steps.notebook.output and steps.notebook.status == 0, steps.notebook.output


def test_the_code_of_the_page_is_as_clean_as_the_project(steps: Steps) -> None:
    for check in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--no-cache", "src/my_project", "tests/project"]
        done = subprocess.run(ruff, cwd=steps.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
