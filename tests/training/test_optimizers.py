"""Every optimizer of torch goes on from a checkpoint, in a new process, to the same bits.

`main` is that new process, forked from one that has only imported torch: it restores each case's checkpoint, trains on
and writes what it has come to.
"""

import contextlib
import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tools import needs
from tools.optimizing import facts, loaded, shared_rate
from tools.processes import Zygote
from torch import Tensor, nn, optim

from savepoint import checkpoint
from savepoint.checkpoint import layout
from savepoint.errors import ConfigError
from savepoint.system import rng
from savepoint.training import optimizer_state, optimizers, state
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.state import TrainState
from savepoint.trust import instantiate

BEFORE, AFTER = (1, 2, 12), 12
DIGESTS = "digests.json"


CLASSES = {name for name in dir(optim) if isinstance(getattr(optim, name), type)} - {"Optimizer"}


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5, dtype=dtype)
        self.norm = nn.LayerNorm(5, dtype=dtype)
        self.last = nn.Linear(5, 3, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.first(inputs.to(self.first.weight.dtype)).tanh()))
        return result


class Images(nn.Module):
    """Its convolutions, and so what optimizers keep of them, are channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs.repeat(1, 25)[:, :147].reshape(-1, 3, 7, 7).to(memory_format=torch.channels_last)
        result: Tensor = self.conv2(self.conv1(pixels)).mean(dim=(2, 3))
        return result


class Frozen(Net):
    """Its first layer is trained from the eleventh step on: its optimizer state begins there."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        self.first.requires_grad_(int(self.steps) > 10)
        return super().forward(inputs)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(40, 3, mode="sum", sparse=True)
        self.bias = nn.Parameter(torch.zeros(3))
        torch.sparse.check_sparse_tensor_invariants.disable()  # said aloud, or torch warns of its own optimizers

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.table((inputs.abs() * 10).long().clamp(max=39)) + self.bias
        return result


def with_fallback(model: nn.Module, main: Any, rest: Any, **node: Any) -> optim.Optimizer:
    config = {"_target_": f"torch.optim.{main}", "_partial_": True, "lr": 0.02} | node
    config["fallback"] = {"_target_": f"torch.optim.{rest}", "_partial_": True, "lr": 0.01}
    return optimizers.build(config, model, make=partial(instantiate.make, source=Path(__file__).parents[2] / "src"))


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], optim.Optimizer]]


def plain(kind: Any, make: Callable[[], nn.Module] = Net, **options: Any) -> Case:
    return make, lambda model: kind(list(model.named_parameters()), **options)


half = partial(Net, torch.bfloat16)
double = partial(Net, torch.float64)
SMOOTH = [optim.Adadelta, optim.Adafactor, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax, optim.ASGD,
          optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop, optim.SGD]  # fmt: skip
CASES: dict[str, Case] = {
    **{f"{kind.__name__}": plain(kind) for kind in SMOOTH},
    **{f"{kind.__name__} foreach": plain(kind, foreach=True) for kind in SMOOTH},
    **{f"{kind.__name__} bf16": plain(kind, half) for kind in SMOOTH},
    **{f"{kind.__name__} float64": plain(kind, double) for kind in SMOOTH},
    **{f"{kind.__name__} channels_last": plain(kind, Images) for kind in SMOOTH},
    **{f"{kind.__name__} frozen": plain(kind, Frozen) for kind in SMOOTH},
    **{
        f"{kind.__name__} fused": plain(kind, fused=True)
        for kind in (optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad)
    },
    **{f"{kind.__name__} amsgrad": plain(kind, amsgrad=True) for kind in (optim.Adam, optim.AdamW)},
    **{f"{kind.__name__} shared rate": (Net, partial(shared_rate, kind=kind)) for kind in (optim.Adam, optim.RMSprop)},
    "SGD momentum": plain(optim.SGD, momentum=0.9),
    "SGD nesterov": plain(optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD dampening": plain(optim.SGD, momentum=0.9, dampening=0.5, maximize=True, lr=1e-4),
    "SGD fused momentum": plain(optim.SGD, momentum=0.9, fused=True),
    "SGD sparse momentum": plain(optim.SGD, Bag, momentum=0.9),
    "Adagrad sparse": plain(optim.Adagrad, Bag),
    "RMSprop all": plain(optim.RMSprop, momentum=0.9, centered=True, weight_decay=0.1),
    "ASGD averaging": plain(optim.ASGD, t0=2),
    "ASGD bf16 averaging": plain(optim.ASGD, half, t0=2),
    "NAdam decoupled": plain(optim.NAdam, decoupled_weight_decay=True, weight_decay=0.1),
    "RAdam decoupled": plain(optim.RAdam, decoupled_weight_decay=True, weight_decay=0.1),
    "Adam lists": plain(optim.Adam, betas=[0.8, 0.99], weight_decay=1),
    "LBFGS": plain(optim.LBFGS, lr=0.1, max_iter=3),
    "LBFGS strong_wolfe": plain(optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe"),
    "LBFGS full history": plain(optim.LBFGS, lr=0.1, max_iter=3, history_size=4),
    "LBFGS strong_wolfe full history": plain(optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe", history_size=3),
    "LBFGS bf16": plain(optim.LBFGS, half, lr=0.1, max_iter=3),
    "LBFGS float64": plain(optim.LBFGS, double, max_iter=3, line_search_fn="strong_wolfe"),
    "LBFGS frozen": plain(optim.LBFGS, Frozen, lr=0.1, max_iter=2),
    "Muon": (Net, lambda model: with_fallback(model, "Muon", "AdamW")),
    "Muon matrices": (Net, lambda model: with_fallback(model, "Muon", "AdamW", weight_decay_on="matrices")),
    "Muon bf16 with NAdam": (half, lambda model: with_fallback(model, "Muon", "NAdam")),
    "Muon with Adamax": (Net, lambda model: with_fallback(model, "Muon", "Adamax")),
    "SparseAdam": (Bag, lambda model: with_fallback(model, "SparseAdam", "AdamW")),
    "SparseAdam with RMSprop": (Bag, lambda model: with_fallback(model, "SparseAdam", "RMSprop")),
    "SparseAdam with SGD": (Bag, lambda model: with_fallback(model, "SparseAdam", "SGD")),
    "float64 default": plain(optim.Adam),
    "float64 default SGD": plain(optim.SGD, momentum=0.9),
    "float64 default NAdam": plain(optim.NAdam),
}
if not needs.HAS_MUON:
    CASES = {name: case for name, case in CASES.items() if not name.startswith("Muon")}


@contextlib.contextmanager
def default_dtype(name: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if name.startswith("float64 default") else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fresh(name: str) -> TrainState:
    make, optimizer = CASES[name]
    model = make()
    return TrainState(
        model, {"": Optimization(optimizer(model), NoSchedule(), torch.amp.GradScaler("cpu", enabled=False))}
    )


def train(one: TrainState, steps: int) -> None:
    for _ in range(steps):
        inputs, targets = torch.randn(8, 6), torch.randint(0, 3, (8,))

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            one.optimizers[""].optimizer.zero_grad()
            loss = nn.functional.cross_entropy(one.model(inputs).float(), targets)
            loss.backward()
            return loss

        if not optimizers.searches(one.optimizers[""].optimizer):
            closure()
        one.optimizers[""].optimizer.step(closure if optimizers.searches(one.optimizers[""].optimizer) else None)  # type: ignore[arg-type]
        one.optimizers[""].optimizer.zero_grad()
        one.step += 1


def save(one: TrainState, root: Path) -> Path:
    model, tree = state.capture(one)
    documents = {layout.CONFIG: "", layout.PROVENANCE: "{}"}
    return checkpoint.save(root, model=model, state=tree, documents=documents, metadata={})


def digest(one: TrainState) -> str:
    """Of the model without its strides, which are the model's own (model.safetensors has none), and of the optimizer."""
    model = one.model.state_dict()
    content = (
        [(name, facts(model[name].contiguous())) for name in sorted(model)],
        facts(one.optimizers[""].optimizer.state_dict()),
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()


def name_of(case: str, steps: int) -> str:
    return f"{case.replace(' ', '_')}-{steps}"


def main() -> int:
    """The new process: each case, restored at each point, and trained on."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    digests = {}
    for case in CASES:
        for steps in BEFORE:
            with default_dtype(case):
                rng.seed(99)  # other numbers than those of the process that saved
                resumed = fresh(case)
                state.restore(resumed, checkpoint.latest(folder / name_of(case, steps))[0])  # type: ignore[arg-type]
                digests[f"{name_of(case, steps)}-restored"] = digest(resumed)
                train(resumed, AFTER)
                digests[f"{name_of(case, steps)}-resumed"] = digest(resumed)
    (folder / DIGESTS).write_text(json.dumps(digests))
    return 0


@pytest.fixture(scope="module")
def digests(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of each case, restored and resumed by a new process; and of what each was without interruption."""
    root, whole = tmp_path_factory.mktemp("cases"), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with rng.isolated(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda _: None
        )  # no case is about a power cut, and 3,000 waits take a quarter of all
        for case in CASES:
            with default_dtype(case):
                rng.seed(1)
                one = fresh(case)
                for steps in range(1, max(BEFORE) + AFTER + 1):
                    train(one, 1)
                    if steps in BEFORE:
                        save(one, root / name_of(case, steps))
                        whole[f"{name_of(case, steps)}-restored"] = digest(one)
                    if steps - AFTER in BEFORE:
                        whole[f"{name_of(case, steps - AFTER)}-resumed"] = digest(one)
    torch.set_num_threads(threads)
    ended = zygote.run("training.test_optimizers", str(root))
    assert ended.status == 0, ended.output
    return json.loads((root / DIGESTS).read_text()), whole


@pytest.mark.parametrize("case", CASES)
def test_a_new_process_goes_on_to_the_same_bits(digests: tuple[dict[str, str], dict[str, str]], case: str) -> None:
    resumed, whole = digests
    for steps in BEFORE:
        for point in ("restored", "resumed"):
            name = f"{name_of(case, steps)}-{point}"
            assert resumed[name] == whole[name], name


def test_every_optimizer_of_torch_is_among_the_cases() -> None:
    assert len(CLASSES) == 14 + needs.HAS_MUON
    assert {case.split()[0] for case in CASES} >= CLASSES


def test_restored_tensors_lie_in_aligned_memory_of_their_own(tmp_path: Path) -> None:
    with rng.isolated():
        one, other = fresh("Adam"), fresh("Adam")
        train(one, 1)
        state.restore(other, checkpoint.load(save(one, tmp_path)))
    for entry in other.optimizers[""].optimizer.state.values():
        assert all(value.data_ptr() % 64 == 0 for value in entry.values())


# Groups and fallbacks


def built(model: nn.Module, name: str, **node: Any) -> optim.Optimizer:
    config = {"_target_": f"torch.optim.{name}", "_partial_": True} | node
    return optimizers.build(config, model, make=partial(instantiate.make, source=Path(__file__).parents[2] / "src"))


def test_weight_decay_may_leave_biases_and_norms_alone() -> None:
    everything = built(Net(), "AdamW", weight_decay=0.1, weight_decay_on="all")
    assert [group["weight_decay"] for group in everything.param_groups] == [0.1]
    matrices, others = built(Net(), "AdamW", weight_decay=0.1, weight_decay_on="matrices").param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert matrices["param_names"] == ["first.weight", "last.weight"]
    assert others["param_names"] == ["first.bias", "norm.weight", "norm.bias", "last.bias"]


ADAMW = {"_target_": "torch.optim.AdamW", "_partial_": True}


@needs.muon
def test_weight_decay_of_two_optimizers_may_leave_biases_and_norms_alone() -> None:
    both = built(Net(), "Muon", weight_decay_on="matrices", fallback=ADAMW)
    assert [group["weight_decay"] for group in both.param_groups] == [0.1, 0.0]


SPARSE = {"_target_": "torch.optim.SparseAdam", "_partial_": True}
RPROP = {"_target_": "torch.optim.Rprop", "_partial_": True}


@pytest.mark.parametrize(
    ("name", "node", "told"),
    [
        ("AdamW", {"weight_decay_on": "weights"}, "optimizer.weight_decay_on='weights': must be all or matrices."),
        ("Rprop", {"weight_decay_on": "matrices"}, "optimizer.weight_decay_on=matrices: Rprop has no weight_decay."),
        ("LBFGS", {"weight_decay_on": "matrices"}, "optimizer.weight_decay_on=matrices: LBFGS has no weight_decay."),
        (
            "AdamW",
            {"fallback": ADAMW},
            "optimizer.fallback: AdamW takes every parameter, so none is left for a fallback.",
        ),
        (
            "SparseAdam",
            {"fallback": {**ADAMW, "lrr": 1}},
            "optimizer.fallback.lrr: AdamW has no argument 'lrr'. Did you mean lr",
        ),
        ("SparseAdam", {"fallback": {"_target_": "os.system"}}, "optimizer.fallback._target_: 'os.system' is not"),
        pytest.param("Muon", {}, "optimizer: Muon: Muon only supports 2D parameters", marks=needs.muon),
        (
            "SparseAdam",
            {"fallback": ADAMW},
            "optimizer: SparseAdam trains sparse gradients, and Net has none. A model with nn.Embedding or nn.EmbeddingBag(…, sparse=True) has some: model=embedding.",
        ),
        ("AdamW", {"lrr": 1}, "optimizer.lrr: AdamW has no argument 'lrr'."),
        pytest.param("Muon", {"lr": -1.0, "fallback": ADAMW}, "optimizer.lr=-1.0: ", marks=needs.muon),
        pytest.param(
            *("Muon", {"fallback": {**ADAMW, "lr": -1.0}}),
            "optimizer.fallback.lr=-1.0: AdamW: Invalid learning rate",
            marks=needs.muon,
        ),
        (
            "SparseAdam",
            {"weight_decay_on": "matrices", "fallback": RPROP},
            "optimizer.weight_decay_on=matrices: SparseAdam and Rprop has no weight_decay.",
        ),
    ],
)
def test_what_an_optimizer_cannot_do_is_said_at_once(name: str, node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(Net(), name, **node)
    assert str(error.value).startswith(told)


@needs.muon
def test_a_model_without_matrices_has_nothing_for_muon() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer: Muon trains matrices, and LayerNorm has none\. .*adamw\.$"):
        built(nn.LayerNorm(3), "Muon", fallback=ADAMW)


@needs.muon
def test_where_nothing_is_left_for_the_fallback_there_is_only_the_main_optimizer() -> None:
    assert type(built(nn.Linear(2, 2, bias=False), "Muon", fallback=ADAMW)) is optim.Muon


@needs.muon
def test_a_fallback_trains_what_the_main_optimizer_leaves() -> None:
    one = built(Net(), "Muon", fallback=ADAMW)
    assert isinstance(one, optimizers.Both)
    assert [type(part).__name__ for part in (one.main, one.fallback)] == ["Muon", "AdamW"]
    assert one.main.param_groups[0] is one.param_groups[0] and one.fallback.param_groups[0] is one.param_groups[1]
    assert one.main.state is one.state is one.fallback.state
    optimizer_state.restore(one, loaded(one), where="DIR")
    assert one.main.param_groups[0] is one.param_groups[0] and one.fallback.param_groups[0] is one.param_groups[1]
    assert one.main.state is one.state is one.fallback.state


FALLBACKS = CLASSES - {"LBFGS", "Muon", "SparseAdam"}


@pytest.mark.parametrize("name", sorted(FALLBACKS))
@pytest.mark.parametrize(("main", "kind"), [pytest.param("Muon", Net, marks=needs.muon), ("SparseAdam", Bag)])
def test_any_other_optimizer_can_be_the_fallback_and_goes_on_to_the_same_bits(
    main: str, kind: Callable[[], nn.Module], name: str
) -> None:
    fallback = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 0.01}
    model, again = kind(), kind()
    one, other = built(model, main, fallback=fallback), built(again, main, fallback=fallback)

    def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
        optimizer.zero_grad()
        sparse = model.table(torch.tensor([[1, 2], [3, 4]])).sum() if isinstance(model, Bag) else torch.zeros(())
        rest = [p.square().sum() for name, p in model.named_parameters() if name != "table.weight"]
        (sparse + sum(rest)).backward()
        optimizer.step()

    for _ in range(2):
        step(model, one)
    again.load_state_dict(model.state_dict())
    optimizer_state.restore(other, loaded(one), where="DIR")
    for group in (*one.param_groups, *other.param_groups):  # as a schedule would
        group["lr"] = 0.25
    step(model, one)
    step(again, other)
    assert [facts(p) for p in model.parameters()] == [facts(p) for p in again.parameters()]
    assert facts(loaded(one)) == facts(loaded(other))


def test_a_tied_embedding_has_no_sparse_gradients() -> None:
    bag = Bag()
    assert optimizers.sparse(bag) == ["table.weight"]
    bag.head = nn.Linear(3, 40, bias=False)
    bag.head.weight = bag.table.weight
    assert optimizers.sparse(bag) == []


def test_gradients_are_sparse_where_the_table_says_so() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(2, 2, sparse=True), "b": nn.Embedding(2, 2), "c": nn.EmbeddingBag(2, 2)})
    assert optimizers.sparse(model) == ["a.weight"]


def test_what_torch_checks_of_sparse_tensors_stays_as_somebody_set_it() -> None:
    bag = Bag()
    with torch.sparse.check_sparse_tensor_invariants(True):
        built(bag, "SGD")
        assert torch.sparse.check_sparse_tensor_invariants.is_enabled()


@needs.muon
def test_two_optimizers_evaluate_a_closure_once() -> None:
    model = Net()
    one = built(model, "Muon", fallback=ADAMW)
    before, calls = copy.deepcopy(model.state_dict()), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss: Tensor = model(torch.ones(1, 6)).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = one.step(closure)
    assert calls == [True] and isinstance(loss, Tensor) and one.step() is None
    assert not any(torch.equal(before[name], now) for name, now in model.state_dict().items() if "last" in name)


@needs.muon
def test_schedules_see_of_two_optimizers_what_both_have() -> None:
    one = built(Net(), "Muon", fallback=ADAMW)
    assert {"lr", "weight_decay", "eps"} <= set(one.defaults) and not {"momentum", "betas"} & set(one.defaults)


def test_weight_decay_goes_to_whatever_has_it() -> None:
    matrices = {"weight_decay_on": "matrices"}
    table, rest = built(Bag(), "SparseAdam", fallback=ADAMW, **matrices).param_groups
    assert "weight_decay" not in table and (rest["param_names"], rest["weight_decay"]) == (["bias"], 0.0)
    if needs.HAS_MUON:
        _, rest = built(Net(), "Muon", fallback=RPROP, **matrices).param_groups
        assert "weight_decay" not in rest
    for model, names in ((nn.LayerNorm(2), ["weight", "bias"]), (nn.Conv2d(1, 1, 1, bias=False), ["weight"])):
        (group,) = built(model, "AdamW", **matrices).param_groups
        assert (group["param_names"], group["weight_decay"] > 0) == (names, isinstance(model, nn.Conv2d))


@pytest.mark.parametrize("name", ["nn.Identity", "nn.Linear", "optim.lr_scheduler.StepLR"])
@pytest.mark.parametrize("key", ["optimizer", "optimizer.fallback"])
def test_what_is_no_optimizer_is_refused(key: str, name: str) -> None:
    other = {"_target_": f"torch.{name}", "_partial_": True}
    node = other if key == "optimizer" else {**SPARSE, "fallback": other}
    model = Bag()
    with pytest.raises(ConfigError, match=rf"^{key}: {name.rpartition('.')[2]} is not a torch\.optim\.Optimizer\.$"):
        optimizers.build(node, model, make=partial(instantiate.make, source=Path(__file__).parents[2] / "src"))


@needs.muon
def test_muon_takes_matrices_and_a_class_made_of_it_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2))
    for kind in (optim.Muon, type("Mine", (optim.Muon,), {})):
        assert optimizers._taken(kind, model, "optimizer") == {"1.weight"}
    assert optimizers._taken(type("Mine", (optim.SparseAdam,), {}), Bag(), "optimizer") == {"table.weight"}


STEPS: list[tuple[Callable[..., None], bool]] = [
    (lambda self: None, False),
    (lambda self, closure: None, True),
    (lambda self, closure, /: None, True),
    (lambda self, closure=None: None, False),
    (lambda self, *closures: None, False),
    (lambda self, *, closure: None, False),
]


@pytest.mark.parametrize(("step", "needs"), STEPS)
def test_a_step_searches_that_cannot_be_called_without_a_closure(step: Callable[..., None], needs: bool) -> None:
    one = type("Mine", (optim.SGD,), {})([("a", nn.Parameter(torch.ones(2)))])
    type(one).step = step  # type: ignore[method-assign,assignment]
    assert optimizers.searches(one) is needs


def test_only_what_needs_a_closure_searches() -> None:
    kinds = [name for name in dir(optim) if isinstance(getattr(optim, name), type) and name != "Optimizer"]
    searching = []
    for name in kinds:
        one = (
            optim.Muon([nn.Parameter(torch.ones(2, 2))])
            if name == "Muon"
            else getattr(optim, name)(nn.Linear(1, 1).parameters())
        )
        optim.lr_scheduler.StepLR(one, 1)  # wraps its step
        searching += [name] if optimizers.searches(one) else []
    assert searching == ["LBFGS"]
