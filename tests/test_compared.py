"""docs/compared.md names what exists, and the Savepoint row of its benchmark is measured as the page says."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from tools.moments import Strike
from tools.processes import REPOSITORY, Zygote

PAGE = REPOSITORY / "docs" / "compared.md"


def rivals() -> Any:
    spec = importlib.util.spec_from_file_location("rivals", REPOSITORY / "benchmarks" / "rivals.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_page_links_and_names_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    programs = re.findall(r"`python (\S+\.py)`", text)
    assert "exactness.md" in links and programs == ["benchmarks/rivals.py"]
    assert all((PAGE.parent / link).is_file() for link in links)
    assert all((REPOSITORY / program).is_file() for program in programs)


def test_every_source_letter_is_listed_and_used() -> None:
    above, sources = PAGE.read_text(encoding="utf-8").split("## Sources")
    listed = re.findall(r"^\| ([a-z]) \|", sources, re.MULTILINE)
    assert sorted(set(re.findall(r"\b([a-z])\)", above))) == listed


def test_savepoints_row_is_measured(zygote: Zygote, tmp_path: Path) -> None:
    program = rivals()

    def execute(script: str, *arguments: str, strike: dict[str, Any] | None = None) -> None:
        ended = zygote.run(script, *arguments, strike=Strike(**strike) if strike else None)
        assert ended.status == (-program.KILLED if strike else 0), ended.output

    case = program.Case(saved=4, batches=3, epochs=3)
    assert program.savepoint(case, tmp_path, execute, "data.limit_batches=3", "data.batch_size=8") == (0.0, 0.0)


def test_a_weight_that_differs_is_told() -> None:
    program = rivals()
    first, other = ({"w": program.torch.tensor(values)} for values in ([1.0, 2.0], [1.0, 2.5]))
    assert program.compare(first, first, other) == (0.0, 0.5)
