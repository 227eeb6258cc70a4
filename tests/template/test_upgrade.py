"""A newer engine in a project: it replaces what is the template's, touches nothing else, and old runs go on."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tools.processes import REPOSITORY
from tools.templates import IDENTITY, commit, copy_tracked, git
from tools.warm import Warm

from savepoint import runs
from savepoint.commands import diff_runs
from savepoint.errors import UserError
from savepoint.template.creation import new_project
from savepoint.template.plan import ORIGINALS
from savepoint.template.record import RECORD
from savepoint.template.upgrade import apply_upgrade, upgrade_project

OLD = "ec94a43ffbc18cf4d6c1388ed7b2eaf0a0e622dd"  # a commit of this repository, from which projects were made
DENSE = """\
from torch import nn


class Dense(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))
"""
TRAINING = (
    "model=dense",
    "trainer.max_epochs=3",
    "data.limit_batches=5",
    "checkpoint.every_n_steps=2",
    "trainer.threads=1",
)


def run(warm: Warm, directory: Path, *command: str) -> str:
    """Run Python in a project, with the project's own engine."""
    environment = os.environ | IDENTITY | {"PYTHONPATH": str(directory / "src")}
    ended = warm.run([sys.executable, *command], cwd=directory, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def edit(project: Path, path: str, before: str, after: str) -> None:
    text = (project / path).read_text(encoding="utf-8")
    assert before in text
    (project / path).write_text(text.replace(before, after, 1), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a model of its own, from the template as it is now."""
    directory = tmp_path / "lab"
    assert new_project(REPOSITORY, [str(directory), "--examples=one", "--tracker=none"]) == 0
    own(directory)
    return directory


def own(directory: Path) -> None:
    """Make a project somebody's: a model, an edited config, a README."""
    (directory / "src/lab/models/dense.py").write_text(DENSE)
    (directory / "conf/model/dense.yaml").write_text("# Mine.\n_target_: lab.models.dense.Dense\nwidth: 32\n")
    edit(directory, "conf/checkpoint/default.yaml", "keep_last: 2", "keep_last: 9")
    edit(directory, "README.md", "# lab", "# My laboratory")
    commit(directory)


def newer(tmp_path: Path) -> Path:
    """A later version of the template: a changed module, a new one, one that is gone, a new key, another CHANGELOG."""
    template = tmp_path / "newer"
    copy_tracked(template)
    edit(template, "src/savepoint/registry.py", '"""', '"""Newer. ')
    (template / "src/savepoint/system/added.py").write_text('"""A new room."""\n')
    (template / "docs/slurm.md").unlink()
    edit(template, "src/savepoint/__init__.py", '__version__ = "0.1.0"', '__version__ = "0.2.0"')
    edit(template, "CHANGELOG.md", "### Added", "### Added\n\n- Time travel.")
    edit(template, "conf/checkpoint/default.yaml", "keep_best: 1", "keep_worst: 0\nkeep_best: 1")
    edit(template, "pyproject.toml", '"rich>=13.7,<16"', '"rich>=14,<16"')
    edit(template, "src/project/models/mlp.py", '"""', '"""Better. ')
    return template


def test_across_two_commits_of_this_repository_old_runs_go_on_to_the_same_bits(warm: Warm, tmp_path: Path) -> None:
    """By copier, and by `upgrade` in a copy of the same project that has left copier."""
    if subprocess.run(["git", "cat-file", "-e", OLD], cwd=REPOSITORY, capture_output=True).returncode:
        pytest.skip(f"this clone has no history, so {OLD[:12]} is not in it: git fetch --unshallow")
    template = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(REPOSITORY), str(template))
    copier = str(Path(sys.executable).parent / "copier")
    answers = ["--data", "examples=one", "--data", "tracker=none", "--vcs-ref", OLD, str(template), "lab"]
    environment = os.environ | IDENTITY
    subprocess.run(
        [copier, "copy", "--quiet", "--trust", "--defaults", *answers], cwd=tmp_path, check=True, env=environment
    )
    first = tmp_path / "lab"
    own(first)
    run(warm, first, "train.py", *TRAINING, "hydra.run.dir=runs/whole")
    shutil.copytree(first / "runs/whole", first / "runs/part")
    for newer_one in sorted((first / "runs/part/checkpoints").iterdir())[3:]:
        shutil.rmtree(newer_one)
    second = Path(shutil.copytree(first, tmp_path / "second" / "lab"))
    (second / ".copier-answers.yml").unlink()
    commit(second)

    update = [copier, "update", "--quiet", "--trust", "--defaults", "--vcs-ref", "HEAD"]
    subprocess.run(update, cwd=first, check=True, env=environment)
    said = run(warm, second, "-m", "savepoint", "upgrade", "--from", str(template))
    assert f"Savepoint 0.1.0 ({OLD[:12]}) → " in said
    for directory in (first, second):
        for path in git(template, "ls-files", "src/savepoint").splitlines():
            assert (directory / path).read_bytes() == (template / path).read_bytes()
        changed = git(directory, "diff", "--name-only", "HEAD").splitlines()
        assert [path for path in changed if path.startswith("src/savepoint/")]
        assert not [path for path in changed if path.startswith(("src/lab/", "tests/project/", "README", "runs/"))]
        assert "keep_last: 9" in (directory / "conf/checkpoint/default.yaml").read_text()
        run(warm, directory, "resume.py", "run=runs/part")
        assert diff_runs(*(runs.read(directory / "runs" / name) for name in ("whole", "part"))) == []


def test_an_upgrade_replaces_the_engine_and_touches_nothing_else(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = newer(tmp_path)
    assert apply_upgrade(project, template) == 0
    changed = {line[3:]: line[:2].strip() for line in git(project, "status", "--porcelain", "-uall").splitlines()}
    assert changed == {
        RECORD: "M",
        "docs/configs.md": "M",  # with the newer default; `make docs` writes that of the project's own file
        "docs/slurm.md": "D",
        "pyproject.toml": "M",
        "src/savepoint/__init__.py": "M",
        "src/savepoint/registry.py": "M",
        "src/savepoint/system/added.py": "??",
        f"{ORIGINALS}/CHANGELOG.md": "M",
        f"{ORIGINALS}/conf/checkpoint/default.yaml": "M",
        f"{ORIGINALS}/docs/slurm.md": "D",
        f"{ORIGINALS}/pyproject.toml": "M",
        f"{ORIGINALS}/src/project/models/mlp.py": "M",
    }
    assert "keep_last: 9" in (project / "conf/checkpoint/default.yaml").read_text()
    said = capsys.readouterr().out
    assert "→ 0.2.0\n" in said
    assert "  - Time travel.\n" in said
    assert (
        f"yours stays: conf/checkpoint/default.yaml. The newer one is {ORIGINALS}/conf/checkpoint/default.yaml" in said
    )


def test_requirements_that_an_edited_pyproject_lacks_are_named(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(project, "pyproject.toml", "dependencies = [", 'dependencies = [\n    "timm",')
    apply_upgrade(project, newer(tmp_path))
    assert '"timm"' in (project / "pyproject.toml").read_text()
    assert "pyproject.toml lacks what the newer engine asks for: rich>=14,<16\n" in capsys.readouterr().out


def test_a_second_upgrade_to_the_same_version_changes_nothing(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = newer(tmp_path)
    apply_upgrade(project, template)
    commit(project)
    capsys.readouterr()
    apply_upgrade(project, template)
    assert git(project, "status", "--porcelain") == ""
    assert "files replaced, added or removed: none" in capsys.readouterr().out


def test_an_upgrade_that_was_interrupted_goes_on(project: Path, tmp_path: Path) -> None:
    template = newer(tmp_path)
    shutil.copy(template / "src/savepoint/registry.py", project / "src/savepoint/registry.py")
    shutil.copy(template / "src/savepoint/system/added.py", project / "src/savepoint/system/added.py")
    assert apply_upgrade(project, template) == 0


def test_an_edited_engine_is_refused_line_by_line_and_nothing_changes(project: Path, tmp_path: Path) -> None:
    engine = project / "src/savepoint"
    lines = (engine / "registry.py").read_text().splitlines(keepends=True)
    (engine / "registry.py").write_text("".join(["# mine\n", *lines[:4], *lines[6:]]))
    (engine / "system/mine.py").write_text("")
    (engine / "LICENSE").unlink()
    (project / ORIGINALS / "tests/test_errors.py").write_text("")
    commit(project)  # the edit is in the history by now
    template = newer(tmp_path)
    with pytest.raises(UserError) as error:
        apply_upgrade(project, template)
    told = str(error.value).splitlines()
    assert told[1:5] == [
        "  src/savepoint/LICENSE: deleted",
        "  src/savepoint/registry.py: lines 1, 5 (lines are missing before it)",
        "  src/savepoint/system/mine.py: added",
        f"  {ORIGINALS}/tests/test_errors.py: line 1 (lines are missing before it)",
    ]
    assert "Move the change to src/lab/" in told[5]
    assert "Nothing was changed." in told[5]
    assert git(project, "status", "--porcelain") == ""


def test_without_any_history_the_edited_files_are_named(project: Path, tmp_path: Path) -> None:
    shutil.rmtree(project / ".git")
    (project / "src/savepoint/errors.py").write_text("# mine\n")
    record = json.loads((project / RECORD).read_text())
    (project / RECORD).write_text(json.dumps(record | {"commit": None}))
    with pytest.raises(UserError, match=r"src/savepoint/errors\.py: edited; which lines is not known"):
        apply_upgrade(project, newer(tmp_path))


def test_files_that_were_deleted_stay_deleted(project: Path, tmp_path: Path) -> None:
    deleted = [project / name for name in ("conf/optimizer/adam.yaml", "src/lab/data/balanced.py", "CHANGELOG.md")]
    for file in deleted:
        file.unlink()
    apply_upgrade(project, newer(tmp_path))
    assert not [file for file in deleted if file.exists()]


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_an_archive_serves_as_well(
    ending: str, project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    template = newer(tmp_path)
    kind = "zip" if ending == ".zip" else "gztar"
    archive = shutil.make_archive(str(tmp_path / "savepoint-0.2"), kind, root_dir=tmp_path, base_dir=template.name)
    assert upgrade_project(project, ["--from", archive]) == 0
    assert "→ 0.2.0\n" in capfd.readouterr().out
    assert (project / "src/savepoint/system/added.py").is_file()


def test_what_is_no_newer_version_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "other.tar", "w") as tarred:
        tarred.add(tmp_path / "text", "text")
    for source, message in (
        ("nowhere", "does not exist"),
        ("text", "cannot be unpacked"),
        ("folder", "is no clone of the Savepoint template"),
        ("other.tar", "is no clone of the Savepoint template"),
    ):
        with pytest.raises(UserError, match=message) as error:
            upgrade_project(project, ["--from", str(tmp_path / source)])
        assert "\n" not in str(error.value)
    for arguments in ([], ["--from"], ["--into", "x"]):
        with pytest.raises(UserError, match="Upgrade from where"):
            upgrade_project(project, arguments)
    assert git(project, "status", "--porcelain") == ""


def test_a_clone_of_the_template_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no \.savepoint\.json, so it was not made by"):
        upgrade_project(REPOSITORY, ["--from", str(tmp_path)])


def test_copier_keeps_its_own_projects_up_to_date(project: Path) -> None:
    (project / ".copier-answers.yml").write_text("")
    with pytest.raises(UserError, match=r"run `copier update --trust`\. To leave copier, delete \.copier-answers\.yml"):
        apply_upgrade(project, REPOSITORY)


@pytest.mark.parametrize("text", ["", "{}", '{"answers": {}}', "[]"])
def test_a_damaged_record_is_one_line(text: str, project: Path) -> None:
    (project / RECORD).write_text(text)
    with pytest.raises(UserError) as error:
        apply_upgrade(project, REPOSITORY)
    assert "damaged" in str(error.value)
