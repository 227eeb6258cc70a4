"""The points of a metrics.jsonl that grows, is torn, or is replaced by another one."""

import itertools
import json
from pathlib import Path

from savepoint.runs import history
from savepoint.trackers.points import Follower, count


def log(path: Path, steps: range) -> None:
    lines = history.History(path)
    for step in steps:
        lines.append(step=step, epoch=step, values={"train/loss": 1 / step, "lr": 0.1})
    lines.close()


def test_every_value_of_a_whole_line_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert count(tmp_path) == 0
    log(path, range(1, 4))
    with path.open("a") as file:
        file.write(json.dumps({"step": 4, "time": 0.5, "lr": 0.1}))  # no end of line yet
    assert count(tmp_path) == 9  # epoch, train/loss and lr, three times
    history.append_usage(tmp_path / "system.jsonl", step=3, values={"system/cpu_percent": 50.0})
    assert count(tmp_path) == 10


def test_torn_and_garbled_lines_are_not_points(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert list(follower.read()) == []  # not there yet
    whole = json.dumps({"step": 1, "time": 0.5, "loss": 1.0})
    path.write_text(f'{whole}\n{{"ste\n[]\n{whole[:9]}')
    [[point]] = follower.read()
    assert (point.key, point.step, point.value, point.milliseconds) == ("loss", 1, 1.0, 500)
    for _ in range(2):  # what was not taken, since the tracker failed in between, comes again
        with path.open("a") as file:
            file.write(whole[9:] + "\n")
        taken = list(itertools.islice(follower.read(), 1))
        assert taken[0][0] == point
    follower.close()


def test_file_that_takes_the_name_of_the_followed_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, range(1, 4))
    follower = Follower(path)
    follower.open()
    history.cut_history(path, lines=1)
    log(path, range(7, 20))
    assert {point.step for points in follower.read() for point in points} == {1, 2, 3}
    follower.close()
