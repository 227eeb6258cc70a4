"""src/project: the models, data, task and schedule that ship as worked examples."""

import importlib
import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from project.data.digits import Digits, read_digits, split_indices
from project.models.cnn import Cnn
from project.models.embedding import PixelEmbedding
from project.models.mlp import Mlp
from project.schedulers import WarmupCosine, inverse_sqrt, inverse_time
from project.tasks.classification import Classification
from savepoint.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
MODELS: list[partial[Mlp] | partial[Cnn]] = [
    partial(Mlp),
    partial(Mlp, hidden=[]),
    partial(Mlp, hidden=[32, 16], batch_norm=True),
    partial(Cnn),
    partial(Cnn, channels=[8], dropout=0.0),
]
LIBRARIES = {"torch": torch.manual_seed, "numpy": np.random.seed, "random": random.seed}


def seed_all(seed: int, **other: int) -> None:
    for name, seed_one in LIBRARIES.items():
        seed_one(other.get(name, seed))


def option(group: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The class that an option of conf/ names, and the keywords that it gives to it."""
    config = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, qualified = config["_target_"].rpartition(".")
    for key in ("_target_", "_partial_", "weight_decay_on", "interval", "monitor"):
        config.pop(key, None)
    return getattr(importlib.import_module(module), qualified), config


@pytest.mark.parametrize("make", MODELS, ids=str)
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 1, 8, 8)], ids=str)
def test_models_give_one_logit_for_each_class(make: partial[Mlp] | partial[Cnn], shape: tuple[int, ...]) -> None:
    assert make(out_features=7)(torch.rand(shape)).shape == (5, 7)


def test_mlp_flattens_inputs_of_any_shape() -> None:
    assert Mlp(in_features=2 * 3 * 4)(torch.rand(5, 2, 3, 4)).shape == (5, 10)


def test_cnn_takes_colour_images_of_any_size() -> None:
    assert Cnn(in_channels=3)(torch.rand(5, 3, 11, 20)).shape == (5, 10)


@pytest.mark.parametrize("make", MODELS, ids=str)
def test_every_parameter_of_a_model_gets_a_gradient(make: partial[Mlp] | partial[Cnn]) -> None:
    model = make()
    Classification()(model, Digits("train").__getitems__(list(range(16)))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_parameter_names_are_stable_because_checkpoints_hold_them() -> None:
    mlp = ["hidden.0.linear.weight", "hidden.0.linear.bias", "head.weight", "head.bias"]
    assert list(Mlp().state_dict()) == list(Mlp(dropout=0.0).state_dict()) == mlp
    assert set(Mlp(batch_norm=True).state_dict()) - set(mlp) == {
        f"hidden.0.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert [name for name, _ in Cnn(channels=[8]).named_parameters()] == [
        *("stages.0.conv1.weight", "stages.0.norm1.weight", "stages.0.norm1.bias"),
        *("stages.0.conv2.weight", "stages.0.norm2.weight", "stages.0.norm2.bias"),
        *("head.weight", "head.bias"),
    ]


@pytest.mark.parametrize("make", [Mlp, Cnn])
def test_dropout_acts_in_training_only(make: type[Mlp] | type[Cnn]) -> None:
    model, inputs = make(dropout=0.5), torch.rand(4, 8, 8)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_digits_are_1437_training_and_360_validation_images() -> None:
    for split, size in (("train", 1437), ("val", 360)):
        digits = Digits(split)
        assert len(digits) == size
        inputs, target = digits[size - 1]
        assert (inputs.shape, inputs.dtype) == ((8, 8), torch.float32)
        assert (target.shape, target.dtype) == ((), torch.int64)
        every, _ = digits.__getitems__(list(range(size)))
        assert (every.min(), every.max()) == (0.0, 1.0)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, targets = read_digits()
    bunch = load_digits()
    assert np.array_equal(images * 16, bunch.images)
    assert np.array_equal(targets, bunch.target)


def test_digits_are_read_without_importing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    read_digits.cache_clear()
    Digits("train")
    assert "sklearn" not in sys.modules


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    read_digits.cache_clear()
    with pytest.raises(ConfigError, match="not installed: pip install scikit-learn"):
        Digits("train")


@pytest.mark.parametrize("val_fraction, test_fraction", [(0.1, 0.0), (0.2, 0.1), (0.5, 0.45)])
def test_splits_are_disjoint_complete_and_stratified(val_fraction: float, test_fraction: float) -> None:
    _, targets = read_digits()
    splits = split_indices(targets, val_fraction, test_fraction, split_seed=0)
    assert sorted([*splits["train"], *splits["val"], *splits["test"]]) == list(range(len(targets)))
    for digit in range(10):
        of_class = targets == digit
        assert abs(of_class[splits["val"]].sum() - val_fraction * of_class.sum()) <= 1
        assert abs(of_class[splits["test"]].sum() - test_fraction * of_class.sum()) <= 1
    assert np.array_equal(splits["val"], split_indices(targets, val_fraction, 0.0, split_seed=0)["val"])


def test_split_depends_on_its_own_seed_and_nothing_else() -> None:
    _, targets = read_digits()
    seed_all(1)
    train, first, _ = split_indices(targets, 0.2, 0.0, split_seed=0).values()
    seed_all(2)
    assert np.array_equal(first, split_indices(targets, 0.2, 0.0, split_seed=0)["val"])
    assert not np.array_equal(first, split_indices(targets, 0.2, 0.0, split_seed=1)["val"])
    # Pinned: another split would make old runs and new ones incomparable.
    assert train[:8].tolist() == [1707, 927, 713, 262, 182, 303, 895, 933]
    assert first[:8].tolist() == [1081, 1410, 1239, 458, 438, 1567, 1360, 745]


def test_reading_and_fetching_draw_from_no_global_generator() -> None:
    seed_all(0)
    before = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
    read_digits.cache_clear()
    Digits("train", augment=False).__getitems__([0, 1, 2])
    Digits("val", augment=True).__getitems__([0, 1, 2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())


def test_limit_keeps_the_first_samples_of_each_split() -> None:
    for split in ("train", "val"):
        full, limited = Digits(split), Digits(split, limit=50)
        assert len(limited) == 50
        for whole, part in zip(full.__getitems__(list(range(50))), limited.__getitems__(list(range(50))), strict=True):
            assert torch.equal(whole, part)
        assert len(set(limited.targets.tolist())) == 10, "few samples still show every class"
    assert len(Digits("val", limit=10_000)) == 360


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "data.dataset.test_fraction=0: no image is set aside for testing. Try 0.2."),
        (
            {"split": "val", "test_fraction": 0.8},
            "data.dataset.test_fraction=0.8: must be at least 0, and below 1 - val",
        ),
        ({"split": "val", "limit": 0}, "data.dataset.limit=0: must be at least 1, or null for all samples."),
        ({"split": "val", "val_fraction": 1.0}, "data.dataset.val_fraction=1.0: must be between 0 and 1, for example"),
    ],
)
def test_mistakes_in_the_config_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Digits(**arguments)
    assert str(error.value).startswith(message)


def test_a_fetched_batch_equals_its_samples_stacked() -> None:
    digits = Digits("train")
    indices = [5, 0, 1436, 5, 77]
    inputs, targets = digits.__getitems__(indices)
    assert torch.equal(inputs, torch.stack([digits[index][0] for index in indices]))
    assert torch.equal(targets, torch.stack([digits[index][1] for index in indices]))


def test_a_changed_batch_leaves_the_data_alone() -> None:
    for augment in (False, True):
        digits = Digits("train", augment=augment)
        seed_all(0)
        first = digits.__getitems__([0, 1])[0].clone()
        digits.__getitems__([0, 1])[0].zero_()
        seed_all(0)
        assert torch.equal(first, digits.__getitems__([0, 1])[0])


def test_augmentation_repeats_under_the_same_seeds() -> None:
    digits = Digits("train", augment=True)
    seed_all(3)
    first = digits.__getitems__(list(range(64)))[0]
    assert not torch.equal(first, digits.__getitems__(list(range(64)))[0])
    seed_all(3)
    assert torch.equal(first, digits.__getitems__(list(range(64)))[0])
    seed_all(3)
    one = digits[7][0]
    seed_all(3)
    assert torch.equal(one, digits.__getitems__([7])[0][0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_augmentation_draws_from_each_library(library: str) -> None:
    digits = Digits("train", augment=True)
    seed_all(3)
    first = digits.__getitems__(list(range(64)))[0]
    seed_all(3, **{library: 4})
    assert not torch.equal(first, digits.__getitems__(list(range(64)))[0])


def test_augmented_images_stay_recognisable() -> None:
    plain, augmented = Digits("train"), Digits("train", augment=True)
    indices = list(range(500))
    inputs, targets = plain.__getitems__(indices)
    changed, same_targets = augmented.__getitems__(indices)
    assert torch.equal(targets, same_targets)
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed != inputs).any(dim=(1, 2)).float().mean() > 0.9
    shifted = torch.stack([inputs.roll(by, dims=(1, 2)) for by in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))])
    nearest = (changed - shifted).abs().mean(dim=(2, 3)).min(dim=0).values
    assert nearest.max() < 0.2


def test_validation_images_are_never_augmented() -> None:
    indices = list(range(360))
    plain, asked = Digits("val", augment=False), Digits("val", augment=True)
    assert torch.equal(plain.__getitems__(indices)[0], asked.__getitems__(indices)[0])


def test_classification_gives_the_mean_loss_and_counts_the_correct() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]], requires_grad=True)
    task, targets = Classification(), torch.tensor([0, 1, 0])
    outcome = task(lambda inputs: inputs, (logits, targets))
    assert torch.equal(outcome.loss, -logits.log_softmax(dim=1)[range(3), targets].mean())
    assert (outcome.samples, outcome.sums["correct"].item()) == (3, 2)
    assert not outcome.sums["correct"].requires_grad
    assert task.compute({"correct": torch.tensor(45)}, 60) == {"accuracy": 0.75}
    assert set(task.compute({"correct": torch.tensor(1)}, 1)) == set(task.metrics)


def test_label_smoothing_reaches_the_loss() -> None:
    batch = (torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    losses = [Classification(smoothing)(lambda inputs: inputs, batch).loss for smoothing in (0.0, 0.1)]
    assert losses[0] < losses[1]


def test_default_options_learn_the_digits() -> None:
    seed_all(0)
    (make_model, sizes), (make_optimizer, rates_) = option("model", "mlp"), option("optimizer", "adamw")
    model, task, train, val = make_model(**sizes), Classification(), Digits("train"), Digits("val")
    optimizer = make_optimizer(model.parameters(), **rates_)
    for _ in range(20):
        for indices in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            task(model, train.__getitems__(indices.tolist())).loss.backward()
            optimizer.step()
    model.eval()
    outcome = task(model, val.__getitems__(list(range(len(val)))))
    assert task.compute(outcome.sums, outcome.samples)["accuracy"] > 0.95


def optimizer_of(*, lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(schedule: LRScheduler, *, steps: int) -> list[float | Tensor]:
    """The rates at which the next `steps` updates run."""
    seen = []
    for _ in range(steps):
        seen.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_warmup_cosine_rises_linearly_then_falls_along_a_cosine() -> None:
    schedule = WarmupCosine(optimizer_of(lr=0.6), 10, warmup=2, min_factor=0.1)
    down = [0.55 + 0.45 * float(np.cos(np.pi * t / 8)) for t in range(8)]
    expected = [0.6 * factor for factor in (1 / 3, 2 / 3, *down, 0.1, 0.1, 0.1)]
    assert rates(schedule, steps=13) == pytest.approx(expected, rel=1e-12)


def test_warmup_below_one_is_a_fraction_of_the_training() -> None:
    assert WarmupCosine(optimizer_of(), 460, warmup=0.05).warmup_steps == 23
    assert WarmupCosine(optimizer_of(), 460, warmup=23).warmup_steps == 23
    assert rates(WarmupCosine(optimizer_of(), 1), steps=2) == [1.0, 0.0]


def test_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler.warmup=10: 10 warm-up steps do not fit into 10 in all."):
        WarmupCosine(optimizer_of(), 10, warmup=10)


@pytest.mark.parametrize("stop", [0, 1, 3, 7, 12])
def test_warmup_cosine_resumes_exactly_from_json(stop: int) -> None:
    whole = rates(WarmupCosine(optimizer_of(lr=0.3), 10, warmup=3), steps=14)
    first = WarmupCosine(optimizer_of(lr=0.3), 10, warmup=3)
    assert rates(first, steps=stop) == whole[:stop]
    saved, rate = json.loads(json.dumps([first.state_dict(), first.optimizer.param_groups[0]["lr"]]))
    second = WarmupCosine(optimizer_of(lr=0.3), 10, warmup=3)
    second.optimizer.param_groups[0]["lr"] = rate  # what a checkpoint holds as the optimizer's own state
    second.load_state_dict(saved)
    assert rates(second, steps=14 - stop) == whole[stop:]


def test_pixels_as_tokens_give_one_logit_for_each_class_whatever_the_shape() -> None:
    model = PixelEmbedding(pixels=24, levels=5, out_features=7)
    assert model(torch.rand(5, 2, 3, 4)).shape == (5, 7)
    assert model(torch.tensor([-1.0, 2.0] * 12)[None]).isfinite().all(), (
        "values outside 0..1 are the nearest ones inside"
    )


def test_pixels_as_tokens_are_told_apart_by_place_and_value() -> None:
    model, images = PixelEmbedding(pixels=4, levels=3), torch.eye(4) / 2
    assert len({tuple(row) for row in model(torch.cat([images, images * 2])).tolist()}) == 8


def test_the_gradient_of_pixels_as_tokens_is_sparse_and_equals_the_dense_one() -> None:
    gradients = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = PixelEmbedding(sparse=sparse)
        Classification()(model, Digits("train").__getitems__([0, 1])).loss.backward()
        gradients.append(model.table.weight.grad)
    assert gradients[0] is not None and gradients[0].is_sparse
    assert torch.equal(gradients[0].to_dense(), gradients[1])


def test_the_named_functions_of_a_step_are_what_they_say() -> None:
    assert [inverse_sqrt(step, warmup=4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert inverse_sqrt(399, warmup=4) == 0.1
    product = 1.0
    for step in range(1, 6):
        product *= inverse_time(step, half_life=5)
    assert product == pytest.approx(0.5)
    with pytest.raises(ConfigError, match=r"scheduler\.lr_lambda\.warmup=0"):
        inverse_sqrt(0, warmup=0)
