"""docs/own_tracker.md: its two files make TensorBoard a tracker, with each point once wherever a run was killed."""

import collections
import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import pages
from tools.moments import Strike
from tools.processes import REPOSITORY
from tools.stores import wait_for
from tools.workshop import Workshop, open_workshop

from savepoint import runs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed: pip install tensorboard"
)
PAGE = pages.read(REPOSITORY / "docs" / "own_tracker.md")
SMALL = ("tracker=tensorboard", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=4", "data.batch_size=32")
CONFIG = (*SMALL, "trainer.max_epochs=3", "trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A repository with the page's files."""
    with open_workshop(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("outputs")) as workshop:
        PAGE.write(workshop.root)
        yield workshop


def logged(run: runs.Run) -> dict[tuple[str, int], float]:
    """The points of metrics.jsonl, in TensorBoard's 32 bits, without those that depend on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    points = {(key, line["step"]): float(line[key]) for line in lines for key in line if key not in ("step", "time")}
    points = {point: value for point, value in points.items() if not point[0].startswith("system/")}
    return {point: struct.unpack("f", struct.pack("f", value))[0] for point, value in points.items()}


def stored(directory: Path) -> tuple[dict[tuple[str, int], float], collections.Counter[Any], dict[str, str]]:
    """What the event files hold: the points, how often each is there, and the last text of each tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = [(tag, each) for tag in events.Tags()["scalars"] for each in events.Scalars(tag)]
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    points = {(tag, each.step): each.value for tag, each in found if not tag.startswith("system/")}
    return points, collections.Counter((tag, each.step) for tag, each in found), texts


def test_a_killed_and_resumed_run_is_there_with_each_point_once(lab: Workshop, tmp_path: Path) -> None:
    counted = tmp_path / "moments"
    ended = lab.run("train.py", *CONFIG, f"hydra.run.dir={tmp_path / 'whole'}", strike=Strike(count=str(counted)))
    assert ended.status == 0 and "has not stored" not in ended.output, ended.output
    ended = lab.run("train.py", *CONFIG, strike=Strike(int(counted.read_text()) // 2, "kill"))
    assert ended.status == -9
    ended = lab.run("resume.py", "run=latest")
    assert ended.status == 0 and "has not stored" not in ended.output, ended.output
    (run,) = runs.all_runs(lab.root)
    for each in (run, runs.read(tmp_path / "whole")):
        points, times, texts = stored(lab.root / "tensorboard" / each.id)
        assert points == logged(each) and {*times.values()} == {1}
        assert texts["status"] == "finished" and "optimizer.lr: 0.005" in texts["params"]
        kept = lab.root / "tensorboard" / each.id / "artifacts"
        assert (kept / "metrics.jsonl").read_bytes() == each.metrics.read_bytes()
        checkpoints = {path.name for path in each.checkpoints.iterdir() if not path.name.startswith(".")}
        assert {path.name for path in (kept / "checkpoints").iterdir()} == checkpoints


def test_a_run_without_a_tracker_is_sent_later(lab: Workshop) -> None:
    lab.clear()
    assert lab.run("train.py", *CONFIG, "tracker=none").status == 0
    (run,) = runs.all_runs(lab.root)
    ended = lab.run("savepoint", "sync", "latest", "tracker=tensorboard")
    assert ended.status == 0, ended.output
    wait_for(lambda: stored(lab.root / "tensorboard" / run.id)[0] == logged(run))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "there is no src/project/trackers/nothing.py."),
        ("empty", "project.trackers.empty must define KIND, a savepoint.trackers.Kind."),
        ("protocol", "there is no src/project/trackers/protocol.py."),
    ],
)
def test_a_kind_that_is_not_there_is_refused_in_one_line(lab: Workshop, kind: str, words: str) -> None:
    lab.clear()
    (lab.root / "src" / "project" / "trackers" / "empty.py").touch()
    ended = lab.run("train.py", *CONFIG, f"tracker.kind={kind}")
    assert (ended.status, ended.output) == (2, f"error: tracker.kind={kind}: {words}\n")
    assert lab.left() == []
