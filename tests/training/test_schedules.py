"""Every schedule goes on from a checkpoint with the same rates and momenta, and is planned to the end of training."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tools.processes import REPOSITORY
from tools.share import some
from torch import nn, optim

from savepoint import checkpoint
from savepoint.checkpoint import layout
from savepoint.config import Settings, read_settings
from savepoint.errors import ConfigError
from savepoint.training import schedules, state
from savepoint.training.optimization import Optimization
from savepoint.training.state import TrainState
from savepoint.trust import instantiate

make = partial(instantiate.make, source=REPOSITORY / "src")
T = "torch.optim.lr_scheduler."
STEPS, POINTS = 50, (0, 1, 7, 20, 21, 33, 49)
OPTIONS = {
    path.stem: path for path in sorted((REPOSITORY / "conf" / "scheduler").glob("*.yaml")) if path.stem != "none"
}


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": T + name, "_partial_": True, **arguments}


WARMUP = part("LinearLR", start_factor=0.1, total_iters=None)
OTHERS: dict[str, dict[str, Any]] = {
    "onecycle momentum": part("OneCycleLR", max_lr=0.1, total_steps=None, cycle_momentum=True),
    "onecycle three phases": part("OneCycleLR", max_lr=0.1, total_steps=None, three_phase=True),
    "cyclic momentum": part("CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=7, cycle_momentum=True),
    "cyclic exp_range": part("CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=7, mode="exp_range", gamma=0.9),
    "cyclic triangular2": part("CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=4, step_size_down=3, mode="triangular2"),
    "restarts growing": part("CosineAnnealingWarmRestarts", T_0=5, T_mult=2),
    "multistep": part("MultiStepLR", milestones=[3, 3, 20, 34]),
    "nested": part("SequentialLR", milestones=[20, 34], schedulers=[
        part("SequentialLR", schedulers=[WARMUP, part("MultiStepLR", milestones=[2, 4])], milestones=[7]),
        part("CosineAnnealingWarmRestarts", T_0=5),
        part("CosineAnnealingLR", T_max=None)]),
    "chain first": part("SequentialLR", milestones=[20], schedulers=[
        part("ChainedScheduler", schedulers=[WARMUP, part("ExponentialLR", gamma=0.97)]), part("PolynomialLR", total_iters=None)]),
    "chained": part("ChainedScheduler", schedulers=[WARMUP, part("StepLR", step_size=5), part("MultiStepLR", milestones=[8])]),
}  # fmt: skip
NODES = {name: yaml.safe_load(path.read_text().replace("${optimizer.lr}", "0.1")) for name, path in OPTIONS.items()} | {
    name: node | {"interval": "step", "monitor": None} for name, node in OTHERS.items()
}
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "adam": lambda model: optim.Adam(list(model.named_parameters()), lr=0.1),
    "sgd": lambda model: optim.SGD(list(model.named_parameters()), lr=0.1, momentum=0.9),
    "tensor rate": lambda model: optim.Adam(list(model.named_parameters()), lr=torch.tensor(0.1)),
}


def config(node: dict[str, Any], **trainer: Any) -> Settings:
    scheduler = {"interval": node.get("interval", "step"), "monitor": node.get("monitor")}
    ends = trainer or {"max_epochs": STEPS if scheduler["interval"] == "epoch" else 5}
    full, faults = read_settings({"seed": 0, "data": {"batch_size": 4}, "tracker": {"kind": "none"},
                                  "scheduler": scheduler, "trainer": ends})  # fmt: skip
    assert full is not None, faults
    return full


def built(node: dict[str, Any], optimizer: str = "adam", **trainer: Any) -> tuple[TrainState, int | None]:
    model = nn.Linear(2, 2)
    one = OPTIMIZERS[optimizer](model)
    one._opt_called = True  # type: ignore[attr-defined]
    schedule, length = schedules.build(node, config(node, **trainer), one, batches=10, make=make)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, {"": Optimization(one, schedule, scaler, schedule_length=length)}), length


def rates(one: TrainState, node: dict[str, Any], steps: range) -> list[Any]:
    """Rate and momentum before each step; what a plateau follows gets worse after a while."""
    found = []
    for step in steps:
        group = one.optimizers[""].optimizer.param_groups[0]
        found.append([repr(group[key]) for key in ("lr", "betas", "momentum", "initial_lr") if key in group])
        one.optimizers[""].scheduler.step(*([min(step, 9) % 9 / 3] if node.get("monitor") else []))
    return found


SEQUENCE_WARNS = "ignore:The epoch parameter in `scheduler.step"  # of SequentialLR's own call, in torch 2.8
# In `make test` each schedule with one optimizer, by turns.
PAIRS = [(name, [*OPTIMIZERS][number % len(OPTIMIZERS)]) for number, name in enumerate(NODES)]


@pytest.mark.parametrize(("name", "optimizer"), some(itertools.product(NODES, OPTIMIZERS), lambda pair: pair in PAIRS))
@pytest.mark.filterwarnings(SEQUENCE_WARNS)
def test_rates_and_momenta_go_on_as_they_were(tmp_path: Path, name: str, optimizer: str) -> None:
    node = NODES[name]
    whole, _ = built(node, optimizer)
    expected = rates(whole, node, range(STEPS))
    assert len({str(each) for each in expected}) > 1
    for point in POINTS:
        one, _ = built(node, optimizer)
        rates(one, node, range(point))
        model, tree = state.capture(one)
        path = checkpoint.save(tmp_path / str(point), model=model, state=tree, metadata={},
                               documents={layout.CONFIG: "", layout.PROVENANCE: "{}"})  # fmt: skip
        resumed, _ = built(node, optimizer)
        rates(resumed, node, range(3))
        found = checkpoint.load(path)
        for _ in range(2):  # restoring takes nothing out of what was loaded
            state.restore(resumed, found)
        assert rates(resumed, node, range(point, STEPS)) == expected[point:], point
        assert repr(resumed.optimizers[""].scheduler.state_dict().keys()) == repr(
            whole.optimizers[""].scheduler.state_dict().keys()
        )


class Counting:
    """A callable object with state of its own."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, step: int) -> float:
        self.calls.append(step)
        return 1 / len(self.calls)


def test_what_a_callable_object_keeps_goes_on(tmp_path: Path) -> None:
    def fresh() -> TrainState:
        model = nn.Linear(1, 1)
        one = OPTIMIZERS["sgd"](model)
        one._opt_called = True  # type: ignore[attr-defined]
        schedule = optim.lr_scheduler.LambdaLR(one, Counting())
        return TrainState(model, {"": Optimization(one, schedule, torch.amp.GradScaler("cpu", enabled=False))})

    whole = fresh()
    rates(whole, {}, range(5))
    model, tree = state.capture(whole)
    documents = {layout.CONFIG: "", layout.PROVENANCE: "{}"}
    found = checkpoint.load(checkpoint.save(tmp_path, model=model, state=tree, documents=documents, metadata={}))
    resumed = fresh()
    state.restore(resumed, found)
    assert rates(resumed, {}, range(5)) == rates(whole, {}, range(5))
    calls = found.state["scheduler"]["lr_lambdas"][0]["calls"]
    assert calls == [0, 1, 2, 3, 4, 5], "the checkpoint is not written to"


def test_a_named_function_reaches_torch_as_a_partial() -> None:
    one, _ = built(NODES["lambda"], "sgd")
    (function,) = one.optimizers[""].scheduler.lr_lambdas  # type: ignore[attr-defined]
    assert isinstance(function, partial) and function.func.__name__ == "inverse_sqrt"


# Planning

LATE = part("SequentialLR", schedulers=[WARMUP, part("CosineAnnealingLR", T_max=None)], milestones=[10])


@pytest.mark.parametrize(
    ("interval", "trainer", "end"),
    [
        ("step", {"max_epochs": 5}, 50),
        ("step", {"max_epochs": 5, "accumulate": 3}, 20),
        ("step", {"max_steps": 25, "accumulate": 3}, 25),
        ("step", {"max_epochs": 5, "max_steps": 25}, 25),
        ("step", {"max_epochs": 2, "max_steps": 25}, 20),
        ("epoch", {"max_epochs": 5}, 5),
        ("epoch", {"max_steps": 21}, 3),
        ("epoch", {"max_steps": 20, "accumulate": 3}, 5),
        ("epoch", {"max_epochs": 5, "max_steps": 21}, 3),
    ],
)
def test_the_end_is_counted_in_what_the_schedule_counts(interval: str, trainer: dict[str, Any], end: int) -> None:
    assert schedules.planned_end(config({"interval": interval}, **trainer), 10, interval=interval) == end


def test_each_schedule_is_walked_to_under_its_path() -> None:
    paths = [path for path, _ in schedules.walk(part("ChainedScheduler", schedulers=[WARMUP, LATE]))]
    inner = "scheduler.schedulers[1]"
    assert paths == ["scheduler", "scheduler.schedulers[0]", inner, f"{inner}.schedulers[0]", f"{inner}.schedulers[1]"]


def test_a_sequence_within_a_sequence_is_planned_from_where_it_begins() -> None:
    node = part("SequentialLR", schedulers=[part("ConstantLR", total_iters=9), LATE], milestones=[20])
    first, second = schedules._planned(node, 0, 50)["schedulers"][1]["schedulers"]
    assert (first["total_iters"], second["T_max"]) == (10, 20)


def test_what_begins_after_the_end_gets_a_length_all_the_same() -> None:
    one, _ = built(part("SequentialLR", schedulers=[WARMUP, part("CosineAnnealingLR", T_max=None)], milestones=[60]))
    first, second = one.optimizers[""].scheduler._schedulers  # type: ignore[attr-defined]
    assert (first.total_iters, second.T_max) == (50, 1)


@pytest.mark.parametrize(
    ("node", "key"),
    [
        (part("CosineAnnealingLR", T_max=None), ("T_max", 50)),
        (part("CosineAnnealingLR", T_max=7), None),
        (part("SequentialLR", schedulers=[WARMUP, part("CosineAnnealingLR", T_max=None)], milestones=[20]), ("schedulers.1.T_max", 30)),
        (part("SequentialLR", schedulers=[WARMUP, part("CosineAnnealingLR", T_max=9)], milestones=[20]), None),
        (part("ChainedScheduler", schedulers=[part("ExponentialLR", gamma=0.9), WARMUP]), ("schedulers.1.total_iters", 50)),
        (part("OneCycleLR", max_lr=0.1, total_steps=None), ("total_steps", 50)),
        (part("OneCycleLR", max_lr=0.1, total_steps=None, epochs=5, steps_per_epoch=10), None),
        (part("OneCycleLR", max_lr=0.1, total_steps=50), None),
        (part("OneCycleLR", max_lr=0.1, total_steps=60, epochs=1, steps_per_epoch=10), None),
        (part("SequentialLR", schedulers=[WARMUP, part("CosineAnnealingLR", T_max=None)], milestones=[60]), ("schedulers.0.total_iters", 50)),
        (part("SequentialLR", schedulers=[part("ConstantLR", total_iters=9), LATE], milestones=[20]), ("schedulers.1.schedulers.1.T_max", 20)),
        (part("MultiStepLR", milestones=[5, 5]), None),
    ],
)  # fmt: skip
def test_a_length_that_is_null_is_planned_to_the_end_of_training(node: dict[str, Any], key: Any) -> None:
    _, length = built(node)
    assert length == (50 if key else None)
    assert schedules.planned_key(node, 50) == key


def test_inside_a_sequence_a_length_reaches_to_where_the_next_begins() -> None:
    node = part("SequentialLR", schedulers=[WARMUP, WARMUP, part("CosineAnnealingLR", T_max=None)], milestones=[4, 20])
    inner = built(node)[0].optimizers[""].scheduler._schedulers  # type: ignore[attr-defined]
    assert [inner[0].total_iters, inner[1].total_iters, inner[2].T_max] == [4, 16, 30]
    assert node["schedulers"][2]["T_max"] is None, "the config stays as it was"


@pytest.mark.filterwarnings(SEQUENCE_WARNS)
def test_the_shipped_sequence_warms_up_and_ends_at_nothing() -> None:
    one, _ = built(NODES["sequential"], "sgd")
    found = [float(each[0]) for each in rates(one, NODES["sequential"], range(STEPS + 1))]
    assert found[0] == pytest.approx(0.005) and max(found) == found[20] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0, abs=1e-12) and found[20:] == sorted(found[20:], reverse=True)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (part("SequentialLR", schedulers=[WARMUP, WARMUP], milestones=[3, 2]), "scheduler.milestones=[3, 2]: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 3, milestones=[3, 2]), "scheduler.milestones=[3, 2]: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 2, milestones=3), "scheduler.milestones=3: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 2, milestones=[0]), "scheduler.milestones=[0]: must say where"),
        (part("SequentialLR", schedulers=[{**WARMUP, "_partial_": False}], milestones=[]), "scheduler.schedulers[0]"),
        (part("SequentialLR", schedulers=[part("LinearLR", start=1)], milestones=[]), "scheduler.schedulers[0].start: LinearLR has no"),
        (part("SequentialLR", schedulers=[{"_target_": "os.system"}], milestones=[]), "scheduler.schedulers[0]._target_: 'os.system' is not"),
        (part("OneCycleLR", max_lr=1.0, total_steps=49), "scheduler.total_steps=49 ends before training does (50 steps)."),
        (part("OneCycleLR", max_lr=1.0, epochs=4, steps_per_epoch=10), "scheduler.total_steps=40 ends before training does (50 steps)."),
        (part("SequentialLR", schedulers=[WARMUP, part("OneCycleLR", max_lr=1.0, total_steps=29)], milestones=[20]),
         "scheduler.schedulers[1].total_steps=29 ends before training does (30 steps)."),
        (part("ReduceLROnPlateau"), "scheduler: ReduceLROnPlateau follows a metric that is measured once an epoch"),
        (part("SequentialLR", schedulers=[WARMUP] * 2, milestones=[True]), "scheduler.milestones=[True]: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 2, milestones=["a"]), "scheduler.milestones=['a']: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 3, milestones=[2, 2]), "scheduler.milestones=[2, 2]: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 3, milestones=[3], interval="epoch"),
         "scheduler.milestones=[3]: must say where each schedule but the first begins, counted in epochs: 2 whole numbers"),
        (part("ChainedScheduler", schedulers=[part("SequentialLR", schedulers=[WARMUP] * 2, milestones=[0])]),
         "scheduler.schedulers[0].milestones=[0]: must say where"),
        (part("SequentialLR", schedulers=[WARMUP] * 2), "scheduler: SequentialLR: missing a required argument: 'milestones'."),
        (part("SequentialLR", schedulers=[WARMUP, 3], milestones=[2]), "scheduler.schedulers[1]=3: must be a scheduler"),
        (part("ChainedScheduler", schedulers=[]), "scheduler: ChainedScheduler: ChainedScheduler expects at least one scheduler"),
        (part("SequentialLR", schedulers=3, milestones=[]), "scheduler.schedulers=3: must be a list of schedulers."),
        (part("SequentialLR", schedulers=WARMUP, milestones=[]), "scheduler.schedulers={'_target_': "),
        (part("StepLR", step_size=0), "scheduler.step_size=0: must be above 0, counted in steps."),
        (part("CosineAnnealingLR", T_max=0, interval="epoch"), "scheduler.T_max=0: must be above 0, counted in epochs."),
        (part("ChainedScheduler", schedulers=[part("CyclicLR", base_lr=0.1, max_lr=0.2, step_size_up=0)]),
         "scheduler.schedulers[0].step_size_up=0: must be above 0"),
        (part("CyclicLR", base_lr=0.1, max_lr=0.2, step_size_down=-1), "scheduler.step_size_down=-1: must be above 0"),
        (part("LinearLR", start=1), "scheduler.start: LinearLR has no"),
        (part("CyclicLR", base_lr=0.1, max_lr=0.2, mode="odd"), "scheduler.mode='odd': must be one of 'triangular'"),
        (part("ChainedScheduler", schedulers=[WARMUP, part("CyclicLR", base_lr=0.1, max_lr=0.2, mode="odd")]),
         "scheduler.schedulers[1].mode='odd': must be one of 'triangular'"),
        (part("OneCycleLR", max_lr=1.0, total_steps=49, interval="epoch"), "scheduler.total_steps=49 ends before training does (50 epochs)."),
        (part("OneCycleLR", max_lr=1.0, steps_per_epoch=10), "scheduler.steps_per_epoch=10: OneCycleLR: You must define either total_steps OR"),
        (part("OneCycleLR", max_lr=1.0, epochs=10), "scheduler.epochs=10: OneCycleLR: You must define either total_steps OR"),
        (part("ReduceLROnPlateau", interval="epoch"), "scheduler: ReduceLROnPlateau follows a metric that is measured once an epoch"),
        (part("ReduceLROnPlateau", monitor="val/loss"), "scheduler: ReduceLROnPlateau follows a metric that is measured once an epoch"),
        (WARMUP | {"monitor": "val/loss"}, "scheduler.monitor=val/loss: torch.optim.lr_scheduler.LinearLR follows no metric."),
    ],
)  # fmt: skip
def test_a_schedule_that_does_not_fit_is_refused_by_its_path(node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(node)
    assert str(error.value).startswith(told)


def test_no_schedule_is_none() -> None:
    model = nn.Linear(1, 1)
    node = {"_target_": None, "interval": "step", "monitor": None, "step_size": 3}
    assert schedules.build(node, config(node), OPTIMIZERS["sgd"](model), batches=10, make=make) == (None, None)


def test_building_a_chain_within_a_sequence_warns_of_nothing() -> None:
    model = nn.Linear(1, 1)
    node = NODES["chain first"]
    schedules.build(node, config(node), OPTIMIZERS["sgd"](model), batches=10, make=make)
