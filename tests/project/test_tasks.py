"""src/project/tasks: what a batch means; and a combination that means nothing ends in the line that mends it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from project.data.table import Diabetes
from project.data.text import Text
from project.models.cnn import Cnn
from project.models.embedding import PixelEmbedding
from project.models.mlp import Mlp
from project.models.transformer import Transformer
from project.tasks.classification import Classification
from project.tasks.language_model import LanguageModel
from project.tasks.regression import Regression
from project.tasks.sums import total
from savepoint.errors import ConfigError
from savepoint.training.task import Outcome


def same(inputs: Tensor) -> Tensor:
    """A model that says what it is told."""
    return inputs


def epoch(task: Regression | LanguageModel, outcomes: list[Outcome]) -> dict[str, float]:
    """The metrics over some batches, added up as the engine does it."""
    sums = {name: value.clone() for name, value in outcomes[0].sums.items()}
    for outcome in outcomes[1:]:
        for name, value in outcome.sums.items():
            sums[name] += value
    return task.compute(sums, sum(outcome.samples for outcome in outcomes))


def test_a_total_is_detached_and_wide() -> None:
    values = torch.tensor([1e8, 1.0, -1e8], requires_grad=True)
    added = total(values)
    assert (added.item(), added.dtype, added.shape, added.requires_grad) == (1.0, torch.float64, (), False)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_regression_gives_the_mean_squared_error(shape: tuple[int, ...]) -> None:
    predictions = torch.tensor([1.0, 2.0, 4.0]).reshape(shape).requires_grad_()
    targets = torch.tensor([1.0, 3.0, 2.0])
    outcome = Regression()(same, (predictions, targets))
    assert torch.equal(outcome.loss, torch.tensor(5 / 3))
    assert outcome.loss.requires_grad
    assert outcome.samples == 3
    assert {name: value.item() for name, value in outcome.sums.items()} == {
        "squared_errors": 5.0,
        "targets": 6.0,
        "squared_targets": 14.0,
    }
    assert not any(value.requires_grad for value in outcome.sums.values())
    metrics = Regression().compute(outcome.sums, 3)
    assert metrics == {"rmse": math.sqrt(5 / 3), "r2": 1 - 5 / 2}
    assert tuple(metrics) == Regression.metrics


def test_r2_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    targets = torch.tensor([1.0, 2.0, 6.0])
    for predictions, r2 in ((targets, 1.0), (torch.full((3,), 3.0), 0.0)):
        assert epoch(Regression(), [Regression()(same, (predictions, targets))])["r2"] == r2
    constant = torch.ones(3)
    assert math.isnan(epoch(Regression(), [Regression()(same, (targets, constant))])["r2"])


def test_rmse_is_in_the_units_that_scale_gives() -> None:
    rng = np.random.RandomState(0)
    predictions, targets = (torch.from_numpy(rng.normal(size=50)).float() for _ in range(2))
    plain = epoch(Regression(), [Regression()(same, (predictions, targets))])
    for scale in (torch.tensor(10.0), torch.full((50,), 10.0)):
        outcome = Regression()(same, (predictions, targets, scale))
        scaled = epoch(Regression(), [outcome])
        assert scaled["rmse"] == pytest.approx(10 * plain["rmse"], rel=1e-6)
        assert scaled["r2"] == pytest.approx(plain["r2"], rel=1e-6)
        assert torch.equal(outcome.loss, Regression()(same, (predictions, targets)).loss), "the loss has no units"


def test_metrics_of_an_epoch_do_not_depend_on_how_it_is_cut_into_batches() -> None:
    table, task, model = Diabetes("train"), Regression(), torch.nn.Linear(10, 1)
    everything = list(range(len(table)))
    whole = epoch(task, [task(model, table.__getitems__(everything))])
    cut = epoch(task, [task(model, table.__getitems__(everything[i : i + 17])) for i in range(0, len(table), 17)])
    assert cut == pytest.approx(whole, rel=1e-6)


def test_r2_keeps_its_digits_where_the_targets_lie_far_from_zero() -> None:
    targets = torch.arange(1000.0) + 1e4
    halfway = (targets + targets.mean()) / 2
    outcomes = [Regression()(same, (halfway[i : i + 10], targets[i : i + 10])) for i in range(0, 1000, 10)]
    assert epoch(Regression(), outcomes)["r2"] == pytest.approx(0.75, rel=1e-9)


def test_regression_squares_in_single_precision_what_a_model_gives_in_half() -> None:
    predictions = torch.tensor([300.0, 0.0], dtype=torch.float16)
    outcome = Regression()(same, (predictions, torch.zeros(2), torch.tensor(1000.0)))
    assert outcome.sums["squared_errors"].item() == 9e10, "float16 ends at 65504"


def test_a_language_model_gives_nats_per_token_and_counts_tokens() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])
    outcome = LanguageModel()(lambda _: logits, (tokens, tokens))
    nats = -logits.log_softmax(dim=-1).gather(2, tokens[..., None])
    assert (outcome.loss - nats.mean()).abs() < 1e-6
    assert outcome.loss.requires_grad
    assert outcome.samples == 6
    assert outcome.sums["nats"].item() == pytest.approx(nats.sum().item(), rel=1e-6)
    assert (outcome.sums["nats"].dtype, outcome.sums["nats"].requires_grad) == (torch.float64, False)


def test_a_guess_among_eight_has_perplexity_eight_and_three_bits() -> None:
    tokens = torch.zeros(4, 7, dtype=torch.int64)
    task = LanguageModel()
    metrics = epoch(task, [task(lambda row: torch.zeros(*row.shape, 8), (tokens, tokens))] * 3)
    assert metrics == pytest.approx({"perplexity": 8.0, "bits_per_token": 3.0})
    assert tuple(metrics) == LanguageModel.metrics
    assert task.compute({"nats": torch.tensor(1e4).double()}, 1)["perplexity"] == math.inf


def test_label_smoothing_is_in_the_loss_and_not_in_the_metrics() -> None:
    logits, tokens = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    plain, smoothed = (LanguageModel(share)(lambda _: logits, (tokens, tokens)) for share in (0.0, 0.1))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=0.1)
    assert torch.equal(smoothed.loss, expected)
    assert not torch.equal(smoothed.loss, plain.loss)
    assert torch.equal(smoothed.sums["nats"], plain.sums["nats"])


@pytest.mark.parametrize("task", [Classification, LanguageModel])
def test_label_smoothing_is_a_share(task: type[Classification] | type[LanguageModel]) -> None:
    with pytest.raises(ValueError, match=r"^label_smoothing=1\.5 must be between 0 and 1$"):
        task(1.5)


IMAGES = (torch.rand(2, 8, 8), torch.tensor([1, 2]))
ROWS = (torch.rand(2, 10), torch.rand(2))
WINDOWS = Text("val", context=8).__getitems__([0, 1])
MISMATCHES = {
    "task=classification: a target is one class (int64), and here it is torch.float32 of shape []. For numbers add "
    "task=regression, for text task=language_model.": (Classification(), same, ROWS),
    "task=classification: a target is one class (int64), and here it is torch.int64 of shape [8]. For numbers add "
    "task=regression, for text task=language_model.": (Classification(), same, WINDOWS),
    "task=regression: a target is one number with a fraction, and here it is torch.int64 of shape []. Add "
    "data=diabetes, or data=csv for a table.": (Regression(), same, IMAGES),
    "task=regression: the model gives [10] for each sample, and a target is one number. Add model.out_features=1.": (
        *(Regression(), Mlp(in_features=10), ROWS),
    ),
    "task=language_model: a sample is a row of tokens, and here it is torch.float32 of shape [8, 8]. Add data=text.": (
        *(LanguageModel(), same, IMAGES),
    ),
    "task=language_model: the model gives [10] for each row of 8 tokens, and not logits for each of them. Add "
    "model=transformer.": (LanguageModel(), PixelEmbedding(pixels=8), WINDOWS),
    "model=mlp: inputs are numbers, and here tokens (torch.int64). Add model=transformer.": (
        *(LanguageModel(), Mlp(in_features=8), WINDOWS),
    ),
    "model.in_features=64: a sample here has 10 numbers. Add model.in_features=10.": (Regression(), Mlp(), ROWS),
    "model.pixels=64: a sample here has 10 numbers. Add model.pixels=10.": (Regression(), PixelEmbedding(), ROWS),
    "model=cnn: a sample is an image, and here it is torch.float32 of shape [10]. For a table add model=mlp, for text "
    "model=transformer.": (Regression(), Cnn(), ROWS),
    "model=cnn: a sample is an image, and here it is torch.int64 of shape [8]. For a table add model=mlp, for text "
    "model=transformer.": (LanguageModel(), Cnn(), WINDOWS),
    "model.in_channels=3: an image here has 1. Add model.in_channels=1.": (Classification(), Cnn(in_channels=3), IMAGES),
    "model=transformer: a sample is a row of tokens, and here it is torch.float32 of shape [8, 8]. Add "
    "task=language_model.": (Classification(), Transformer(), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("message", MISMATCHES)
def test_what_does_not_fit_together_says_what_to_add(message: str) -> None:
    task, model, batch = MISMATCHES[message]
    with pytest.raises((ConfigError, ValueError)) as error:  # models know nothing of the engine
        task(model, batch)  # type: ignore[operator]
    assert str(error.value) == message
