"""`trainer.parallel=fsdp`: each rank holds a part of the model, and the run is the same run in every other way."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tools import ranked
from tools.moments import Strike
from tools.processes import Ended
from tools.workshop import Workshop
from torch import nn

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.config import read_settings
from savepoint.errors import ConfigError
from savepoint.training import sharding

QUICK = (
    *(
        "tracker=none",
        "trainer.threads=1",
        "trainer.timeout_seconds=60",
        "trainer.max_epochs=2",
        "data.limit_batches=3",
    ),
    *("checkpoint.keep_last=9", "trainer.log_every_n_steps=1", "fsdp.min_parameters=100"),
    "model.hidden=[12]",
)
FSDP = "trainer.parallel=fsdp"
# Batches that three ranks cannot divide evenly, buffers, an average, clipping, windows, dropout.
MANIFOLD = (
    *("data.batch_size=16", "model.batch_norm=true", "trainer.ema_decay=0.9", "trainer.clip_grad_norm=0.5"),
    *("trainer.accumulate=2", "checkpoint.every_n_steps=1", "data.dataset.augment=true"),
)
Train = Callable[..., list[Ended]]


@pytest.fixture
def train(the_workshop: Workshop, tmp_path: Path) -> Train:
    def run(count: int, directory: Path, *arguments: str, strikes: dict[int, Strike] | None = None) -> list[Ended]:
        where = (f"hydra.run.dir={directory}", *QUICK)
        return ranked.run(the_workshop.zygote, tmp_path, count, "train.py", *where, *arguments, strikes=strikes)

    return run


@pytest.fixture
def resume(the_workshop: Workshop, tmp_path: Path) -> Train:
    def run(count: int, directory: Path, *arguments: str) -> list[Ended]:
        return ranked.run(the_workshop.zygote, tmp_path, count, "resume.py", f"run={directory}", *arguments)

    return run


@pytest.fixture
def fork(the_workshop: Workshop, tmp_path: Path) -> Train:
    """Fork a checkpoint, `run@step`: the first checkpoint of the fork is what it has taken over."""

    def run(count: int, query: Path, directory: Path, *arguments: str) -> list[Ended]:
        where = (f"run={query}", f"hydra.run.dir={directory}", *arguments)
        return ranked.run(the_workshop.zygote, tmp_path, count, "resume.py", *where)

    return run


def succeeded(ended: list[Ended]) -> str:
    assert [each.status for each in ended] == [0] * len(ended), "\n".join(each.output for each in ended)
    return ended[0].output


def newest(directory: Path) -> checkpoint.Checkpoint:
    loaded, damaged = checkpoint.latest(directory / "checkpoints")
    assert loaded is not None and not damaged
    return loaded


def test_parts_train_as_wholes_do(train: Train, tmp_path: Path) -> None:
    """Two addends have one sum, and 16 samples are divided evenly: so even the bits are those of `ddp`."""
    found = []
    for how in ("ddp", "fsdp"):
        options = ("data.batch_size=16", "trainer.ema_decay=0.9", "trainer.max_epochs=2")
        succeeded(train(2, tmp_path / how, *options, f"trainer.parallel={how}"))
        found.append(newest(tmp_path / how))
    assert found[0].model.keys() == found[1].model.keys()
    for name, value in found[0].model.items():
        assert torch.equal(value, found[1].model[name]), name
        averages = [each.state["averaged"][f"module.{name}"] for each in found]
        assert torch.equal(*averages) and not torch.equal(averages[0], value), name
    one, other = (each.state["optimizer"]["state"] for each in found)
    assert torch.equal(one[0]["exp_avg"], other[0]["exp_avg"]) and one[0]["exp_avg"].shape == (12, 64)


def test_unequal_shares_of_a_batch_have_their_weight(train: Train, tmp_path: Path) -> None:
    """14 samples among 3 ranks, in windows of 2 batches: the gradient is the mean over all, as one process has it."""
    uneven = ("data.batch_size=14", "trainer.accumulate=2", "model.dropout=0.0", "optimizer=sgd")
    succeeded(train(1, tmp_path / "one", *uneven))
    succeeded(train(3, tmp_path / "three", *uneven, FSDP))
    one, three = newest(tmp_path / "one").model, newest(tmp_path / "three").model
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=1e-5, atol=1e-6)


def test_a_rank_without_a_sample_takes_part(train: Train, tmp_path: Path) -> None:
    """One sample in each batch: two of three ranks have placeholders, in training and in validation."""
    alone = ("data.batch_size=1", "model.dropout=0.0")
    succeeded(train(1, tmp_path / "one", *alone))
    succeeded(train(3, tmp_path / "three", *alone, FSDP))
    one, three = newest(tmp_path / "one"), newest(tmp_path / "three")
    for name in ("train/loss", "val/loss"):
        assert three.state["metrics"][name] == pytest.approx(one.state["metrics"][name], rel=1e-4)


def differences(one: Path, other: Path) -> list[str]:
    return diff.diff_runs(runs.read(one), runs.read(other))


@pytest.mark.parametrize("struck", [(2,), (0, 1, 2)])
def test_a_killed_run_goes_on_to_the_same_bits(
    struck: tuple[int, ...], train: Train, resume: Train, tmp_path: Path
) -> None:
    succeeded(train(3, tmp_path / "whole", *MANIFOLD, FSDP))
    strike = Strike(3, of="step.update")
    ended = train(3, tmp_path / "killed", *MANIFOLD, FSDP, strikes=dict.fromkeys(struck, strike))
    assert all(ended[rank].status == -9 for rank in struck)
    output = succeeded(resume(3, tmp_path / "killed"))
    assert "resumed from" in output and "may differ" not in output
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.long
def test_a_compiled_model_in_parts_is_resumed_to_the_same_bits(train: Train, resume: Train, tmp_path: Path) -> None:
    succeeded(train(3, tmp_path / "whole", *MANIFOLD, FSDP, "trainer.compile=true"))
    train(3, tmp_path / "killed", *MANIFOLD, FSDP, "trainer.compile=true", strikes={1: Strike(3, of="step.update")})
    succeeded(resume(3, tmp_path / "killed"))
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


WAYS = [(1, "null"), (2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp"), (4, "fsdp")]
# From each way to each other and back.
EACH = [
    way
    for at, one in enumerate(WAYS[:-1])
    for way in (*(each for other in WAYS[at + 1 :] for each in (one, other)), one)
]
FEW = [(2, "ddp"), (3, "fsdp"), (2, "fsdp"), (4, "fsdp"), (3, "ddp"), (1, "fsdp")]


def test_the_long_walk_goes_from_each_way_to_each_other() -> None:
    assert {*itertools.permutations(WAYS, 2)} <= {*itertools.pairwise(EACH)}


@pytest.mark.parametrize("ways", [FEW, pytest.param(EACH[1:], marks=pytest.mark.long)], ids=["few", "each to each"])
def test_a_run_moves_among_processes_with_every_bit(
    ways: list[tuple[int, str]], train: Train, fork: Train, tmp_path: Path
) -> None:
    """Each way to train takes over weights, moments, average and position from another, and saves what it took."""
    succeeded(train(1, tmp_path / "0", *MANIFOLD))
    for number, (count, how) in enumerate(ways, 1):
        directory = tmp_path / f"{number}"
        output = succeeded(fork(count, tmp_path / f"{number - 1}@2", directory, f"trainer.parallel={how}"))
        assert output.count("bits may differ") == 1
        before, after = (checkpoint.select(tmp_path / f"{each}" / "checkpoints", "2", monitor=None, mode="min")
                         for each in (0, number))  # fmt: skip
        for key in ("epoch", "step", "batch", "samples", "metrics", "order"):
            assert before.state[key] == after.state[key]
        taken = [{"model": each.model} | {key: each.state[key] for key in ("optimizer", "averaged", "sums")}
                 for each in (before, after)]  # fmt: skip
        tensors, others = zip(*(checkpoint.split(each) for each in taken), strict=True)
        assert others[0] == others[1]
        for name, value in tensors[0].items():
            assert torch.equal(value, tensors[1][name]) and value.dtype == tensors[1][name].dtype, (how, name)


def test_a_stop_in_the_middle_of_an_evaluation_is_agreed_on(train: Train, resume: Train, tmp_path: Path) -> None:
    """A rank that left an evaluation alone would keep the others waiting, since each holds a part of the model."""
    many = ("data.batch_size=2", "data.limit_batches=20")
    strike = Strike(5, "term", of="task.add_to")
    ended = train(2, tmp_path / "run", *many, FSDP, "trainer.evaluate_first=true", strikes={1: strike})
    assert ended[0].status == 143, ended[0].output
    succeeded(train(2, tmp_path / "whole", *many, FSDP, "trainer.evaluate_first=true"))
    succeeded(resume(2, tmp_path / "run"))
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_test_split_is_evaluated_by_rank_0_alone(train: Train, tmp_path: Path) -> None:
    test = ("trainer.test=true", "data.dataset.test_fraction=0.2")
    assert "test epoch_0002_step_00000006: loss" in succeeded(train(2, tmp_path / "run", FSDP, *test))


@pytest.mark.parametrize(
    "options, words",
    [
        (("optimizer=rprop",), "Rprop needs whole parameters. Use adamw, say, or trainer.parallel=ddp."),
        (
            ("fsdp.checkpoint_activations=true", "model.batch_norm=true"),
            "the running statistics of hidden.0.norm would be updated twice",
        ),
        (("fsdp.classes=[Blok]",), "fsdp.classes: the model has no Blok. It has: Linear, Sequential."),
        (
            ("fsdp.cpu_offload=true", "trainer.device=cpu"),
            "fsdp.cpu_offload=true: the model is in host memory already.",
        ),
        (("tracker=mlflow", "tracker.register_as=digits"), "so tracker.register_as=digits has no file to register."),
        (("fsdp.param_dtype=bfloat16", "amp=fp16"), "fsdp.param_dtype=bfloat16: amp computes in float16."),
    ],
)
def test_what_cannot_be_cut_is_refused_before_the_run_begins(
    options: tuple[str, ...], words: str, train: Train, tmp_path: Path
) -> None:
    ended = train(2, tmp_path / "run", FSDP, *options)
    assert ended[0].status == 2 and words in ended[0].output
    assert not (tmp_path / "run" / "run.json").exists()


def settings_with(**fsdp: object):
    found, faults = read_settings({"seed": 0, "fsdp": fsdp, "data": {"batch_size": 1}, "tracker": {"kind": "none"}})
    assert found is not None, faults
    return found


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.ends = nn.Sequential(nn.Linear(8, 50, bias=False))
        self.ends[0].weight = self.embedding.weight


def test_units_that_stay_whole_until_the_backward_pass_change_nothing(train: Train, tmp_path: Path) -> None:
    """An evaluation has no backward pass: neither the model nor its average may stay whole after it."""
    average = ("trainer.ema_decay=0.9", "trainer.evaluate_every_n_steps=1", "trainer.figures_every_n_epochs=1", FSDP)
    succeeded(train(2, tmp_path / "cut", *average))
    succeeded(train(2, tmp_path / "whole", *average, "fsdp.reshard_after_forward=false"))
    assert differences(tmp_path / "cut", tmp_path / "whole") == []


LOW = ("fsdp.param_dtype=bfloat16", "checkpoint.every_n_steps=1", "trainer.max_epochs=1")


@pytest.mark.parametrize(
    "more",
    [
        ("amp=bf16", "model.batch_norm=true"),
        ("fsdp.reduce_dtype=float32", "model.batch_norm=true"),
        ("fsdp.reduce_dtype=float32", "fsdp.checkpoint_activations=true"),
    ],
)
def test_a_low_precision_of_computing_keeps_statistics_weights_and_loss_in_float32(
    more: tuple[str, ...], train: Train, resume: Train, tmp_path: Path
) -> None:
    succeeded(train(2, tmp_path / "whole", *LOW, *more, FSDP))
    train(2, tmp_path / "killed", *LOW, *more, FSDP, strikes={1: Strike(3, of="step.update")})
    succeeded(resume(2, tmp_path / "killed"))
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    saved = newest(tmp_path / "whole")
    assert {each.dtype for each in saved.model.values()} <= {torch.float32, torch.int64}
    succeeded(train(2, tmp_path / "full", *LOW, *more, FSDP, "fsdp.param_dtype=null", "amp=none"))
    full = newest(tmp_path / "full").state["metrics"]["train/loss"]
    assert saved.state["metrics"]["train/loss"] == pytest.approx(full, rel=0.05)
    assert saved.state["metrics"]["train/loss"] != full, "nothing was computed in it"


def test_units_are_chosen_by_class_or_by_size() -> None:
    model = Tied()
    assert sharding.units(model, settings_with(min_parameters=72)) == [*reversed(model.blocks)]
    assert sharding.units(model, settings_with(min_parameters=73)) == []  # not the ends, which share a matrix
    assert sharding.units(model.blocks, settings_with(classes="Linear")) == [each[0] for each in reversed(model.blocks)]
    with pytest.raises(
        ConfigError, match=r"Sequential holds embedding\.weight, which another part of the model shares"
    ):
        sharding.units(model, settings_with(classes=["Sequential"]))


def test_a_unit_that_thaws_has_the_precision_of_one_that_was_never_frozen() -> None:
    settings = settings_with(classes="Linear", param_dtype="bfloat16", reduce_dtype="bfloat16")
    model, batch = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    model[0].requires_grad_(False)
    with ranked.alone():
        sharding.cut(model, settings, torch.device("cpu"))
        team = sharding.ShardedTeam(model, model, batch_size=3)
        for frozen in (True, False):
            model[0].requires_grad_(not frozen)
            team.begin_epoch()
            model(batch).sum().backward()
        assert {each.grad.dtype for each in model.parameters()} == {torch.float32}


def test_a_model_that_cannot_be_cut_is_named_by_its_parameters() -> None:
    model = nn.Linear(4, 4)
    model.scale = nn.Parameter(torch.zeros(()))
    model.weight = nn.Parameter(torch.arange(16.0).reshape(4, 4).t())

    class Task:
        def update(self) -> None: ...

    with pytest.raises(ConfigError) as caught:
        sharding.check(model, Task(), settings_with(), torch.device("cpu"))
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == [
        "Task makes its updates itself, which only works with whole parameters. Use trainer.parallel=ddp.",
        "parameters without a dimension cannot be cut (give them the shape [1]): scale.",
        "parameters that are not contiguous cannot be cut: weight.",
    ]


LARGE = """
import torch
from torch.distributed.fsdp import FSDPModule
from project.models.mlp import Mlp


class Large(Mlp):
    \"\"\"A model that a device can only compute in parts.\"\"\"

    def forward(self, inputs):
        if not isinstance(self, FSDPModule):
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(inputs)
"""


def test_a_model_that_fits_no_single_device_trains_in_parts(
    train: Train, the_workshop: Workshop, tmp_path: Path
) -> None:
    module = the_workshop.root / "src" / "project" / "models" / "large.py"
    module.write_text(LARGE, encoding="utf-8")
    large = "model._target_=project.models.large.Large"
    assert "out of memory" in train(2, tmp_path / "ddp", large)[0].output
    succeeded(train(2, tmp_path / "fsdp", large, FSDP))
