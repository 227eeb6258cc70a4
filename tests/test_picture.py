"""The README's picture shows a real run: it is plain SVG, and the program that drew it can draw it again."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tools.processes import REPOSITORY

PICTURE = REPOSITORY / "docs" / "resume.svg"
PLAIN = {"svg", "title", "metadata", "rect", "g", "text", "line", "polyline", "circle"}


def read(picture: Path) -> tuple[ElementTree.Element, dict]:
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    metadata = next(each for each in root.iter() if each.tag.endswith("}metadata"))
    return root, json.loads(metadata.text or "")


def check(picture: Path) -> dict:
    """The picture has nothing but drawing, and both runs have the same points but for those that the kill took."""
    root, data = read(picture)
    assert {each.tag.rpartition("}")[2] for each in root.iter()} <= PLAIN
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on") or name.endswith("href")]
    assert data["whole"] == data["resumed"]
    assert data["killed"] == data["whole"][: len(data["killed"])]
    assert data["resumed_from"] < data["killed"][-1][0] < data["whole"][-1][0]
    assert data["last"] == "identical"
    return data


def test_the_picture_shows_two_runs_of_the_same_points() -> None:
    data = check(PICTURE)
    shown = [each.text for each in read(PICTURE)[0].iter() if each.tag.endswith("}text")]
    assert f"{data['whole'][-1][0]} updates" in shown
    assert "identical" in shown
    assert len([text for text in shown if text and text.startswith("$ ")]) == 5


@pytest.mark.long  # three trainings, each in an interpreter of its own
def test_the_program_draws_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import picture

    small = ["data.limit_batches=8", "data.batch_size=16", "trainer.threads=1"]
    monkeypatch.setattr(sys, "argv", ["picture.py", "--to", str(tmp_path / "small.svg"), "--kill-at", "19", *small])
    picture.main()
    check(tmp_path / "small.svg")
