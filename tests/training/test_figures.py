"""Figures: what a task draws lies in the run directory, and an interruption loses and changes none of it."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.figure import Figure
from tools.fitting import BATCHES, Fitted, Squares, assert_same_run, go
from torch import Tensor

from project.tasks.classification import Classification
from project.tasks.language_model import LanguageModel
from project.tasks.regression import Regression
from savepoint.errors import ConfigError
from savepoint.system import files, rng
from savepoint.system.signals import Stop
from savepoint.training import figures


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Drawing(Squares):
    """Draws what it predicts, and from the generators."""

    def figures(self, model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        assert not model.training and not torch.is_grad_enabled()
        predictions = []
        for batch in batches:
            self.on_call(model.training)
            predictions.append(model(batch[0]).squeeze(1))
        axes = Figure().subplots()
        axes.plot(torch.cat(predictions).numpy())
        return {"curve": axes.figure, "noise": torch.rand(3, 4, 5), "words": f"{torch.cat(predictions)}"}


def drawn(fitted: Fitted) -> dict[str, bytes]:
    root = fitted.run.directory / "figures"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")}


def test_figures_are_drawn_every_n_epochs(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", task=Drawing(), max_epochs=4, figures_every_n_epochs=2)
    name = "epoch_0002_step_00000012", "epoch_0004_step_00000024"
    assert set(drawn(fitted)) == {
        f"{figure}/{each}.{suffix}"
        for each in name
        for figure, suffix in (("curve", "png"), ("noise", "png"), ("words", "txt"))
    }
    assert image.imread(fitted.run.directory / "figures" / "noise" / f"{name[0]}.png").shape == (4, 5, 4)
    assert drawn(go(tmp_path / "none", task=Drawing())) == {}


def test_figures_change_nothing_of_the_training(tmp_path: Path) -> None:
    assert_same_run(go(tmp_path / "run", task=Drawing(), figures_every_n_epochs=1), go(tmp_path / "plain"))


@pytest.mark.parametrize("trainer", [{}, {"max_steps": 2 * BATCHES}, {"evaluate_every_n_steps": 4}], ids=str)
@pytest.mark.parametrize("batch", [1, BATCHES])
def test_figures_that_were_interrupted_are_drawn_again(tmp_path: Path, trainer: dict[str, Any], batch: int) -> None:
    whole = go(tmp_path / "whole", task=Drawing(), figures_every_n_epochs=1, **trainer)
    task, stop, seen = Drawing(), Stop(), []

    def on_call(training: bool) -> None:
        seen.append(training)
        # In the second epoch's figures: after two evaluations and the first epoch's figures; by steps, after four passes.
        passes = 4 if "evaluate_every_n_steps" in trainer else 3
        if seen.count(False) == passes * BATCHES + batch:
            stop.signal = 15

    task.on_call = on_call
    first = go(tmp_path / "run", task=task, stop=stop, figures_every_n_epochs=1, **trainer)
    assert stop.signal == 15 and len(drawn(first)) < len(drawn(whole))
    second = go(tmp_path / "run", task=Drawing(), figures_every_n_epochs=1, **trainer)
    assert_same_run(second, whole)
    assert drawn(second) == drawn(whole)


def test_the_oldest_files_of_a_figure_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KEPT", 2)
    fitted = go(tmp_path / "run", task=Drawing(), max_epochs=4, figures_every_n_epochs=1)
    steps = sorted(int(name[-12:-4]) for name in drawn(fitted) if name.startswith("curve/"))
    assert steps == [18, 24]


def test_a_disk_that_refuses_a_figure_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace = files.replace

    def full(path: Path, contents: bytes) -> None:
        if "figures" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, contents)

    monkeypatch.setattr(files, "replace", full)
    fitted = go(tmp_path / "run", task=Drawing(), max_epochs=1, figures_every_n_epochs=1)
    assert fitted.state.epoch == 1
    assert "The figures at step 6 are not written: No space left on device." in caplog.text


def a(value: Any) -> Callable[..., Any]:
    return lambda self, model, batches: value


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "task: figures of Drawing returns a NoneType, and has to return at most 32 by their names."),
        ({str(number): "x" for number in range(33)}, "task: figures of Drawing returns 33 figures, and has to"),
        ({"../x": "x"}, "task: figures of Drawing has one named '../x'."),
        ({"": "x"}, "task: figures of Drawing has one named ''."),
        ({"x": 1}, "task: the figure 'x' is a int. Give a matplotlib Figure, an image or text."),
        ({"x": torch.zeros(2, 4, 4)}, r"task: the figure 'x' has the shape \[2, 4, 4\]. An image is"),
        ({"x": torch.zeros(0, 4)}, r"task: the figure 'x' has the shape \[0, 4\]."),
    ],
    ids=lambda value: None,
)
def test_what_is_no_figure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str) -> None:
    monkeypatch.setattr(Drawing, "figures", a(value))
    with pytest.raises(ConfigError, match=message):
        go(tmp_path / "run", task=Drawing(), figures_every_n_epochs=1)


@pytest.mark.parametrize(
    "given, pixels",
    [
        (torch.tensor([[0.0, 1.0], [2.0, -1.0]]), [[0, 255], [255, 0]]),
        (torch.tensor([[[0, 7], [255, 1]]], dtype=torch.uint8), [[0, 7], [255, 1]]),
        (np.array([[0.5, float("nan")]]), [[128, 0]]),
        (torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True), [[255, 255]]),
    ],
    ids=str,
)
def test_an_image_may_be_bytes_or_floats(given: Any, pixels: list[list[int]]) -> None:
    found = figures._pixels("x", given)
    assert found.dtype == np.uint8 and found.shape[2] == 3
    assert all(found[..., channel].tolist() == pixels for channel in range(3))


# The shipped tasks


def test_the_confusion_matrix_counts_every_sample() -> None:
    batches = [(torch.eye(3)[[0, 1, 2]], torch.tensor([0, 1, 1])), (torch.eye(3)[[2]], torch.tensor([2]))]
    (figure,) = Classification().figures(lambda inputs: inputs, batches).values()
    axes = figure.axes[0]
    assert axes.get_title() == "3 of 4 right"
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"),
        ((1, 1), "1"),
        ((2, 1), "1"),
        ((2, 2), "1"),
    }


def test_predictions_are_drawn_in_the_targets_units() -> None:
    batches = [(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0]), torch.tensor(10.0))]
    (figure,) = Regression().figures(lambda inputs: inputs, batches).values()
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[10.0, 10.0], [30.0, 20.0]]


def test_a_language_model_goes_on_from_the_first_row() -> None:
    def model(tokens: Tensor) -> Tensor:
        """The next byte is one more than the last."""
        assert tokens.shape[1] <= 4
        return 1e4 * torch.nn.functional.one_hot((tokens + 1) % 128, 256).float()

    (text,) = (
        LanguageModel().figures(model, [(torch.tensor([[65, 66, 67, 68]]), torch.tensor([[66, 67, 68, 69]]))]).values()
    )
    assert text.startswith("AB ▸ CDEFGHI") and len(text) == len("AB ▸ \n") + 240
