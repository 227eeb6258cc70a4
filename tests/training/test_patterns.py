"""Parameters are chosen by patterns over their names: for optimizers with names, and for groups inside one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from savepoint.errors import ConfigError
from savepoint.training import optimizers, patterns
from savepoint.trust import instantiate

MAKE = partial(instantiate.make, source=Path(__file__).parents[2] / "src")


class Net(nn.Module):
    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)
        if frozen:
            self.backbone.requires_grad_(False)


def sgd(**own: Any) -> dict[str, Any]:
    return {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, **own}


def names(optimizer: torch.optim.Optimizer) -> list[list[str]]:
    return [group["param_names"] for group in optimizer.param_groups]


def test_each_optimizer_gets_what_its_patterns_match_in_the_models_order() -> None:
    group = {"body": sgd(parameters="backbone.*"), "rest": sgd(parameters=["head.bias", "head.weight"], lr=0.2)}
    built = optimizers.build_all(group, Net(), make=MAKE)
    assert names(built["body"]) == [["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"]]
    assert names(built["rest"]) == [["head.weight", "head.bias"]]
    assert [built[name].param_groups[0]["lr"] for name in ("body", "rest")] == [0.1, 0.2]


def test_what_is_frozen_as_the_model_is_built_may_be_left_to_none() -> None:
    built = optimizers.build_all({"head": sgd(parameters="head.*")}, Net(frozen=True), make=MAKE)
    assert names(built["head"]) == [["head.weight", "head.bias"]]


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern without a match": (
        {"a": sgd(parameters="bakbone.*"), "b": sgd(parameters="*")},
        r"^optimizer\.a\.parameters=bakbone\.\*: matches no parameter\. Did you mean backbone\.\*\?$",
    ),
    "nothing alike": (
        {"a": sgd(parameters="zzz")},
        r"matches no parameter\. There are: backbone\.0\.weight, .* head\.bias\.$",
    ),
    "a parameter in two": (
        {"a": sgd(parameters="*"), "b": sgd(parameters="head.*")},
        r"^optimizer: parameters of two optimizers: head\.weight \(a and b\), head\.bias \(a and b\)\.$",
    ),
    "a parameter in none": (
        {"a": sgd(parameters="head.*")},
        r"^optimizer: no optimizer has these parameters: backbone\.0\.weight, .*Let a pattern match them, or freeze",
    ),
    "no pattern": ({"a": sgd()}, r"^optimizer\.a\.parameters is not set\."),
    "no text": ({"a": sgd(parameters=[3])}, r"^optimizer\.a\.parameters=\[3\]: must be a pattern"),
    "an empty list": ({"a": sgd(parameters=[])}, r"must be a pattern"),
    "patterns without a name": (sgd(parameters="head.*"), r"^optimizer\.parameters: the only optimizer trains every"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_patterns_that_do_not_divide_the_parameters_are_refused_by_name(kind: str) -> None:
    group, told = NAMED[kind]
    with pytest.raises(ConfigError, match=told):
        optimizers.build_all(group, Net(), make=MAKE)


def test_groups_have_values_of_their_own_and_the_rest_comes_first() -> None:
    groups = [{"parameters": "backbone.0.*", "lr": 0.01}, {"parameters": "backbone.*", "lr": 0.02, "momentum": 0.5}]
    one = optimizers.build(sgd(groups=groups), Net(), make=MAKE)
    assert names(one) == [
        ["head.weight", "head.bias"],
        ["backbone.0.weight", "backbone.0.bias"],
        ["backbone.1.weight", "backbone.1.bias"],
    ]
    assert [(group["lr"], group["momentum"]) for group in one.param_groups] == [(0.1, 0), (0.01, 0), (0.02, 0.5)]


def test_groups_that_match_everything_leave_no_empty_one() -> None:
    one = optimizers.build(sgd(groups=[{"parameters": "*", "lr": 0.5}]), Net(), make=MAKE)
    assert [group["lr"] for group in one.param_groups] == [0.5]


def test_no_weight_decay_on_biases_and_norms_goes_with_groups() -> None:
    node = sgd(weight_decay=0.3, weight_decay_on="matrices", groups=[{"parameters": "head.*", "lr": 0.01}])
    one = optimizers.build(node, Net(), make=MAKE)
    assert names(one) == [
        ["backbone.0.weight"],
        ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias"],
        ["head.weight"],
        ["head.bias"],
    ]
    assert [(group["lr"], group["weight_decay"]) for group in one.param_groups] == [
        (0.1, 0.3),
        (0.1, 0.0),
        (0.01, 0.3),
        (0.01, 0.0),
    ]


GROUPS: dict[str, tuple[Any, str]] = {
    "a pattern without a match": (
        [{"parameters": "had.*"}],
        r"^optimizer\.groups\[0\]\.parameters=had\.\*: matches no",
    ),
    "no pattern": ([{"lr": 0.1}], r"^optimizer\.groups\[0\]\.parameters=None: must be a pattern"),
    "no group": (["head.*"], r"^optimizer\.groups\[0\]=head\.\*: must be a group"),
    "all of it taken": (
        [{"parameters": "*"}, {"parameters": "head.*"}],
        r"^optimizer\.groups\[1\]\.parameters=head\.\*: an earlier group has all that it matches\.$",
    ),
    "an unknown value": (
        [{"parameters": "head.*", "lrr": 0.1}],
        r"^optimizer\.groups\[0\]\.lrr: SGD has no argument 'lrr'\. Did you mean lr\?",
    ),
    "a value that torch refuses": (
        [{"parameters": "head.*", "lr": -1}],
        r"^optimizer\.groups\[0\]\.lr=-1: SGD: Invalid",
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_that_are_wrong_are_refused_by_name(kind: str) -> None:
    groups, told = GROUPS[kind]
    with pytest.raises(ConfigError, match=told):
        optimizers.build(sgd(groups=groups), Net(), make=MAKE)


def test_groups_and_a_fallback_exclude_each_other() -> None:
    node = sgd(groups=[{"parameters": "head.*"}], fallback=sgd())
    with pytest.raises(ConfigError, match=r"^optimizer\.groups: not with a fallback"):
        optimizers.build(node | {"_target_": "torch.optim.SparseAdam"}, Net(), make=MAKE)


def test_a_pattern_knows_dots_and_letters() -> None:
    assert patterns.match("h??d.*", ["head.weight", "heads.weight"], path="") == {"head.weight"}
    with pytest.raises(ConfigError):
        patterns.match("HEAD.*", ["head.weight"], path="")
