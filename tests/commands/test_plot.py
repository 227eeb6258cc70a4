"""`python -m savepoint plot`: a picture and a sketch of what runs logged, from metrics.jsonl alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from tools.listed import listed

from savepoint import __main__, runs
from savepoint.commands.plot import HEIGHT, WIDTH, sketch


def log(run: runs.Run, **values: Any) -> None:
    """Write a line of metrics.jsonl for each value, at the steps 0, 10, 20, …"""
    count = max(len(each) for each in values.values())
    lines = [
        {"step": 10 * at, "epoch": at}
        | {key.replace("_", "/"): each[at] for key, each in values.items() if at < len(each)}
        for at in range(count)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    monkeypatch.chdir(repository)
    one = listed(repository, "aaaa0001", name="base")
    log(one, train_loss=[4.0, 3.0, 2.5, 2.0], val_loss=[3.0, "nan", 2.0, 1.5], lr=[1, 2, 3, 4])
    return one


def test_a_run_is_drawn_into_plot_png_and_the_terminal(run: runs.Run, repository: Path, said: Any) -> None:
    lines = said("plot", "aaaa").splitlines()
    assert len(lines) == HEIGHT + 3 and max(map(len, lines)) <= WIDTH
    assert (
        lines[0] == "        4 │●"
        and lines[6].startswith("     2.75 │")
        and lines[12] == "      1.5 │" + " " * 68 + "○"
    )
    assert lines[14] == "     step  0" + " " * 66 + "30"
    assert lines[15:] == ["● train/loss", "○ val/loss", "plot.png"]
    assert sum(line.count("●") for line in lines[:13]) == 4 and sum(line.count("○") for line in lines[:13]) == 3
    image = imread(repository / "plot.png")
    assert image.shape[:2] == (650, 1040) and image.std() > 0.05


def test_several_runs_and_other_keys_go_into_one_picture(run: runs.Run, repository: Path, said: Any) -> None:
    log(listed(repository, "bbbb0001", number=1), val_loss=[1.0, 0.001])
    shown = said("plot", "aaaa", "bbbb", "--keys", "val/loss,lr", "--to", "both.PNG")
    assert shown.splitlines()[-4:] == [
        "● aaaa0001 base val/loss",
        "○ aaaa0001 base lr",
        "■ bbbb0001 val/loss",
        "both.PNG",
    ]
    assert shown.startswith("        4 │") and "    0.001 │" in shown, "the values span more than 30-fold"
    assert (repository / "both.PNG").stat().st_size > 10_000


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [-1e300, 1e300], [0.0, 1e-12], [1e-300, 1e300], [5] * 1000])
def test_a_sketch_fits_whatever_the_values_are(values: list[float]) -> None:
    lines = sketch([("key", 0, 0, list(enumerate(values)))])
    assert len(lines) == HEIGHT + 1 and max(map(len, lines)) <= WIDTH
    assert any("●" in line for line in lines[:13])


def test_a_strangers_name_cannot_move_the_cursor(run: runs.Run, repository: Path, said: Any) -> None:
    log(listed(repository, "bbbb0001", number=1, name="\x1b[31m$x_{$"), val_loss=[1.0])
    assert "\x1b" not in said("plot", "aaaa", "bbbb")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "Which runs? usage: python -m savepoint plot <run> … [--keys train/loss,val/loss] [--to FILE.png]"),
        ("aaaa@best", "aaaa@best: plot takes runs. This one is aaaa0001."),
        ("aaaa --to plot.svg", "--to plot.svg: the picture is a PNG. Give a name that ends in .png."),
        ("aaaa --to none/plot.png", "none/plot.png cannot be written: No such file or directory."),
        ("aaaa --keys val/los", "val/los: not logged. Did you mean val/loss? There are: lr, train/loss, val/loss."),
        ("aaaa --keys ,", "There is nothing to draw: , has no finite value. Logged are: lr, train/loss, val/loss."),
        (
            "aaaa --log",
            "plot has no option --log. usage: python -m savepoint plot <run> … [--keys train/loss,val/loss] [--to FILE.png]",
        ),
    ],
)
def test_wrong_input_is_one_line(
    run: runs.Run, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert __main__.main(["plot", *arguments.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert not Path("plot.png").exists()


def test_a_run_that_logged_nothing_finite_is_not_drawn(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, train_loss=["nan", "inf"])
    assert __main__.main(["plot", "aaaa"]) == 2
    assert (
        capsys.readouterr().err
        == "error: There is nothing to draw: train/loss,val/loss has no finite value. Logged are: train/loss.\n"
    )
    run.metrics.unlink()
    assert __main__.main(["plot", "aaaa"]) == 2
    assert "There is nothing to draw" in capsys.readouterr().err
