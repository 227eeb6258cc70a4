"""docs/reference.md and docs/configs.md are what `make docs` writes now, and leave nothing out."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tools.processes import REPOSITORY

from savepoint import __main__

CONF = REPOSITORY / "conf"
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))
PRESETS = ("experiment", "debug")
COMMANDS = re.findall(r"python -m savepoint (\S+)", __main__.USAGE)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    return {path.name: text for path, text in generator.pages().items()}


@pytest.mark.parametrize("name", ["reference.md", "configs.md"])
def test_a_page_is_what_make_docs_writes(pages: dict[str, str], name: str) -> None:
    written = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert written == pages[name], "run `make docs`, or python docs/generate.py"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_has_its_row_and_its_whole_file(pages: dict[str, str], option: str) -> None:
    text = (CONF / f"{option.replace('=', '/')}.yaml").read_text(encoding="utf-8").strip()
    row = rf"^\| \[`{option}`\]\(#{option.replace('=', '')}\) \| \S.* \|$"
    assert re.search(row, pages["configs.md"], re.MULTILINE)
    assert f"\n### {option}\n\n```yaml\n{text}\n```\n" in pages["configs.md"]


def test_the_default_of_each_group_is_marked(pages: dict[str, str]) -> None:
    marked = re.findall(r"^\| \[`(\S+)`\].* The default\. \|$", pages["configs.md"], re.MULTILINE)
    assert {"model=mlp", "optimizer=adamw", "scheduler=none", "tracker=mlflow"} <= {*marked}
    assert len(marked) == len({each.partition("=")[0] for each in OPTIONS} - {*PRESETS})


def test_what_begins_a_run_and_every_command_are_there(pages: dict[str, str]) -> None:
    assert {"ls", "show", "verify", "export", "new", "ui"} <= {*COMMANDS}
    assert all(f"python -m savepoint {command}" in pages["reference.md"] for command in COMMANDS)
    for text in ("python train.py -m optimizer=adam,sgd", "usage: python resume.py run=", "--same-code", "--cfg job"):
        assert text in pages["reference.md"]
    assert "seed: 0 " in pages["configs.md"] and "hydra:\n" not in pages["configs.md"]


def test_every_make_target_has_a_command_without_make(pages: dict[str, str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)} - {"help"}
    rows = dict(re.findall(r"^\| `make (\S+)` \| .* \| (.*) \|$", pages["reference.md"], re.MULTILINE))
    assert rows.keys() == targets
    assert all(re.fullmatch(r"(`[^`$]+`(<br>)?)+", commands) for commands in rows.values()), rows
    assert rows["resume"] == "`python resume.py run='latest'`"


def test_a_fork_without_defaults_and_comments_has_its_pages_too(generator: ModuleType, tmp_path: Path) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (conf / "config.yaml").write_text((conf / "config.yaml").read_text().replace("- model: mlp", "- model: ???"))
    (conf / "model" / "bare.yaml").write_text("_target_: project.models.mlp.Mlp\n")
    configs = generator.pages(tmp_path)[tmp_path / "docs" / "configs.md"]
    assert "| [`model=bare`](#modelbare) |  |\n" in configs
    assert "The default" not in configs.partition("## data")[0]


def uncommented(text: str) -> Iterator[str]:
    """The keys with neither a comment of their own nor one on a key around them."""
    explained = -1  # the indent of the nearest key around that has a comment
    for line in text.splitlines():
        found = re.match(r"( *)(?:- )?([A-Za-z]\w*):(.*)", line)
        if found is None:
            continue
        indent = len(found[1])
        if explained >= indent:
            explained = -1
        if "  # " in line or " # " in found[3]:
            explained = indent if explained < 0 else explained
        elif explained < 0 and found[3].strip():  # a key above others says what it is by what is below it
            yield found[2]


@pytest.mark.parametrize("option", [each for each in OPTIONS if each.partition("=")[0] not in PRESETS])
def test_every_value_has_a_comment(option: str) -> None:
    text = (CONF / f"{option.replace('=', '/')}.yaml").read_text(encoding="utf-8")
    assert [*uncommented(text)] == [], "say what it is, its unit or its range: # …"


def test_every_value_of_config_yaml_has_a_comment() -> None:
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    values = text[text.index("\nseed:") : text.index("\nhydra:")]
    assert [*uncommented(values)] == []


def test_a_value_without_a_comment_is_seen() -> None:
    text = "a: 1\nb: 2  # two\nc:\n  d: [3]\ne:  # all of it\n  - _target_: x\n    f: 4\ng: '#'\n"
    assert [*uncommented(text)] == ["a", "d", "g"]
