"""docs/versions.md has the ranges of pyproject.toml, and each holds what was tried."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tools.processes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "versions.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
RANGES["python"] = SpecifierSet(PROJECT["requires-python"])
ROWS = dict(re.findall(r"^\| ([\w-]+) \| `(.+?)` \|", PAGE, re.M))
TRIED = {name: tried.split(", ") for name, tried in re.findall(r"^\| ([\w-]+) \| `.+?` \| (.+) \|$", PAGE, re.M)}
PINNED = dict(line.lower().split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()[1:])


def test_the_page_has_the_ranges_of_pyproject() -> None:
    assert {name: SpecifierSet(row) for name, row in ROWS.items()} == RANGES


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_range_holds_what_was_tried_and_the_pinned_version(name: str) -> None:
    for version in [*TRIED[name], *([PINNED[name]] if name in PINNED else [])]:
        assert RANGES[name].contains(version), version
    lower = next(one.version for one in RANGES[name] if one.operator == ">=")
    assert f"{TRIED[name][0]}.0".startswith(f"{lower}."), "the range begins at the oldest version that was tried"
