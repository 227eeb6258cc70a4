"""One update is the mean over its window's samples; one evaluation leaves no trace."""

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from savepoint.config import read_settings
from savepoint.data.batches import Batches
from savepoint.data.device import ALIGNMENT
from savepoint.system import rng
from savepoint.system.signals import Stop
from savepoint.training.evaluation import evaluate, summarise
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import update
from savepoint.training.task import Outcome


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Squares:
    """Mean square error, and as metrics the mean absolute error and the largest number of samples in a batch."""

    metrics = ("absolute",)

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        inputs, targets = batch
        errors = model(inputs).squeeze(1) - targets
        return Outcome(errors.square().mean(), len(targets), {"absolute": errors.detach().abs().sum()})

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        return {"absolute": float(sums["absolute"]) / samples}


class Pairs:
    """Inputs and targets with exact halves, so that sums of them are exact in any order."""

    def __init__(self, samples: int, *, noise: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randint(-8, 8, (samples, 3), generator=generator) / 2
        self.targets = torch.randint(-8, 8, (samples,), generator=generator) / 2
        self._noise = noise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        extra = torch.rand(1) + random.random() + np.random.rand() if self._noise else 0
        return self.inputs[chosen] + extra, self.targets[chosen]


def made(
    model: nn.Module | None = None,
    *,
    samples: int = 11,
    batch_size: int = 4,
    lr: float = 0.5,
    noise: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    task: Any = None,
    optimizer: Any = None,
    **trainer: Any,
) -> tuple[TrainState, Parts]:
    if model is None:
        model = nn.Linear(3, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.5, -1.0, 0.25]]))
            model.bias.fill_(0.5)
    config = {"batch_size": batch_size}
    full, faults = read_settings({"seed": 0, "data": config, "tracker": {"kind": "none"}, "trainer": trainer})
    assert full is not None, faults
    data = [Batches(Pairs(samples, noise=noise), split=split, settings=full.data, seed=0) for split in ("train", "val")]
    optimizer = optimizer(model) if optimizer else torch.optim.SGD(model.named_parameters(), lr=lr)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, {"": Optimization(optimizer, NoSchedule(), scaler)})
    return state, Parts(full, task or Squares(), model, data[0], data[1], torch.device("cpu"), autocast)


def window(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of these sizes, one after the other from one set of pairs."""
    pairs, batches, start = Pairs(sum(sizes)), [], 0
    for size in sizes:
        batches.append((pairs.inputs[start : start + size], pairs.targets[start : start + size]))
        start += size
    return batches


def stepped(batches: list[Any], **options: Any) -> TrainState:
    state, parts = made(lr=1.0, **options)
    update(state, parts, batches)
    return state


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (4, 2, 2), (2, 4, 2), (1, 1, 2, 4)], ids=str)
def test_a_windows_gradient_is_the_mean_over_all_its_samples(sizes: tuple[int, ...]) -> None:
    """Of eight samples, however they are cut into batches. The numbers are such that no order of adding rounds."""
    whole = stepped(window(8))
    cut = stepped(window(*sizes))
    one, other = list(whole.model.parameters()), list(cut.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Uncounted(Squares):
    """As text of which every token is masked: the task says that no sample is in the loss."""

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        return dataclasses.replace(super().__call__(model, batch), samples=0)


def test_a_window_in_which_no_sample_counts_is_an_update_as_well() -> None:
    assert stepped(window(4), task=Uncounted()).step == 1


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (2, 4), (3, 3, 1)], ids=str)
def test_a_windows_gradient_equals_that_of_one_batch_in_double_precision(sizes: tuple[int, ...]) -> None:
    """With a nonlinear model: the mean over samples and not over batches."""

    def gradient(batches: list[Any]) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        state, parts = made(model, lr=1.0)
        update(state, parts, [(inputs.double(), targets.double()) for inputs, targets in batches])
        return [b - parameter.detach() for b, parameter in zip(before, model.parameters(), strict=True)]

    for a, b in zip(gradient(window(*sizes)), gradient(window(sum(sizes))), strict=True):
        # To 14 digits: sums of such numbers round, and in another order otherwise.
        assert (a - b).abs().max() <= 1e-14 * b.abs().max()


def test_the_clipped_norm_is_that_of_the_whole_windows_gradient() -> None:
    whole = stepped(window(8), clip_grad_norm=0.5)
    cut = stepped(window(4, 2, 2), clip_grad_norm=0.5)
    free, _ = made()
    moved = [
        torch.cat([(a - b).flatten() for a, b in zip(one.model.parameters(), free.model.parameters(), strict=True)])
        for one in (whole, cut)
    ]
    assert torch.equal(*moved)
    assert moved[0].norm().item() == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_below_the_limit_is_not_clipped() -> None:
    free, clipped = stepped(window(8)), stepped(window(8), clip_grad_norm=1e9)
    assert all(torch.equal(a, b) for a, b in zip(free.model.parameters(), clipped.model.parameters(), strict=True))


def test_the_scalers_scale_changes_neither_gradient_nor_clipping() -> None:
    for options in ({}, {"clip_grad_norm": 0.5}):
        plain = stepped(window(4, 4), **options)
        scaled = stepped(window(4, 4), scaler=torch.amp.GradScaler("cpu", init_scale=1024.0), **options)
        for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_an_update_counts_itself_its_batches_and_its_samples() -> None:
    state, parts = made()
    update(state, parts, window(4, 3))
    update(state, parts, window(2))
    assert (state.step, state.batch, state.samples) == (2, 3, 9)


def test_no_gradient_is_left_after_an_update() -> None:
    """Gradients are never state: a checkpoint is taken between updates."""
    state = stepped(window(4))
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_an_update_that_the_scaler_skips_counts_as_a_step() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    state, parts = made(scaler=scaler)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    inputs, targets = window(4)[0]
    update(state, parts, [(inputs * 1e10, targets)])
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert (state.step, state.batch, state.samples) == (1, 1, 4)
    assert scaler.get_scale() == 2.0**119


def test_learning_rates_are_those_that_the_update_used() -> None:
    def two_groups(model: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": torch.tensor(0.25)}]
        )

    state, parts = made(optimizer=two_groups)
    update(state, parts, window(4))
    for group in state.optimizers[""].optimizer.param_groups:
        group["lr"] = 9.0  # what a schedule does next
    assert state.optimizers[""].learning_rates == [0.5, 0.25] and {
        type(rate) for rate in state.optimizers[""].learning_rates
    } == {float}


def test_training_metrics_are_means_over_samples_of_unequal_batches() -> None:
    state, parts = made(lr=0.0)
    batches = window(4, 4, 3)
    for batch in batches:
        update(state, parts, [batch])
    pairs = Pairs(11)
    errors = state.model(pairs.inputs).squeeze(1).double() - pairs.targets
    expected = {"loss": errors.square().mean().item(), "absolute": errors.abs().mean().item()}
    found = summarise(parts, state.sums, state.samples)
    assert found == pytest.approx(expected, rel=1e-7)
    # The mean over batches is another number, by more than that.
    by_batch = torch.stack([(state.model(x).squeeze(1) - y).square().mean() for x, y in batches]).mean().item()
    assert abs(by_batch - expected["loss"]) > 1e-3


def test_the_sum_of_losses_is_kept_in_double_precision() -> None:
    state, parts = made(lr=0.0)
    update(state, parts, window(4))
    assert state.sums["loss"].dtype is torch.float64


def test_summing_does_not_write_into_what_the_task_gave() -> None:
    given: list[Tensor] = []

    class Keeping(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            outcome = super().__call__(model, batch)
            given.append(outcome.sums["absolute"])
            return outcome

    state, parts = made(task=Keeping())
    update(state, parts, window(4))
    first = given[0].clone()
    update(state, parts, window(4))
    assert torch.equal(given[0], first)


def test_metrics_are_floats_whatever_a_library_gave() -> None:
    class Loose(Squares):
        def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, Any]:
            return {"absolute": np.float64(1.5), "tensor": torch.tensor(2.5), "whole": 3}

    state, parts = made(task=Loose())
    update(state, parts, window(4))
    found = summarise(parts, state.sums, state.samples)
    assert {name: type(value) for name, value in found.items()} == dict.fromkeys(
        ("loss", "absolute", "tensor", "whole"), float
    )


# Evaluation


def test_validation_metrics_are_means_over_all_samples_with_an_unequal_last_batch() -> None:
    state, parts = made(samples=11, batch_size=4)
    pairs = Pairs(11)
    errors = state.model(pairs.inputs).squeeze(1).double() - pairs.targets
    expected = {"loss": errors.square().mean().item(), "absolute": errors.abs().mean().item()}
    assert evaluate(state, parts, Stop()) == pytest.approx(expected, rel=1e-7)


def test_evaluation_is_the_same_in_every_epoch_whatever_was_drawn_before() -> None:
    state, parts = made(noise=True)
    first = evaluate(state, parts, Stop())
    torch.rand(5), random.random(), np.random.rand()
    state.epoch = 3
    assert evaluate(state, parts, Stop()) == first


class Normed(nn.Module):
    """Weights that are tied, and buffers of numbers and of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False), nn.Linear(3, 1)
        self.tied = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.outer(self.inner(self.norm(inputs)))
        return result


def averaging(decay: float) -> tuple[TrainState, Parts]:
    torch.manual_seed(0)
    state, parts = made(model=Normed(), lr=0.25)
    average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    state.averaged = AveragedModel(state.model, multi_avg_fn=average, use_buffers=True)
    return state, parts


def test_averaged_weights_begin_as_those_after_the_first_update_and_follow_each_further_one() -> None:
    state, parts = averaging(0.75)
    expected: dict[str, Tensor] = {}
    for batch in window(4, 4, 4):
        update(state, parts, [batch])
        for name, value in state.model.state_dict().items():
            before = expected.get(name, value.clone())
            floating = torch.is_floating_point(value)
            expected[name] = torch.lerp(before, value, 0.25) if floating else (0.75 * before + 0.25 * value).long()
    assert state.averaged is not None
    average = state.averaged.module
    assert {name: value.tolist() for name, value in average.state_dict().items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    assert average.tied is average.inner.weight and average.tied is not state.model.tied


def test_averaged_weights_are_evaluated_beside_the_others_and_change_neither() -> None:
    state, parts = averaging(0.5)
    for batch in window(4, 4):
        update(state, parts, [batch])
    assert state.averaged is not None
    before = copy.deepcopy((state.model.state_dict(), state.averaged.state_dict()))
    measured = evaluate(state, parts, Stop())
    assert measured is not None and list(measured) == ["loss", "absolute", "ema_loss", "ema_absolute"]
    for one, other in zip(before, (state.model.state_dict(), state.averaged.state_dict())):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    alone = TrainState(state.averaged.module, state.optimizers)
    again = evaluate(alone, dataclasses.replace(parts, forward=state.averaged.module), Stop())
    assert again == {"loss": measured["ema_loss"], "absolute": measured["ema_absolute"]}
    assert measured["ema_loss"] != measured["loss"]
    assert evaluate(state, parts, Stop(15)) is None


class Noisy(nn.Module):
    """Draws from every generator in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs) + torch.rand(1) + random.gauss(0, 1) + np.random.randn()
        return result


@pytest.mark.parametrize("stopped", [False, True])
def test_evaluation_leaves_every_generator_as_it_found_it(stopped: bool) -> None:
    state, parts = made(Noisy(), noise=True)
    rng.seed(1)
    expected = [torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn()]
    rng.seed(1)
    evaluate(state, parts, Stop(15 if stopped else None))
    assert [torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn()] == expected


def frozen_part() -> nn.Sequential:
    """A fork keeps some of its layers in evaluation mode."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)))
    model.train()
    model[1].eval()
    model[2][0].eval()
    return model


@pytest.mark.parametrize("ends", ["whole", "stopped", "broken"])
def test_evaluation_leaves_every_modules_mode_as_it_found_it(ends: str) -> None:
    class Broken(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            raise ZeroDivisionError

    state, parts = made(frozen_part(), task=Broken() if ends == "broken" else None)
    before = [module.training for module in state.model.modules()]
    if ends == "broken":
        with pytest.raises(ZeroDivisionError):
            evaluate(state, parts, Stop())
    else:
        evaluate(state, parts, Stop(15 if ends == "stopped" else None))
    assert [module.training for module in state.model.modules()] == before
    assert True in before and False in before


def test_evaluation_runs_in_evaluation_mode_without_gradients_and_changes_no_buffer() -> None:
    seen: list[tuple[bool, bool]] = []

    class Watching(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            seen.append((any(module.training for module in model.modules()), torch.is_grad_enabled()))
            return super().__call__(model, batch)

    state, parts = made(frozen_part().train(), task=Watching())
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    evaluate(state, parts, Stop())
    assert seen == [(False, False)] * 3
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert torch.is_grad_enabled()


def test_evaluation_gives_up_as_soon_as_a_stop_is_asked_for() -> None:
    stop, seen = Stop(), []

    class Stopping(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            seen.append(1)
            stop.signal = 15
            return super().__call__(model, batch)

    state, parts = made(task=Stopping())
    assert evaluate(state, parts, stop) is None
    assert len(seen) == 1


def test_evaluation_changes_nothing_that_is_saved_of_the_epoch() -> None:
    state, parts = made()
    update(state, parts, window(4))
    before = {name: value.clone() for name, value in state.sums.items()}
    evaluate(state, parts, Stop())
    assert (state.step, state.batch, state.samples) == (1, 1, 4)
    assert all(torch.equal(state.sums[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_training_and_evaluation(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    class Watching(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            seen.append(model(batch[0]).dtype)
            return super().__call__(model, batch)

    state, parts = made(task=Watching(), autocast=dtype)
    update(state, parts, window(4))
    evaluate(state, parts, Stop())
    assert seen == [dtype] * 4
    assert all(parameter.dtype is torch.float32 for parameter in state.model.parameters())


def test_batches_reach_the_task_aligned() -> None:
    seen: list[int] = []

    class Watching(Squares):
        def __call__(self, model: Any, batch: Any) -> Outcome:
            seen.extend(part.data_ptr() % ALIGNMENT for part in batch)
            return super().__call__(model, batch)

    state, parts = made(task=Watching())
    memory = torch.zeros(100)
    update(state, parts, [(memory[3:15].reshape(4, 3), memory[21:25])])
    assert seen == [0, 0]


# An optimizer that evaluates the window itself


def searching(sizes: tuple[int, ...], *, model: nn.Module | None = None, **options: Any) -> tuple[TrainState, Parts]:
    state, parts = made(model, optimizer=lambda one: torch.optim.LBFGS(one.parameters(), max_iter=3), **options)
    parts = dataclasses.replace(parts, searches=True)
    update(state, parts, window(*sizes))
    return state, parts


def test_a_search_lowers_the_loss_of_the_whole_window() -> None:
    ordinary, parts = made()
    update(ordinary, parts, window(8))
    before = summarise(parts, ordinary.sums, 8)
    state, parts = searching((4, 2, 2))
    assert summarise(parts, state.sums, state.samples) == before, "the first evaluation counts, and it alone"
    assert (state.step, state.batch, state.samples, state.optimizers[""].learning_rates) == (1, 3, 8, [1])
    update(state, parts, window(8))
    assert summarise(parts, state.sums, state.samples)["loss"] < before["loss"]
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_a_search_sees_one_gradient_however_the_window_is_cut() -> None:
    one, other = searching((8,))[0], searching((4, 2, 2))[0]
    assert all(
        (a - b).abs().max() < 1e-5 for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)
    )


def test_each_evaluation_of_a_search_draws_the_same_numbers_and_the_next_update_draws_others() -> None:
    drawn: list[list[float]] = [[]]

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            drawn[-1].append(float(torch.rand(1)) + random.random() + np.random.rand())
            result: Tensor = self.linear(inputs)
            return result

    state, parts = searching((4,), model=Dropping())
    drawn.append([])
    update(state, parts, window(4))
    assert len(drawn[0]) > 1 and len(set(drawn[0])) == len(set(drawn[1])) == 1 and drawn[0][0] != drawn[1][0]


def test_a_searchs_gradient_is_clipped() -> None:
    norms: list[float] = []

    class Looking(torch.optim.SGD):
        def step(self, closure: Any) -> None:  # type: ignore[override]
            closure()
            norms.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).norm().item())

    state, parts = made(optimizer=lambda one: Looking(one.parameters()), clip_grad_norm=0.5)
    update(state, dataclasses.replace(parts, searches=True), window(4, 4))
    assert norms == [pytest.approx(0.5, rel=1e-4)]
