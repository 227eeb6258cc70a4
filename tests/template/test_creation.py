"""A project from the template: by `new`, copier and cookiecutter, in one way, and sound from its first commit."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tools.processes import REPOSITORY
from tools.templates import IDENTITY, committed, git

from savepoint.errors import UserError
from savepoint.template.answers import EXAMPLES, Answers, default_answers, package_name
from savepoint.template.creation import new_project
from savepoint.template.plan import ORIGINALS, plan
from savepoint.template.record import RECORD, digest

ANSWERS = {"name": "Mein Labor", "package": "labor", "author": 'Ada "A." Lovelace', "licence": "MIT", "tracker": "none"}


def flags(**answers: str) -> list[str]:
    return [f"--{name}={value}" for name, value in answers.items()]


def new(
    directory: Path | str, *arguments: str, cwd: Path = REPOSITORY, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `new` as on a machine where nothing is installed: isolated, so that no site-packages are seen."""
    command = [sys.executable, "-I", "-S", str(REPOSITORY / "src" / "savepoint" / "template"), "new", str(directory)]
    return subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, encoding="utf-8", env=os.environ | IDENTITY | environment
    )  # fmt: skip


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a project but git's, copier's own record, and ours, which names the template's commit."""
    apart = {".git", "__pycache__"}
    files = [
        path for path in directory.rglob("*") if path.is_file() and not apart & {*path.relative_to(directory).parts}
    ]
    found = {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if name not in (".copier-answers.yml", RECORD)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a template that was committed: copier reads commits, and not the working tree."""
    return committed(tmp_path_factory.mktemp("template") / "savepoint")


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_reference_of_configs_is_what_make_docs_writes_there(examples: str, tmp_path: Path) -> None:
    planned = plan(REPOSITORY, default_answers("lab", {"examples": examples}))
    for path, content in planned.files.items():
        if path.startswith("conf/"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
    specification = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert planned.files["docs/configs.md"].decode() == module._configs(tmp_path / "conf")


@pytest.fixture(scope="module")
def made(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "Mein Labor"
    assert new_project(clone, [str(directory), *flags(**ANSWERS)]) == 0
    return directory


def test_new_needs_nothing_but_python(tmp_path: Path) -> None:
    ended = new(tmp_path / "lab", "--examples=one")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        f"lab: a project in {tmp_path / 'lab'}, its package lab, examples: one",
        "first commit made",
        f"next: cd {tmp_path / 'lab'} && make train",
    ]


def test_a_project_has_its_own_names_everywhere(made: Path) -> None:
    project = tomllib.loads((made / "pyproject.toml").read_text(encoding="utf-8"))
    about = project["project"]
    assert (about["name"], about["description"], about["license"]) == ("labor", "Mein Labor", "MIT")
    assert about["authors"] == [{"name": 'Ada "A." Lovelace'}]
    assert project["tool"]["savepoint"]["package"] == "labor"
    assert "labor[onnx,joblib,optuna,slurm,clearml]" in about["optional-dependencies"]["dev"]
    assert (made / "README.md").read_text(encoding="utf-8").startswith("# Mein Labor\n")
    assert "Mein Labor" in (made / "CHANGELOG.md").read_text(encoding="utf-8")
    assert 'Copyright (c) Ada "A." Lovelace' in (made / "LICENSE").read_text(encoding="utf-8")
    assert yaml.safe_load((made / "conf/tracker/mlflow.yaml").read_text())["experiment"] == "Mein Labor"
    assert "  - tracker: none\n" in (made / "conf/config.yaml").read_text()
    assert not (made / "src/project").exists()


def test_no_file_of_the_project_speaks_of_the_templates_package(made: Path) -> None:
    named = re.compile(r"\bproject\.(models|data|tasks|schedulers|targets)\b|src/project\b|from project\b")
    for name, content in contents(made).items():
        if not name.startswith((f"{ORIGINALS}/", "src/savepoint/")):
            assert not named.search(content.decode(errors="replace")), name


def test_its_makefile_names_only_what_the_project_has(made: Path) -> None:
    text = (made / "Makefile").read_text()
    assert re.search(r"^test-engine: ", text, re.M)
    assert not [
        path for path in re.findall(r"\b(?:tests|benchmarks|docs)/[\w./-]+", text) if not (made / path).exists()
    ]
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.M)[0].split()
    assert {*phony} == {*re.findall(r"^([a-z-]+):(?! =)", text, re.M)}


def test_its_first_commit_holds_everything(made: Path) -> None:
    assert git(made, "status", "--porcelain") == ""
    assert git(made, "log", "--format=%s").splitlines() == ["Begin Mein Labor, from the Savepoint template 0.1.0"]
    assert git(made, "branch", "--show-current") == "main\n"


def test_links_of_its_pages_lead_somewhere(made: Path) -> None:
    for page in [*made.glob("*.md"), *made.glob("docs/**/*.md")]:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            assert ":" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_record_knows_each_file_that_is_not_the_projects_own(made: Path) -> None:
    record = json.loads((made / RECORD).read_text(encoding="utf-8"))
    files = contents(made)
    own = ("README.md", "CHANGELOG.md", "LICENSE", "src/labor/", "tests/project/")
    assert record["files"] == {name: digest(files[name]) for name in sorted(files) if not name.startswith(own)}
    assert record["answers"] == ANSWERS | {"examples": "all"}


def test_the_template_can_be_put_together_again(made: Path, clone: Path) -> None:
    from savepoint.template.suite import assemble

    assemble(made, made.parent / "assembled")
    again, before = contents(made.parent / "assembled"), contents(clone)
    about = (".ci/", "tests/template/")
    assert again == {
        name: content for name, content in before.items() if not name.startswith(about)
    } | {"src/savepoint/LICENSE": before["LICENSE"]}  # fmt: skip


def test_test_engine_runs_the_engines_tests_in_a_project(made: Path) -> None:
    command = [sys.executable, "-m", "savepoint", "test-engine", "-q", "tests/test_errors.py", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(made / "src")}
    ended = subprocess.run(command, cwd=made, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


@pytest.mark.parametrize("examples", EXAMPLES)
def test_configs_name_only_classes_that_the_project_has(examples: str, clone: Path) -> None:
    planned = plan(clone, default_answers("lab", {"examples": examples, "author": ""}))
    for name, content in planned.files.items():
        if name.startswith("conf/"):
            for module in re.findall(r"_target_: (lab\.[\w.]+)\.\w+", content.decode()):
                assert f"src/{module.replace('.', '/')}.py" in planned.files, f"{name}: {module}"


def test_with_no_examples_the_config_says_what_to_choose(clone: Path) -> None:
    planned = plan(clone, default_answers("lab", {"examples": "none", "author": ""}))
    config = planned.files["conf/config.yaml"].decode()
    assert all(f"  - {group}: ???\n" in config for group in ("model", "data", "task"))
    assert not [name for name in planned.files if name.startswith(("conf/model/", "conf/task/", "conf/experiment/"))]


def test_copier_and_cookiecutter_write_the_same_project(made: Path, clone: Path, tmp_path: Path) -> None:
    answers = ANSWERS | {"examples": "all"}
    scripts = Path(sys.executable).parent
    data = [part for name, value in answers.items() for part in ("--data", f"{name}={value}")]
    copier = [scripts / "copier", "copy", "--quiet", "--trust", "--defaults", *data, clone, tmp_path / "copied"]
    cookie = [
        scripts / "cookiecutter",
        "--no-input",
        clone,
        *[f"{name}={value}" for name, value in answers.items()],
        "directory=cut",
    ]
    environment = os.environ | IDENTITY | {"HOME": str(tmp_path)}
    for command in (copier, cookie):
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in ("copied", "cut"):
        assert contents(tmp_path / name) == contents(made)
        assert git(tmp_path / name, "status", "--porcelain") == ""
        assert len(git(tmp_path / name, "log", "--oneline").splitlines()) == 1


WRONG = [
    (["--package=my-lab"], "package 'my-lab': give a name that Python can import: a-z, 0-9 and _: for example my_lab."),
    (["--package=torch"], "package 'torch': another package has that name. Give another, for example my_torch."),
    (["--package=class"], "package 'class': give a name that Python can import"),
    (["--licence=GPL"], "licence 'GPL': choose MIT, BSD-3-Clause or none."),
    (["--tracker=wandb"], "tracker 'wandb': choose mlflow or none."),
    (["--examples=two"], "examples 'two': choose all, one or none."),
    (["--name=a\nb"], "name 'a\\nb': give a name of one line"),
    (["--colour=red"], "unrecognized arguments: --colour=red."),
    (["--name"], "argument --name: expected one argument."),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_answer_is_named_and_nothing_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        new_project(REPOSITORY, [str(tmp_path / "lab"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("lab", "file"):
        with pytest.raises(UserError, match=r"exists already\. Give the name of a new directory\."):
            new_project(REPOSITORY, [str(tmp_path / name)])
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["with spaces", "Ünïcode — 物理", "dash-es", "'quoted'", "UPPER"])
def test_directories_of_all_names(name: str, tmp_path: Path, clone: Path) -> None:
    assert new_project(clone, [str(tmp_path / name), "--examples=none"]) == 0
    project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["description"] == name
    assert project["tool"]["savepoint"]["package"] == package_name(name)
    assert (tmp_path / name / "src" / package_name(name) / "__init__.py").is_file()
    assert (
        yaml.safe_load((tmp_path / name / "conf/tracker/mlflow.yaml").read_text(encoding="utf-8"))["experiment"] == name
    )


def test_without_git_the_project_is_written_and_told_what_is_missing(tmp_path: Path) -> None:
    ended = new(tmp_path / "lab", "--examples=none", PATH=str(tmp_path / "nothing"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "git is not installed, so there is no first commit. Once it is: git init" in ended.stdout
    assert (tmp_path / "lab" / RECORD).is_file()


def test_inside_another_repository_no_second_one_is_made(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    ended = new("lab", "--examples=none", cwd=tmp_path)
    assert ended.returncode == 0
    assert "the directory lies in another git repository" in ended.stdout
    assert not (tmp_path / "lab" / ".git").exists()


def test_a_machine_without_a_git_identity_gets_its_commit_too(tmp_path: Path) -> None:
    nobody = dict.fromkeys(IDENTITY, "") | {
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    environment = {name: value for name, value in (os.environ | nobody).items() if name not in IDENTITY}
    command = [
        sys.executable,
        str(REPOSITORY / "src/savepoint/template"),
        "new",
        "lab",
        "--author=Ada",
        "--examples=none",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ended.stdout.splitlines()[1] == "first commit made", ended.stdout + ended.stderr
    assert git(tmp_path / "lab", "log", "--format=%an <%ae>") == "Ada <>\n"


def test_a_project_is_no_template(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is no clone of the Savepoint template: copier\.yml or src/savepoint/ is missing"
    ):
        new_project(made, [str(tmp_path / "lab")])


def test_an_archive_without_git_is_a_template_too(clone: Path, tmp_path: Path) -> None:
    git(clone, "archive", "--output", str(tmp_path / "all.tar"), "HEAD")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "xf", "../all.tar"], cwd=tmp_path / "unpacked", check=True)
    answers = Answers(**ANSWERS, examples="all")
    for junk in ("runs/2026/x/run.json", ".venv/lib/x.py", "src/savepoint/__pycache__/x.pyc", "mlflow.db"):
        (tmp_path / "unpacked" / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / junk).write_text("x")
    one, other = plan(clone, answers), plan(tmp_path / "unpacked", answers)
    assert one.files == other.files
    assert other.commit is None


@pytest.mark.long
@pytest.mark.parametrize("examples", EXAMPLES)
def test_a_project_passes_its_own_checks_at_once(examples: str, clone: Path, tmp_path: Path) -> None:
    """The lint, the types and the tests of the project itself, each as `make check` runs them."""
    directory = tmp_path / "lab"
    assert new_project(clone, [str(directory), f"--examples={examples}"]) == 0
    environment = os.environ | {"PYTHONPATH": "src"}
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest -q -n 3 --dist loadfile"):
        ended = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=directory, capture_output=True, text=True, env=environment
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    assert git(directory, "status", "--porcelain") == ""
