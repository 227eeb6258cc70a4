"""What the files around the code name exists: paths, commands, make targets. Workflows, forms, containers, hooks, pages."""

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from tools.processes import REPOSITORY

import savepoint

FORMS = sorted(path.name for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
# Files whose every path has to exist.
PAGES = (
    "CONTRIBUTING.md",
    "docs/windows.md",
    ".github/workflows/tests.yml",
    ".github/pull_request_template.md",
    "Dockerfile",
)
FOLDERS = r"(?:src|tests|docs|conf|benchmarks|\.github)/[\w./-]+\w/?"  # or a file at the root, as below


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def targets() -> dict[str, list[str]]:
    """Each documented make target with its commands, as they are typed in an activated environment on any system."""
    found: dict[str, list[str]] = {}
    for name, recipe in re.findall(r"^([a-z-]+):.*## .*\n((?:\t.*\n)*)", text("Makefile"), re.M):
        found[name] = [plain(line) for line in recipe.splitlines() if not line.startswith("\t@")]
    found["setup"] = [plain(line) for line in re.findall(r"^\t([^@].*)$", rule(".venv/ready"), re.M)]
    found["check"].remove("make test")
    return found


def rule(target: str) -> str:
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", text("Makefile"), re.M)
    assert found
    return found[1]


def plain(line: str) -> str:
    changes = {
        r"\$\(or .*?,\$\(PYTHON\)\)": "python",
        r"\.venv/bin/python": "python",
        r"\$\(PYTHON\) -m venv": "py -m venv",
        r"\$\(PYTHON\)": "python",
        r"\$\(MAKE\)": "make",
        r"\$\(RUN\)": "latest",
        r"\$\(MINUTES\)": "5",
        r" \$\(ARGS\)": "",
        r" --quiet": "",
        r"'latest'": "latest",
        r"'": '"',
    }
    for pattern, replacement in changes.items():
        line = re.sub(pattern, replacement, line.strip())
    return line


def rows() -> dict[str, list[str]]:
    """The rows of the table in docs/windows.md: a make target, and the commands beside it."""
    found = re.findall(r"^\| `make ([a-z-]+)` \| (.*) \|$", text("docs/windows.md"), re.M)
    return {target: re.findall(r"`([^`]+)`", cell) for target, cell in found}


def steps() -> list[str]:
    """Every command line of the workflow, with what a matrix fills in."""
    found = []
    for job in WORKFLOW["jobs"].values():
        given = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
        for step in job["steps"]:
            for each in given:
                lines = step.get("run", "").replace("${{ matrix.tests }}", each.get("tests", ""))
                found += [line for line in lines.splitlines() if line]
    return found


def test_every_make_target_has_its_commands_beside_it() -> None:
    found, documented = rows(), targets()
    assert list(found) == list(documented)
    for target, commands in documented.items():
        shown = [each for each in found[target] if each.startswith(("python", "py ", "npm"))]
        assert len(shown) == len(commands), target
        for command, expected in zip(shown, commands):
            assert command.startswith(expected), f"make {target}: {command}"


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_is_named_exists(name: str) -> None:
    roots = {path.name for path in REPOSITORY.iterdir() if path.is_file()}
    named = set(re.findall(rf"(?<![\w./-]){FOLDERS}", text(name)))
    named |= set(re.findall(r"\]\(([^)#:]+)\)", text(name)) if name.endswith(".md") else [])
    named |= set(re.findall(r"`([\w.-]+\.(?:py|md|toml|txt))`", text(name)))
    assert named
    for path in named:
        places = (REPOSITORY / path, (REPOSITORY / name).parent / path)
        known = path in roots or any(place.exists() for place in places)
        rooms = list(REPOSITORY.glob(f"src/savepoint/*/{path}"))  # `loop.py`, of which the text says where
        assert known or rooms or path.startswith("tests/engine/"), f"{name}: {path}"


def test_every_make_target_that_is_named_exists() -> None:
    made = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.M))
    for name in ("CONTRIBUTING.md", "docs/windows.md", ".pre-commit-config.yaml", ".github/pull_request_template.md"):
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text(name), re.M)) <= made, name


def test_the_workflow_runs_what_make_runs() -> None:
    ran, made = set(steps()), targets()
    install = made["setup"][1]
    for command in (*made["check"], *made["test"], *made["demo"], *made["test-node"], install):
        assert command in ran, command


def test_each_test_that_the_workflow_names_exists() -> None:
    named = [each for line in steps() for each in shlex.split(line) if each.startswith("tests/")]
    assert len(named) > 10
    for each in named:
        path, _, test = each.partition("::")
        assert (REPOSITORY / path).exists(), path
        assert not test or f"def {test}(" in text(path), each


def test_steps_for_savepoint_alone_ask_for_a_file_that_only_savepoint_has() -> None:
    """A project has the same workflow, and neither the engine's tests nor examples that can be trained for certain."""
    for job in WORKFLOW["jobs"].values():
        for step in job["steps"]:
            engine = re.search(r"tests/(?!project)|matrix\.tests|demo", step.get("run", ""))
            asked = re.fullmatch(r"hashFiles\('(copier\.yml|tests/node/package\.json)'\) != ''", step.get("if", ""))
            assert bool(engine) == bool(asked), step


def test_no_step_runs_for_ever_or_writes_to_the_repository() -> None:
    assert all(job["timeout-minutes"] <= 60 for job in WORKFLOW["jobs"].values())
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_linux_runs_every_python_that_is_declared() -> None:
    versions = WORKFLOW["jobs"]["linux"]["strategy"]["matrix"]["python"]
    declared = tomllib.loads(text("pyproject.toml"))["project"]["requires-python"]
    following = int(versions[-1].removeprefix("3.")) + 1
    assert declared == f">={versions[0]},<3.{following}"


@pytest.mark.parametrize("name", FORMS)
def test_forms_ask_for_commands_that_exist(name: str) -> None:
    form = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{name}"))
    assert form["name"] and form["description"] and form["body"]
    commands = re.findall(r"python -m savepoint (\w+)", json.dumps(form))
    assert set(commands) <= {*re.findall(r"python -m savepoint (\w+)", _usage())}
    assert name != "wrong_bits.yml" or commands[0] == "verify"


def _usage() -> str:
    from savepoint.__main__ import USAGE

    return USAGE


def test_hooks_run_what_make_check_runs() -> None:
    hooks = [each["entry"].removesuffix(" --force-exclude") for each in HOOKS]
    assert hooks == [re.sub(r"( --check)? \.$", "", command) for command in targets()["check"]]
    assert all(each["language"] == "system" for each in HOOKS)  # the versions that make setup installed


def test_the_image_is_installed_as_make_setup_does() -> None:
    lines = re.sub(r"\\\n\s*", "", text("Dockerfile"))
    install = targets()["setup"][1]
    assert f"RUN {install}" in lines.replace("--no-cache-dir ", "")
    copied = [each for line in re.findall(r"^COPY (.*)$", lines, re.M) for each in line.split()[:-1]]
    assert all((REPOSITORY / each).exists() for each in copied), copied


def test_the_image_lacks_no_file_that_git_tracks() -> None:
    """A run in the image would record it as deleted."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    ignored = [line for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert ".venv" in ignored and not any(each.startswith(".git") for each in ignored)
    for name in tracked.splitlines():
        path = PurePosixPath(name)
        starts = [str(each) for each in (path, *path.parents)]
        for pattern in ignored:
            anywhere = pattern.removeprefix("**/")
            parts = path.parts if anywhere != pattern else starts
            assert not any(fnmatch(each, anywhere) for each in parts), f"{pattern}: {name}"


def test_the_dev_container_is_the_image() -> None:
    container: dict[str, Any] = json.loads(text(".devcontainer/devcontainer.json"))
    place = REPOSITORY / ".devcontainer" / container["build"]["dockerfile"]
    assert place.resolve() == REPOSITORY / "Dockerfile"
    assert (REPOSITORY / ".devcontainer" / container["build"]["context"]).resolve() == REPOSITORY


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (savepoint.__version__, "MIT")


def test_line_ends_are_the_same_everywhere() -> None:
    """A record of a project has digests of its files: with other line ends, each of the engine's would be an edit."""
    assert "* text=auto eol=lf\n" in text(".gitattributes")
    assert "end_of_line = lf\n" in text(".editorconfig").split("[tests/frozen")[0]
