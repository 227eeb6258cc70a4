"""The files around the code hold in a project too, which has fewer files: its workflow, its image, its hooks."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tools.templates import committed

from savepoint.template.answers import EXAMPLES, default_answers
from savepoint.template.plan import plan


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return committed(tmp_path_factory.mktemp("template") / "savepoint")


@pytest.mark.parametrize("examples", EXAMPLES)
def test_a_project_has_what_its_workflow_and_its_image_name(examples: str, clone: Path) -> None:
    files = plan(clone, default_answers("lab", {"examples": examples, "author": ""})).files
    folders = {str(parent) for path in files for parent in Path(path).parents}
    present = {*files, *folders}
    for job in yaml.safe_load(files[".github/workflows/tests.yml"])["jobs"].values():
        for step in job["steps"]:
            if asked := re.match(r"hashFiles\('(.+)'\) != ''", step.get("if", "")):
                assert asked[1] not in files
            else:
                assert set(re.findall(r"(?:tests|src|conf)/[\w./-]+", step.get("run", ""))) <= present
    copied = re.findall(r"^COPY (.*) \S+$", files["Dockerfile"].decode(), re.M)
    assert {each for line in copied for each in line.split()} <= present
    container = json.loads(files[".devcontainer/devcontainer.json"])
    assert container["build"]["dockerfile"] == "../Dockerfile"
    assert {".pre-commit-config.yaml", ".editorconfig", ".dockerignore", ".gitattributes", "docs/windows.md"} <= present


def test_what_is_about_savepoint_alone_is_in_no_project(clone: Path) -> None:
    """Its own authors, its own rules: a project writes others, or none."""
    files = plan(clone, default_answers("lab", {"author": ""})).files
    alone = ("CITATION.cff", "CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/", ".github/pull_request_template.md")
    assert not [name for name in files if name.startswith(alone)]
