"""`task.update`: each optimizer steps on its own losses, as a loop written by hand would, to the same bits."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from savepoint.config import read_settings
from savepoint.data.batches import Batches
from savepoint.errors import ConfigError
from savepoint.system import rng
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.own_update import Step
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import update
from savepoint.training.task import Outcome


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        rng.seed(5)
        yield


class Pair(nn.Module):
    """A generator of numbers and a judge of them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(3, 4)
        self.judge = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def judge_loss(model: Any, real: Tensor, noise: Tensor) -> Tensor:
    return softplus(-model.judge(real)).mean() + softplus(model.judge(model.generator(noise).detach())).mean()


def generator_loss(model: Any, noise: Tensor) -> Tensor:
    return softplus(-model.judge(model.generator(noise))).mean()


class Duel:
    """A batch is (real, noise). steps: of the judge for each of the generator."""

    metrics = ()

    def __init__(self, steps: int = 1, **options: Any) -> None:
        self.steps, self.options = steps, options

    def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
        real, noise = batch
        for _ in range(self.steps):
            step.minimize(judge_loss(step.model, real, noise), "judge", samples=len(real), **self.options)
        loss = generator_loss(step.model, noise)
        step.minimize(loss, "generator", samples=len(real), **self.options)
        return Outcome(loss, len(real), {})

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        return Outcome(generator_loss(model, batch[1]), len(batch[1]), {})

    def compute(self, sums: Any, samples: int) -> dict[str, float]:
        return {}


class Nothing:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1)


def made(
    task: Any,
    *,
    model: nn.Module | None = None,
    fp16: bool = False,
    autocast: torch.dtype | None = None,
    **trainer: Any,
) -> tuple[TrainState, Parts]:
    model = model or Pair()
    config = {"seed": 0, "data": {"batch_size": 2}, "trainer": trainer, "tracker": {"kind": "none"}, "scheduler": {}}
    full, faults = read_settings(config)
    assert full is not None, faults
    optimizers = {}
    for name in ("generator", "judge"):
        one = torch.optim.Adam(getattr(model, name).named_parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=fp16, init_scale=2.0**10)
        optimizers[name] = Optimization(one, NoSchedule(), scaler)
    batches = [Batches(Nothing(), split=split, settings=full.data, seed=0) for split in ("train", "val")]
    parts = Parts(full, task, model, batches[0], batches[1], torch.device("cpu"), autocast)
    return TrainState(model, optimizers), parts


def batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 4), torch.randn(size, 3)


def by_hand(model: Pair, batches: list[tuple[Tensor, Tensor]], *, steps: int = 1, clip: float | None = None) -> None:
    """The loop that somebody would write without the engine."""
    optimizers = {name: torch.optim.Adam(getattr(model, name).parameters(), lr=0.1) for name in ("generator", "judge")}

    def minimize(loss: Tensor, name: str) -> None:
        model.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(getattr(model, name).parameters(), clip)
        optimizers[name].step()

    for real, noise in batches:
        for _ in range(steps):
            minimize(judge_loss(model, real, noise), "judge")
        minimize(generator_loss(model, noise), "generator")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "trainer", [{"clip_grad_norm": 0.01}, {"log_grad_norm": True, "log_every_n_steps": 1}], ids=str
)
def test_the_norm_of_each_optimizers_gradient_is_kept_as_it_was_before_it_was_clipped(trainer: dict[str, Any]) -> None:
    state, parts = made(Duel(), **trainer)
    other, (real, noise) = copy.deepcopy(state.model), batch(6)
    judge_loss(other, real, noise).backward()
    expected = nn.utils.get_total_norm([each.grad for each in other.judge.parameters() if each.grad is not None])
    update(state, parts, [(real, noise)])
    assert state.grad_norms.keys() == {"judge", "generator"}
    assert torch.equal(state.grad_norms["judge"], expected)


@pytest.mark.parametrize(("steps", "clip"), [(1, None), (3, None), (1, 0.01), (2, 0.5)])
def test_updates_equal_those_of_a_loop_by_hand(steps: int, clip: float | None) -> None:
    trainer = {} if clip is None else {"clip_grad_norm": clip}
    state, parts = made(Duel(steps), **trainer)
    other, batches = copy.deepcopy(state.model), [batch(6) for _ in range(4)]
    for each in batches:
        update(state, parts, [each])
    by_hand(other, batches, steps=steps, clip=clip)  # type: ignore[arg-type]
    assert equal(weights(state.model), weights(other))
    assert (state.step, state.batch, state.samples) == (4, 4, 24)
    assert all(parameter.grad is None for parameter in state.model.parameters()), "gradients are never saved"


def test_only_the_parameters_of_the_optimizer_get_a_gradient() -> None:
    seen = []

    class Looking(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            loss = generator_loss(step.model, batch[1])
            judge = [parameter.clone() for parameter in step.model.judge.parameters()]
            step.minimize(loss, "generator")
            seen.extend(parameter.grad for parameter in step.model.judge.parameters())
            assert all(map(torch.equal, judge, step.model.judge.parameters())), "the other optimizer has not stepped"
            return Outcome(loss, len(batch[1]), {})

    state, parts = made(Looking())
    update(state, parts, [batch(4)])
    assert seen == [None] * 4


def test_a_window_of_unequal_batches_steps_once_on_the_mean_of_all_its_samples() -> None:
    state, parts = made(Duel(), accumulate=3)
    other, whole = copy.deepcopy(state.model), batch(9)
    cuts = [(0, 2), (2, 7), (7, 9)]
    stepped = []
    for one in state.optimizers.values():
        one.optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    update(state, parts, [tuple(each[a:b] for each in whole) for a, b in cuts])
    assert len(stepped) == 2 and (state.step, state.batch, state.samples) == (1, 3, 9)

    expected = torch.autograd.grad(judge_loss(other, *whole), list(other.judge.parameters()))  # type: ignore[attr-defined]
    again, parts = made(Duel(), model=copy.deepcopy(other), accumulate=3)
    caught: list[Tensor] = []
    again.optimizers["judge"].optimizer.register_step_pre_hook(
        lambda *_: caught.extend(each.grad.clone() for each in again.model.judge.parameters())  # type: ignore[union-attr]
    )
    update(again, parts, [tuple(each[a:b] for each in whole) for a, b in cuts])
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(caught, expected, strict=True))


def test_an_optimizer_of_earlier_batches_alone_steps_at_the_windows_end() -> None:
    class Once(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            loss = judge_loss(step.model, *batch)
            self.steps += 1
            if self.steps == 2:
                step.minimize(loss, "judge", samples=len(batch[0]))
            return Outcome(loss, len(batch[0]), {})

    state, parts = made(Once(), accumulate=2)
    before = weights(state.model.judge)  # type: ignore[arg-type]
    update(state, parts, [batch(3), batch(3)])
    assert not equal(before, weights(state.model.judge))  # type: ignore[arg-type]


def test_an_overflow_of_one_optimizer_skips_its_step_and_no_other() -> None:
    class Overflowing(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            step.minimize(judge_loss(step.model, *batch) * float("inf"), "judge")
            loss = generator_loss(step.model, batch[1])
            step.minimize(loss, "generator")
            return Outcome(loss, len(batch[1]), {})

    state, parts = made(Overflowing(), fp16=True)
    before = weights(state.model)
    update(state, parts, [batch(4)])
    now = weights(state.model)
    changed = {name for name, value in now.items() if not torch.equal(value, before[name])}
    assert changed == {"generator.weight", "generator.bias"}
    scales = {name: one.scaler.get_scale() for name, one in state.optimizers.items()}
    assert scales == {"generator": 2.0**10, "judge": 2.0**9} and state.step == 1


def test_in_low_precision_what_follows_a_step_sees_the_new_weights() -> None:
    """Autocast keeps copies of weights, and would go on with those from before the step."""
    seen: list[Tensor] = []

    class Looking(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            real, noise = batch
            step.minimize(judge_loss(step.model, real, noise), "judge")
            seen.append(step.model.judge(real).detach())
            loss = generator_loss(step.model, noise)
            step.minimize(loss, "generator")
            return Outcome(loss, len(real), {})

    state, parts = made(Looking(), autocast=torch.bfloat16)
    given = batch(4)
    update(state, parts, [given])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seen[0], state.model.judge(given[0]))  # type: ignore[operator]


def test_one_graph_may_serve_two_losses() -> None:
    class Sharing(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            drawn = step.model.generator(batch[1])
            step.minimize(softplus(step.model.judge(drawn)).mean(), "judge", retain_graph=True)
            step.minimize(drawn.square().mean(), "generator")
            return Outcome(drawn.square().mean(), len(drawn), {})

    state, parts = made(Sharing())
    before, given = weights(state.model), batch(4)
    update(state, parts, [given])
    assert not any(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_what_an_update_leaves_in_gradients_is_gone_after_it() -> None:
    class Careless(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            loss = generator_loss(step.model, batch[1])
            loss.backward()
            return Outcome(loss, len(batch[1]), {})

    state, parts = made(Careless())
    update(state, parts, [batch(4)])
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_the_limit_of_one_call_goes_before_that_of_the_config() -> None:
    state, parts = made(Duel(clip_grad_norm=0.01), clip_grad_norm=9.0)
    other, given = copy.deepcopy(state.model), batch(6)
    update(state, parts, [given])
    by_hand(other, [given], clip=0.01)  # type: ignore[arg-type]
    assert equal(weights(state.model), weights(other))


def test_a_step_says_where_the_run_is() -> None:
    class Looking(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            assert (step.number, step.epoch, step.device) == (7, 2, torch.device("cpu"))
            assert {name: type(one) for name, one in step.optimizers.items()} == dict.fromkeys(
                ("generator", "judge"), torch.optim.Adam
            )
            return super().update(step, batch)

    state, parts = made(Looking())
    state.step, state.epoch = 7, 2
    update(state, parts, [batch(2)])
    assert state.step == 8


Act = Callable[[Step, Any], Any]
WRONG: dict[str, tuple[Act, dict[str, Any], str]] = {
    "another name": (
        lambda step, batch: step.minimize(judge_loss(step.model, *batch), "critic"),
        {},
        r"'critic'\): the config has no such optimizer. It has: generator, judge\.",
    ),
    "no name": (lambda step, batch: step.minimize(judge_loss(step.model, *batch)), {}, "''.*no such optimizer"),
    "no graph": (lambda step, batch: step.minimize(torch.ones(()), "judge"), {}, "'judge' has no graph"),
    "a loss for each sample": (
        lambda step, batch: step.minimize(step.model.judge(batch[0]), "judge"),
        {},
        r"'judge' has the shape \[4, 1\]",
    ),
    "a loss of other parameters": (
        lambda step, batch: step.minimize(judge_loss(step.model, *batch), "generator"),
        {},
        "depends on no parameter of its optimizer",
    ),
    "an accumulated loss without its samples": (
        lambda step, batch: step.minimize(judge_loss(step.model, *batch), "judge"),
        {"accumulate": 2},
        "how many samples the loss is a mean over",
    ),
    "two steps in an accumulated update": (
        lambda step, batch: [step.minimize(judge_loss(step.model, *batch), "judge", samples=4) for _ in range(2)],
        {"accumulate": 2},
        "'judge' steps more than once in an update.*trainer.accumulate=1",
    ),
    "no outcome": (lambda step, batch: 3.0, {}, "update of Wrong returns a float, and has to return an Outcome"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_in_one_line(kind: str) -> None:
    act, trainer, told = WRONG[kind]

    class Wrong(Duel):
        def update(self, step: Step, batch: tuple[Tensor, Tensor]) -> Outcome:
            return act(step, batch) or Outcome(generator_loss(step.model, batch[1]), 4, {})

    state, parts = made(Wrong(), **trainer)
    with pytest.raises(ConfigError, match=told) as error:
        update(state, parts, [batch(4)])
    assert "\n" not in str(error.value)


def test_averaged_weights_follow_updates_of_ones_own() -> None:
    from savepoint.training.averaging import Average

    state, parts = made(Duel())
    state.averaged = Average(state.model, 0.5)
    for _ in range(3):
        update(state, parts, [batch(4)])
    assert int(state.averaged.n_averaged) == 3
    assert not equal(weights(state.model), weights(state.averaged.module))
