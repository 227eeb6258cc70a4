"""What changes is saved and put back: the model, the optimizer, the scheduler, the scaler, the generators."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import lr_scheduler

from savepoint import checkpoint
from savepoint.checkpoint import Checkpoint, layout
from savepoint.errors import CheckpointError
from savepoint.system import rng
from savepoint.training import state
from savepoint.training.optimization import NoSchedule, Optimization, Scaler
from savepoint.training.state import TrainState


class Net(nn.Module):
    """Batch norm, tied weights, a buffer that is not saved, one of integers, extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.inner.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.randn(3), persistent=False)
        self.seen: dict[Any, Any] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        self.seen[int(self.steps)] = (float(inputs.sum()), "text")
        result: Tensor = self.tied(torch.dropout(self.norm(self.inner(inputs)), 0.3, self.training))
        return result

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, saved: Any) -> None:
        self.seen = saved


Maker = Callable[[], nn.Module]


def fresh(
    make: Maker = Net, optimizer: Any = torch.optim.AdamW, scheduler: Any = None, *, fp16: bool = False, **options: Any
) -> TrainState:
    model = make()
    built = optimizer(list(model.named_parameters()), **options)
    scaler = Scaler("cpu", enabled=fp16, init_scale=8.0, growth_interval=2)
    return TrainState(model, {"": Optimization(built, scheduler(built) if scheduler else NoSchedule(), scaler)})


def train(one: TrainState, steps: int, *, schedule: bool = True) -> None:
    """Updates on random inputs, so that the generators matter too."""
    dtype = next(one.model.parameters()).dtype
    for _ in range(steps):
        loss = one.model(torch.randn(8, 4, dtype=dtype)).square().mean()
        one.optimizers[""].scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        one.optimizers[""].scaler.step(one.optimizers[""].optimizer)
        one.optimizers[""].scaler.update()
        one.optimizers[""].optimizer.zero_grad()
        if schedule:
            one.optimizers[""].scheduler.step()
        one.step += 1


def saved(one: TrainState, root: Path) -> Checkpoint:
    model, tree = state.capture(one)
    path = checkpoint.save(
        root, model=model, state=tree, documents={layout.CONFIG: "", layout.PROVENANCE: "{}"}, metadata={}
    )
    return checkpoint.load(path)


def all_tensors(one: TrainState) -> dict[str, Tensor]:
    tensors = {name: value for name, value in one.model.state_dict().items() if isinstance(value, Tensor)}
    for index, entry in one.optimizers[""].optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{key}": value for key, value in entry.items() if isinstance(value, Tensor)}
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_same(a: TrainState, b: TrainState) -> None:
    one, other = all_tensors(a), all_tensors(b)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name
    assert [{**g, "params": 0} for g in a.optimizers[""].optimizer.param_groups] == [
        {**g, "params": 0} for g in b.optimizers[""].optimizer.param_groups
    ]
    assert a.optimizers[""].scheduler.state_dict() == b.optimizers[""].scheduler.state_dict()
    assert a.optimizers[""].scaler.state_dict() == b.optimizers[""].scaler.state_dict()


def resumes_exactly(tmp_path: Path, make: Callable[[], TrainState], *, before: int = 3, after: int = 4) -> None:
    """Train on; or save, build anew with other numbers, restore, and train on: the same bits."""
    rng.seed(1)
    whole = make()
    train(whole, before)
    loaded = saved(whole, tmp_path)
    train(whole, after)

    rng.seed(99)
    resumed = make()
    train(resumed, 2)
    torch.randn(7), random.random(), np.random.randn()
    state.restore(resumed, loaded)
    train(resumed, after)
    assert_same(resumed, whole)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"amsgrad": True}),
    "adam_tensor_lr": (torch.optim.Adam, {"lr": torch.tensor(1e-2)}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "rprop": (torch.optim.Rprop, {}),
    "asgd": (torch.optim.ASGD, {"t0": 2}),
    "adafactor": (torch.optim.Adafactor, {}),
}


@pytest.mark.parametrize("optimizer, options", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_restored_training_goes_on_to_the_same_bits(tmp_path: Path, optimizer: Any, options: dict[str, Any]) -> None:
    resumes_exactly(tmp_path, lambda: fresh(optimizer=optimizer, **options))


def linear(dtype: torch.dtype) -> Maker:
    return lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.ASGD], ids=["nadam", "asgd"])
def test_optimizer_state_keeps_its_dtype_whatever_the_parameters_are(
    tmp_path: Path, optimizer: Any, dtype: torch.dtype
) -> None:
    """torch's load_state_dict casts `mu_product`, `eta` and `mu` to the parameter's dtype."""
    rng.seed(1)
    whole = fresh(linear(dtype), optimizer)
    train(whole, 3)
    kinds = {name: tensor.dtype for name, tensor in all_tensors(whole).items()}
    assert set(kinds.values()) == {dtype, torch.float32}
    resumed = fresh(linear(dtype), optimizer)
    state.restore(resumed, saved(whole, tmp_path))
    assert {name: tensor.dtype for name, tensor in all_tensors(resumed).items()} == kinds
    train(whole, 30)
    # The generators' state is that of the save: the resumed run sees the inputs that the whole one saw.
    rng.restore(checkpoint.latest(tmp_path)[0].state["rng"])  # type: ignore[union-attr]
    train(resumed, 30)
    assert_same(resumed, whole)


def test_half_precision_moments_of_full_precision_parameters_stay_half(tmp_path: Path) -> None:
    one = fresh(linear(torch.float32), torch.optim.Adam)
    train(one, 1)
    for entry in one.optimizers[""].optimizer.state.values():
        entry["exp_avg"] = entry["exp_avg"].bfloat16()
    resumed = fresh(linear(torch.float32), torch.optim.Adam)
    state.restore(resumed, saved(one, tmp_path))
    assert_same(resumed, one)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.3, total_iters=5),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=6),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=6, power=2.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "warm_restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_restored_schedules_go_on_to_the_same_rates(tmp_path: Path, scheduler: Callable[[Any], Any]) -> None:
    resumes_exactly(tmp_path, lambda: fresh(optimizer=torch.optim.SGD, scheduler=scheduler, lr=0.1, momentum=0.9))


def test_a_plateau_schedule_goes_on_with_what_it_has_seen(tmp_path: Path) -> None:
    def make() -> TrainState:
        return fresh(
            optimizer=torch.optim.SGD, scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1), lr=0.1
        )

    whole = make()
    whole.optimizers[""].scheduler.step(1.0)
    whole.optimizers[""].scheduler.step(2.0)
    resumed = make()
    state.restore(resumed, saved(whole, tmp_path))
    for one in (whole, resumed):
        one.optimizers[""].scheduler.step(3.0)
    assert_same(resumed, whole)
    assert resumed.optimizers[""].optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_the_scaler_goes_on_from_its_scale_and_its_count(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, lambda: fresh(linear(torch.float32), fp16=True))
    loaded, _ = checkpoint.latest(tmp_path)
    assert (
        loaded is not None
        and loaded.state["scaler"]["scale"] == 16.0
        and loaded.state["scaler"]["_growth_tracker"] == 1
    )


def test_every_generator_goes_on(tmp_path: Path) -> None:
    one = fresh()
    loaded = saved(one, tmp_path)
    expected = [torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn()]
    rng.seed(5)
    state.restore(fresh(), loaded)
    assert [torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn()] == expected


def test_every_plain_field_comes_back_with_its_types(tmp_path: Path) -> None:
    one = fresh()
    one.epoch, one.step, one.batch, one.history_lines, one.samples = 3, 40, 5, 17, 64
    one.optimizers[""].schedule_length, one.optimizers[""].learning_rates = 100, [0.1, 0.2]
    one.metrics = {"val/loss": float("inf"), "val/accuracy": -0.0}
    one.best = {"metric": "val/loss", "value": 0.5, "epoch": 2, "step": 30}
    one.sums = {"loss": torch.tensor(1.25, dtype=torch.float64), "correct": torch.tensor([3, 4])}
    one.logged = (0.75, 32)
    two = fresh()
    state.restore(two, saved(one, tmp_path))
    for name in ("epoch", "step", "batch", "history_lines", "samples", "metrics", "best", "logged"):
        assert repr(getattr(two, name)) == repr(getattr(one, name)), name
    for name, value in one.sums.items():
        assert torch.equal(two.sums[name], value) and two.sums[name].dtype == value.dtype


def test_a_run_keeps_the_order_of_samples_that_it_began_with(tmp_path: Path) -> None:
    one, two = fresh(), fresh()
    assert one.order == "permutation-1"
    one.order = "randperm"
    state.restore(two, saved(one, tmp_path))
    assert two.order == "randperm"


def test_a_checkpoint_that_names_no_order_is_of_the_first_one(tmp_path: Path) -> None:
    found, one = saved(fresh(), tmp_path), fresh()
    del found.state["order"]  # as in format 1
    state.restore(one, found)
    assert one.order == "randperm"


def test_no_field_of_the_state_is_left_out() -> None:
    """A field that somebody adds to TrainState and not to what is saved would not survive a restart."""
    import dataclasses

    _, tree = state.capture(fresh())
    names = {field.name for kind in (TrainState, Optimization) for field in dataclasses.fields(kind)}
    assert names - {"model", "optimizers"} <= tree.keys()


def test_sums_that_go_on_do_not_write_into_the_loaded_checkpoint(tmp_path: Path) -> None:
    one = fresh()
    one.sums = {"loss": torch.tensor(1.0)}
    loaded = saved(one, tmp_path)
    state.restore(one, loaded)
    one.sums["loss"] += 1
    assert loaded.state["sums"]["loss"].item() == 1.0


def test_training_on_does_not_write_into_the_loaded_checkpoint(tmp_path: Path) -> None:
    one = fresh()
    train(one, 1)
    loaded = saved(one, tmp_path)
    before = {name: value.clone() for name, value in loaded.model.items()}
    moments = loaded.state["optimizer"]["state"][0]["exp_avg"].clone()
    state.restore(one, loaded)
    train(one, 2)
    assert all(torch.equal(loaded.model[name], before[name]) for name in before)
    assert torch.equal(loaded.state["optimizer"]["state"][0]["exp_avg"], moments)


# The model


def test_batch_norm_ties_buffers_and_extra_state_come_back(tmp_path: Path) -> None:
    one = fresh()
    train(one, 3)
    two = fresh()
    cache = two.model.cache.clone()
    state.restore(two, saved(one, tmp_path))
    assert torch.equal(two.model.norm.running_mean, one.model.norm.running_mean)
    assert two.model.norm.num_batches_tracked.item() == 3 and two.model.norm.num_batches_tracked.dtype == torch.int64
    assert two.model.steps.item() == 3
    assert two.model.seen == one.model.seen and list(two.model.seen) == [1, 2, 3]
    assert two.model.tied.weight is two.model.inner.weight
    assert torch.equal(two.model.cache, cache), "a buffer that is not persistent is not state"


def test_model_safetensors_repeats_tied_weights_under_the_models_own_names(tmp_path: Path) -> None:
    one = fresh()
    loaded = saved(one, tmp_path)
    file = load_file(loaded.path / layout.MODEL)
    assert file.keys() == {name for name, value in one.model.state_dict().items() if isinstance(value, Tensor)}
    assert torch.equal(file["tied.weight"], file["inner.weight"])


class Growing(nn.Module):
    """Extra state that is a tensor, of another shape at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.losses = torch.zeros(0)

    def get_extra_state(self) -> Tensor:
        return self.losses

    def set_extra_state(self, saved: Tensor) -> None:
        self.losses = saved.clone()


def test_extra_state_may_be_a_tensor_that_grows(tmp_path: Path) -> None:
    one, two = fresh(Growing), fresh(Growing)
    one.model.losses = torch.tensor([1.0, 2.0])
    loaded = saved(one, tmp_path)
    assert set(load_file(loaded.path / layout.MODEL)) == {"weight"}
    state.restore(two, loaded)
    assert torch.equal(two.model.losses, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", ["__metadata__", "/etc/passwd", "\\\\host", "a\0b"])
def test_a_buffer_of_a_name_that_no_file_should_have_comes_back(tmp_path: Path, name: str) -> None:
    """One is what safetensors calls its metadata; the others would lead a reader that makes files of tensors astray."""

    def named() -> nn.Module:
        module = nn.Linear(1, 1)
        module._buffers[name] = torch.tensor([7.0])
        return module

    one, two = fresh(named), fresh(named)
    one.model._buffers[name].fill_(3.0)  # type: ignore[union-attr]
    found = saved(one, tmp_path)
    assert set(found.model) == {"weight", "bias"} and list(found.state["model_extra"]) == [name]
    state.restore(two, found)
    assert two.model._buffers[name].item() == 3.0  # type: ignore[union-attr]


def test_the_versions_of_modules_reach_their_loading_code(tmp_path: Path) -> None:
    """BatchNorm of version 1 had no count of batches: without its version, loading would reset the count."""
    seen: list[Any] = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
            seen.append(local_metadata.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)  # type: ignore[no-untyped-call]

    def make() -> nn.Module:
        return nn.Sequential(Versioned(1, 1))

    state.restore(fresh(make), saved(fresh(make), tmp_path))
    assert seen == [3]


def test_weights_alone_leave_everything_else_fresh(tmp_path: Path) -> None:
    one = fresh()
    train(one, 3)
    loaded = saved(one, tmp_path)
    rng.seed(4)
    two = fresh()
    expected = torch.randn(3)
    rng.seed(4)
    two = fresh()
    state.restore_model(two.model, loaded)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(two.model.inner.weight, one.model.inner.weight)
    assert two.optimizers[""].optimizer.state_dict()["state"] == {} and two.step == 0


# What does not fit


def refusal(tmp_path: Path, was: Maker, now: Maker) -> str:
    """The error, once it is certain that nothing was changed before it."""
    loaded = saved(fresh(was), tmp_path)
    two = fresh(now)
    before = all_tensors(two)
    with pytest.raises(CheckpointError) as caught:
        state.restore(two, loaded)
    after = all_tensors(two)
    assert all(torch.equal(before[name], after[name]) for name in before)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_names_are_all_listed(tmp_path: Path) -> None:
    text = refusal(
        tmp_path,
        lambda: nn.ModuleDict({"a": nn.Linear(2, 3), "old": nn.Linear(1, 1, bias=False)}),
        lambda: nn.ModuleDict({"a": nn.Linear(2, 4), "new": nn.Linear(1, 1, bias=False)}),
    )
    assert "epoch_0000_step_00000000 does not fit the model" in text
    for part in (
        "missing: new.weight",
        "unexpected: old.weight",
        "a.weight is [3, 2] in the checkpoint and [4, 2] in the model",
        "a.bias is [3]",
    ):
        assert part in text


def test_another_dtype_is_refused_by_name(tmp_path: Path) -> None:
    text = refusal(tmp_path, lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).double())
    assert "weight is torch.float32 in the checkpoint and torch.float64 in the model" in text


def test_a_long_list_of_misfits_is_cut(tmp_path: Path) -> None:
    text = refusal(
        tmp_path,
        lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(50))),
        lambda: nn.ModuleDict({"a": nn.Linear(1, 1)}),
    )
    assert "missing: a.bias, a.weight; unexpected: 0.bias" in text, "no kind pushes another one out"
    assert text.endswith(" and 94 more.") and len(text) < 1000


def test_a_value_in_a_tensors_place_is_refused_by_name(tmp_path: Path) -> None:
    loaded = saved(fresh(lambda: nn.Linear(1, 1)), tmp_path)
    loaded.state["model_extra"]["weight"] = 3
    with pytest.raises(CheckpointError, match="weight is int in the checkpoint and Tensor in the model"):
        state.restore(fresh(lambda: nn.Linear(1, 1)), loaded)


def test_names_and_shapes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    loaded = saved(fresh(lambda: nn.Linear(2, 2)), tmp_path)
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
        fine = nn.Linear(2, 2)
    with pytest.raises(
        CheckpointError, match=r"weight is \[2, 2\] in the checkpoint and \[1000000, 1000000\] in the model"
    ):
        state.fits(huge, loaded)
    state.fits(fine, loaded)


def test_two_parameters_of_one_shape_that_swapped_places_are_refused_by_name(tmp_path: Path) -> None:
    """torch matches optimizer state by position: they would swap their moments."""

    class Pair(nn.Module):
        def __init__(self, *order: str) -> None:
            super().__init__()
            for name in order:
                self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    text = refusal(tmp_path, lambda: Pair("a", "b"), lambda: Pair("b", "a"))
    assert "in another place: a, b" in text


def test_what_was_unfrozen_or_frozen_in_training_is_so_again(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Net()
        model.inner.bias.requires_grad_(False)
        return model

    with rng.isolated():
        one, two = fresh(make), fresh(make)
        train(one, 2)
        one.model.inner.bias.requires_grad_(True)  # type: ignore[union-attr]
        one.model.norm.weight.requires_grad_(False)  # type: ignore[union-attr]
        found = saved(one, tmp_path)
        train(one, 3)
        state.restore(two, found)
        train(two, 3)
    frozen = [name for name, parameter in two.model.named_parameters() if not parameter.requires_grad]
    assert found.state["frozen"] == frozen == ["norm.weight"]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    del found.state["frozen"]  # as in the first checkpoints
    state.restore(two := fresh(make), found)
    assert not two.model.inner.bias.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"optimizer": None}, "holds no training state: optimizer missing in state.json or of wrong type."),
        ({"history_lines": "x", "epoch": 1.0}, "state: epoch, history_lines missing in"),
        ({"optimizer": {}}, "its state 'optimizer' cannot be restored here (KeyError: 'param_groups')."),
        ({"scaler": {"scale": 1.0}}, "its state 'scaler' cannot be restored here (KeyError: "),
        ({"sums": {"loss": 1.0}}, "its state 'sums' cannot be restored here (AttributeError: "),
        ({"order": 1}, "state: order missing in state.json or of wrong type."),
        ({"order": "sorted"}, "its training samples have the order 'sorted', which this version of Savepoint does not know. It knows randperm, permutation-1."),
        ({"rng": {}}, "its state 'rng' cannot be restored here (KeyError: "),
    ],
)  # fmt: skip
def test_a_state_of_something_else_is_told_and_no_traceback(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with rng.isolated():
        found = saved(fresh(fp16=True), tmp_path)
        found.state.update(changed)
        with pytest.raises(CheckpointError) as error:
            state.restore(fresh(fp16=True), found)
    assert str(found.path) in str(error.value) and told in str(error.value)
