"""Every optimizer with every schedule, precision and clipping: it trains, or it is refused at the start by name."""

import dataclasses
import itertools
import os
import random
import warnings
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tools import needs
from tools.grid import OPTIONS, refusals
from tools.processes import REPOSITORY

from savepoint.errors import ConfigError
from savepoint.system import rng
from savepoint.training import build, combinations
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import update
from savepoint.trust import validation

CONF, SOURCE = REPOSITORY / "conf", REPOSITORY / "src"
MODELS = ("mlp", "cnn", "embedding")
OPTIMIZERS, SCHEDULERS = OPTIONS["optimizer"], OPTIONS["scheduler"]
GRID = list(itertools.product(MODELS, OPTIMIZERS, SCHEDULERS, ("none", "bf16", "fp16"), (None, 1.0)))


@pytest.fixture(autouse=True)
def own_generators() -> Any:
    with rng.isolated(), warnings.catch_warnings():
        # CosineAnnealingWarmRestarts inside SequentialLR, and the like: torch warns of its own calls.
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        yield


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        resolved = OmegaConf.to_container(compose("config", ["tracker=none", *overrides]), resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def option(group: str, name: str, **interpolated: Any) -> dict[str, Any]:
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    for key, value in interpolated.items():
        text = text.replace(f"${{{key.replace('__', '.')}}}", repr(value))
    return yaml.safe_load(text)


BASE = composed("data.dataset.limit=100", "data.batch_size=8", "trainer.max_epochs=2", "trainer.deterministic=true")


def made(**groups: Any) -> dict[str, Any]:
    """The base with groups replaced, or keys of them: model="cnn", trainer={"accumulate": 2}."""
    full = {group: dict(value) if isinstance(value, dict) else value for group, value in BASE.items()}
    for group, given in groups.items():
        if isinstance(given, str):
            rate = full["optimizer"]["lr"]
            full[group] = option(group, given, optimizer__lr=rate)
        else:
            full[group] |= given
    return full


def assembled(full: dict[str, Any]) -> tuple[TrainState, Parts]:
    return build.assemble(full, validation.check_config(full, source=SOURCE), source=SOURCE)


def trains(full: dict[str, Any], steps: int = 3) -> TrainState:
    state, parts = assembled(full)
    state.model.train()
    state.optimizers[""].optimizer._opt_called = True
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    for batch in itertools.islice(parts.train.epoch(0), steps):
        update(state, parts, [batch])
        state.optimizers[""].scheduler.step(*([1.0] if full["scheduler"]["monitor"] else []))
    assert all(parameter.isfinite().all() for parameter in state.model.parameters())
    if not state.optimizers[""].scaler.is_enabled():  # its first steps overflow, and are skipped
        assert any(not torch.equal(before[name], parameter) for name, parameter in state.model.named_parameters())
    return state


def holds(combination: tuple[Any, ...]) -> None:
    model, optimizer, scheduler, amp, clip = combination
    full = made(model=model, optimizer=optimizer, amp=amp, trainer={"clip_grad_norm": clip})
    full["scheduler"] = option("scheduler", scheduler, optimizer__lr=full["optimizer"]["lr"])
    expected = refusals(*combination)
    if not expected:
        trains(full)
        return
    with pytest.raises(ConfigError) as error:
        assembled(full)
    told = str(error.value).splitlines()
    assert len(told) == len(expected), told
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=True)), told


def test_some_combinations_of_all_options_train_or_are_refused() -> None:
    generator = random.Random(int(os.environ.get("SAVEPOINT_TEST_SEED", "0")))
    for combination in generator.sample(GRID, 100):
        try:
            holds(combination)
        except Exception as error:
            raise AssertionError(f"{combination}: {error}") from error


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_combinations_of_all_options_train_or_are_refused(optimizer: str) -> None:
    for combination in GRID:
        if combination[1] == optimizer:
            try:
                holds(combination)
            except Exception as error:
                raise AssertionError(f"{combination}: {error}") from error


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"torch.optim.lr_scheduler.{name}", "_partial_": True, **arguments}


def chain(name: str, *schedulers: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return {**step(name, schedulers=list(schedulers), **arguments), "interval": "step", "monitor": None}


SLOW, FALL = step("LinearLR", total_iters=2), step("ExponentialLR", gamma=0.9)
PLATEAU = step("ReduceLROnPlateau")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_momentum_is_cycled_where_every_group_has_one(optimizer: str, scheduler: str) -> None:
    own = {"total_steps": None} if scheduler == "OneCycleLR" else {"base_lr": 0.01}
    node = {**step(scheduler, max_lr=0.1, cycle_momentum=True, **own), "interval": "step", "monitor": None}
    full = made(optimizer=optimizer, model="embedding" if optimizer == "sparse_adam" else "mlp", scheduler=node)
    if "fallback" in full["optimizer"]:
        full["optimizer"]["fallback"]["lr"] = full["optimizer"]["lr"]
    if optimizer in ("adagrad", "asgd", "adadelta", "rprop", "lbfgs", "adafactor", "muon"):
        with pytest.raises(ConfigError, match=r"^scheduler\.cycle_momentum=true: .* Set it to false\.$"):
            assembled(full)
        full["scheduler"]["cycle_momentum"] = False
    trains(full)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"scheduler": chain("SequentialLR", SLOW, PLATEAU, milestones=[2])}, "scheduler.schedulers[1]: ReduceLROnPlateau"),
        ({"scheduler": chain("ChainedScheduler", PLATEAU)}, "scheduler.schedulers[0]: ReduceLROnPlateau follows a metric"),
        ({"scheduler": {**PLATEAU, "interval": "step", "monitor": "val/loss"}}, "scheduler: ReduceLROnPlateau follows"),
        ({"scheduler": chain("SequentialLR", SLOW, chain("ChainedScheduler", FALL), milestones=[2])},
         "scheduler.schedulers[1]: SequentialLR can begin with a ChainedScheduler, but not switch to one."),
        ({"scheduler": chain("SequentialLR", SLOW, chain("SequentialLR", FALL, milestones=[]), milestones=[2])},
         "scheduler.schedulers[1]: SequentialLR can begin with a SequentialLR, but not switch to one."),
        ({"scheduler": chain("ChainedScheduler", FALL, step("SequentialLR", schedulers=[SLOW, step("ChainedScheduler", schedulers=[FALL])], milestones=[2]))},
         "scheduler.schedulers[1].schedulers[1]: SequentialLR can begin with a ChainedScheduler, but not switch to one."),
        ({"scheduler": {**chain("SequentialLR", milestones=[2]), "schedulers": [SLOW, 3]}}, "scheduler.schedulers[1]=3: must be a scheduler"),
        ({"optimizer": {"capturable": True}, "trainer": {"device": "cpu"}}, "optimizer.capturable=true: AdamW can be captured"),
        ({"optimizer": {"differentiable": True}}, "optimizer.differentiable=true: AdamW would keep the graph of every step."),
        ({"optimizer": {"fused": True, "foreach": True}}, "optimizer (foreach=True, fused=True): AdamW: `fused` and `foreach` cannot be `True` together."),
    ],
)  # fmt: skip
def test_what_torch_takes_and_then_fails_at_is_refused_at_the_start(groups: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        assembled(made(**groups))
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("scheduler", [
    chain("SequentialLR", step("ChainedScheduler", schedulers=[SLOW, FALL]), FALL, milestones=[1]),
    chain("SequentialLR", step("SequentialLR", schedulers=[SLOW, FALL], milestones=[1]), FALL, milestones=[2]),
    chain("ChainedScheduler", step("SequentialLR", schedulers=[SLOW, FALL], milestones=[1]), FALL),
    chain("ChainedScheduler", FALL, step("SequentialLR", schedulers=[SLOW, FALL], milestones=[1])),
])  # fmt: skip
def test_chains_that_begin_with_a_chain_train(scheduler: dict[str, Any]) -> None:
    trains(made(scheduler=scheduler))


@pytest.mark.parametrize(("optimizer", "options", "refused"), [
    ("sgd", {}, False), ("sgd", {"weight_decay": 0.1}, True), ("sgd", {"fused": True}, True), ("adagrad", {}, False),
    ("adagrad", {"weight_decay": 0.1}, True), ("adagrad", {"fused": True}, True), ("lbfgs", {}, False), ("adam", {}, True),
    ("sparse_adam", {"fallback": None}, True), pytest.param("muon", {"fallback": None}, True, marks=needs.muon),
])  # fmt: skip
def test_sparse_gradients_go_to_what_takes_them(optimizer: str, options: dict[str, Any], refused: bool) -> None:
    full = made(model="embedding", optimizer=optimizer)
    full["optimizer"] |= options
    if refused:
        with pytest.raises(ConfigError, match=r"^optimizer: "):
            assembled(full)
        if optimizer in ("sgd", "adagrad", "adam"):
            trains(full | {"model": full["model"] | {"sparse": False}})
    else:
        trains(full)


class Own(torch.optim.Adam):
    """What somebody else wrote may take sparse gradients."""


@pytest.mark.parametrize(("optimizer", "options", "table", "told"), [
    (torch.optim.SparseAdam, {}, "0", "optimizer: SparseAdam takes sparse gradients only, and 1.bias has none."),
    (torch.optim.Adam, {}, "2", "optimizer: Adam takes no sparse gradients, and 2.weight has them."),
    (torch.optim.SGD, {"weight_decay": 0.1}, "2", "optimizer: SGD with weight_decay takes no sparse gradients, and 2.weight has"),
    (torch.optim.Adagrad, {"fused": True}, "2", "optimizer: Adagrad with fused takes no sparse gradients, and 2.weight has them."),
    (torch.optim.SGD, {}, "0", None), (torch.optim.Adagrad, {}, "0", None), (torch.optim.LBFGS, {}, "0", None), (Own, {}, "0", None),
])  # fmt: skip
def test_what_takes_no_sparse_gradients_is_told_with_a_parameter_that_has_them(
    optimizer: Any, options: dict[str, Any], table: str, told: str | None
) -> None:
    model = torch.nn.ModuleDict({table: torch.nn.Embedding(4, 2, sparse=True), "1": torch.nn.Linear(2, 1)})
    one = setup(model, optimizer(model.named_parameters(), **options))
    faults = [line for rule in combinations.RULES for line in rule(one)]
    assert [fault[: len(told or "")] for fault in faults] == [told] * (told is not None)


def test_sparse_gradients_of_unequal_batches_are_averaged() -> None:
    full = made(model="embedding", optimizer="sparse_adam", trainer={"accumulate": 2})
    state, parts = assembled(full)
    first, second = itertools.islice(parts.train.epoch(0), 2)
    update(state, parts, [first, [part[:3] for part in second]])
    assert state.samples == 11 and state.model.bias.abs().sum() > 0


def setup(model: torch.nn.Module, optimizer: torch.optim.Optimizer, **groups: Any) -> combinations.Setup:
    full = made(**groups)
    return combinations.Setup(
        full["scheduler"], validation.check_config(full, source=SOURCE), model, optimizer, torch.device("cpu")
    )


def test_lbfgs_is_refused_parameters_that_are_not_contiguous() -> None:
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    one = setup(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match=r"^optimizer: LBFGS takes contiguous parameters only, and weight is not\."):
        combinations.check(one.node, one.settings, model=model, optimizer=one.optimizer, device=one.device)


def test_a_scaler_is_refused_half_precision_parameters() -> None:
    model = torch.nn.Linear(1, 1, dtype=torch.float16)
    one = setup(model, torch.optim.SGD(model.parameters()), amp="fp16")
    with pytest.raises(ConfigError, match=r"^amp\.dtype=float16: weight is float16 already"):
        combinations.check(one.node, one.settings, model=model, optimizer=one.optimizer, device=one.device)


def test_what_several_groups_are_refused_for_is_said_once() -> None:
    with pytest.raises(ConfigError) as error:
        assembled(made(optimizer={"differentiable": True, "weight_decay_on": "matrices"}))
    assert str(error.value).count("\n") == 0


def test_where_there_is_no_schedule_none_of_its_keys_is_refused() -> None:
    trains(made(model="embedding", optimizer="sparse_adam", scheduler={"_target_": None, "max_lr": 0.1}))


@pytest.mark.parametrize(
    ("model", "amp"),
    [
        (torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), "none"),
        (torch.nn.Linear(1, 1, dtype=torch.float16), "none"),
        (torch.nn.Linear(1, 1, dtype=torch.float16), "bf16"),
        (torch.nn.Linear(1, 1), "fp16"),
    ],
    ids=str,
)
def test_any_layout_and_precision_is_taken_where_nothing_fails_at_it(model: torch.nn.Module, amp: str) -> None:
    one = setup(model, torch.optim.SGD(model.parameters()), amp=amp)
    combinations.check(one.node, one.settings, model=model, optimizer=one.optimizer, device=one.device)


@needs.muon
@pytest.mark.parametrize(("rate", "each"), [(1, "1,0.25"), (0.9, "0.9,0.225")])
def test_each_fault_is_a_line_with_the_path_of_its_schedule(rate: float, each: str) -> None:
    node = chain("SequentialLR", step("OneCycleLR", max_lr=rate, total_steps=None), FALL, milestones=[2])
    with pytest.raises(ConfigError) as error:
        assembled(made(optimizer="muon", scheduler=node))
    at = "scheduler.schedulers[0]"
    assert str(error.value).splitlines() == [
        f"{at}.cycle_momentum=true: Muon with AdamW has nothing to cycle in every group. Set it to false.",
        f"{at}.max_lr={rate}: this would become the learning rate of every group; now they have [0.02, 0.005]. "
        f"Give one for each: {at}.max_lr=[{each}].",
    ]
    first = node["schedulers"][0] | {"cycle_momentum": False, "max_lr": [0.1, 0.2]}
    trains(made(optimizer="muon", scheduler=node | {"schedulers": [first, FALL]}))


@pytest.mark.parametrize(("device", "faults"), [("cpu", 1), ("cuda", 0)])
def test_capturable_is_refused_where_nothing_captures(device: str, faults: int) -> None:
    model = torch.nn.Linear(1, 1)
    one = setup(model, torch.optim.Adam(model.parameters(), capturable=True))
    one = dataclasses.replace(one, device=torch.device(device))
    assert len([fault for rule in combinations.RULES for fault in rule(one)]) == faults


def test_lbfgs_is_no_fallback() -> None:
    full = made(model="embedding", optimizer="sparse_adam")
    full["optimizer"]["fallback"] = {"_target_": "torch.optim.LBFGS", "_partial_": True, "lr": 0.02}
    with pytest.raises(ConfigError, match=r"^optimizer\.fallback: LBFGS has to train all parameters\."):
        assembled(full)
