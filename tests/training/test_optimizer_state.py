"""An optimizer's state comes back to the last bit, and a state of other parameters is refused."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from tools.optimizing import facts, loaded, shared_rate
from torch import nn, optim

from savepoint.errors import CheckpointError
from savepoint.training import optimizer_state


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def named(*names: str, kind: Any = optim.SGD, **options: Any) -> optim.Optimizer:
    one: optim.Optimizer = kind([(name, nn.Parameter(torch.ones(2))) for name in names], **options)
    return one


@pytest.mark.parametrize(
    ("here", "there", "told"),
    [
        ("ab", "ba", "in another place: b, a."),
        ("abcd", "abdc", "in another place: d, c."),
        ("axc", "abc", "only in the checkpoint: b; only in the config: x."),
        ("ab", "abc", "only in the checkpoint: c."),
        ("abc", "ab", "only in the config: c."),
        ("abc", "bc", "only in the config: a."),
        ("bac", "abcd", "only in the checkpoint: d; in another place: a, b."),
        ("bacd", "abc", "only in the config: d; in another place: a, b."),
        ("g", "abcdef", "only in the checkpoint: a, b, c, d, e, f; only in the config: g."),
        ("", "abcdefghij", "only in the checkpoint: a, b, c, d, e, f and 4 more; only in the config: z."),
    ],
)
def test_parameters_are_matched_by_name(here: str, there: str, told: str) -> None:
    one = named(*(here or "z"))
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(CheckpointError) as error:
        optimizer_state.restore(one, loaded(named(*there)), where="DIR")
    assert str(error.value) == f"DIR: its optimizer does not have the parameters that the config builds; {told}"
    assert one.state_dict() == before


def test_a_parameter_in_another_group_is_named() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "abc"}
    one = optim.SGD([{"params": [(n, parameters[n]) for n in names]} for names in ("a", "bc")])
    other = optim.SGD([{"params": [(n, parameters[n]) for n in names]} for names in ("ab", "c")])
    with pytest.raises(CheckpointError, match=r"in another place: b, c\.$"):
        optimizer_state.restore(one, loaded(other), where="DIR")


def grouped(*groups: str) -> optim.Optimizer:
    """A letter is a parameter's name; a dot is a parameter without one."""
    fresh = [[(name, nn.Parameter(torch.ones(2))) for name in names] for names in groups]
    return optim.SGD([{"params": [(n, p) if n != "." else p for n, p in group]} for group in fresh])


@pytest.mark.parametrize(
    ("here", "there", "told"),
    [
        ([".."], ["."], "groups of [1] parameters in the checkpoint, of [2] in the config."),
        ([".."], [".", "."], "groups of [1, 1] parameters in the checkpoint, of [2] in the config."),
        (["a"], ["."], "only in the config: a."),
        (["."], ["a"], "only in the checkpoint: a."),
        (["ab", "cd"], ["cb", "ad"], "in another place: c, a."),
    ],
)
def test_groups_are_compared_by_names_and_sizes(here: list[str], there: list[str], told: str) -> None:
    optimizer_state.restore(grouped(*here), loaded(grouped(*here)), where="DIR")
    with pytest.raises(CheckpointError) as error:
        optimizer_state.restore(grouped(*here), loaded(grouped(*there)), where="DIR")
    assert str(error.value).endswith(f"; {told}")


def test_a_rate_goes_where_this_runs_is_and_stays_one() -> None:
    one, other = shared_rate(model()), shared_rate(model())
    for group in other.param_groups:
        group["lr"] = torch.tensor(0.5, device="meta")
    optimizer_state.restore(other, loaded(one), where="DIR")
    first, second = (group["lr"] for group in other.param_groups)
    assert first is second and first.device.type == "meta"
    other.param_groups[0]["lr"] = torch.tensor(0.5)
    optimizer_state.restore(other, loaded(one), where="DIR")
    assert [group["lr"].device.type for group in other.param_groups] == ["cpu", "meta"]


def test_a_rate_is_what_it_was_a_tensor_or_none() -> None:
    rates: list[Any] = [0.5, torch.tensor(0.25)]
    for here, there in (rates, rates[::-1]):
        one, other = (named("a", kind=optim.Adam, lr=rate) for rate in (there, here))
        one.param_groups[0]["mine"] = torch.ones(1)
        optimizer_state.restore(other, loaded(one), where="DIR")
        assert facts(other.param_groups[0]["lr"]) == facts(there)
        assert facts(other.param_groups[0]["mine"]) == facts(torch.ones(1))


def test_state_goes_where_the_parameter_is_and_stays_shared() -> None:
    one, other = named("a"), optim.SGD([("a", nn.Parameter(torch.ones(2, device="meta")))])
    shared = torch.ones(2)
    one.state[one.param_groups[0]["params"][0]] = {"list": [shared], "tuple": (shared,), "dict": {"in": shared}}
    optimizer_state.restore(other, loaded(one), where="DIR")
    entry = other.state[other.param_groups[0]["params"][0]]
    assert entry["list"][0] is entry["tuple"][0] is entry["dict"]["in"] and entry["list"][0].device.type == "meta"


class Renewed(optim.SGD):
    """Its state once was a number, and had less in it, as that of torch's own was and had."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for entry in self.state.values():
            if isinstance(entry, dict) and "step" in entry:
                entry |= {"step": torch.tensor(float(entry["step"])), "new": 1}


def test_state_of_an_older_torch_becomes_what_the_newer_one_makes_of_it() -> None:
    one, other = (named("a", kind=Renewed) for _ in range(2))
    saved = loaded(one)
    saved["state"] = {0: {"step": 3}}
    optimizer_state.restore(other, saved, where="DIR")
    assert facts(other.state_dict()["state"]) == facts({0: {"step": torch.tensor(3.0), "new": 1}})


def test_state_that_belongs_to_no_parameter_stays() -> None:
    one, other = (named("a") for _ in range(2))
    one.state["mine"] = {"count": 3}  # type: ignore[index]
    saved = loaded(one) | {"state": {"mine": {"count": 3}, 7: {"count": 4}}}
    optimizer_state.restore(other, saved, where="DIR")
    assert dict(other.state) == {"mine": {"count": 3}, 7: {"count": 4}}


def test_a_shared_rate_stays_one_tensor_and_not_the_checkpoints() -> None:
    one, other = (shared_rate(model()) for _ in range(2))
    saved = loaded(one)
    optimizer_state.restore(other, saved, where="DIR")
    first, second = (group["lr"] for group in other.param_groups)
    assert first is second
    first.fill_(7.0)
    assert saved["param_groups"][0]["lr"].item() == pytest.approx(0.01)
    assert other.param_groups[0]["mine"] == {1: ("a", None), "ids": [3, 1]}


def test_state_that_torch_would_turn_into_something_else_stays() -> None:
    one, other = (named("a", momentum=0.9, lr=0.1) for _ in range(2))
    parameter = one.param_groups[0]["params"][0]
    shared = torch.ones(2, dtype=torch.float64)
    odd = {"text": "t", "none": None, "pair": (1, 2.0), "twice": [shared, shared], "int": torch.tensor(3), "b": True,
           "ordered": OrderedDict(b=1, a=torch.ones(1, dtype=torch.float64))}  # fmt: skip
    one.state[parameter] = odd
    saved = loaded(one)
    optimizer_state.restore(other, saved, where="DIR")
    entry = other.state[other.param_groups[0]["params"][0]]
    assert facts(entry) == facts(odd)
    assert entry["twice"][0] is entry["twice"][1]
    entry["twice"][0].zero_()
    assert saved["state"][0]["twice"][0].sum() == 2
