"""A config that lacks a group, a key or a class is refused in one line that names it, or trains with a default."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from tools.processes import REPOSITORY

from savepoint import trust
from savepoint.config import resolve
from savepoint.errors import ConfigError
from savepoint.training import build
from savepoint.trust.validation import GROUPS

SOURCE, CONF = REPOSITORY / "src", REPOSITORY / "conf"
BASES = {
    "the defaults": (),
    "another of everything": ("optimizer=sparse_adam", "model=embedding", "scheduler=linear"),
    "a sampler": (
        "data.sampler={_target_: project.data.balanced.Balanced}",
        "scheduler=step",
        "amp=bf16",
        "tracker=none",
    ),
}
# Keys that nothing has a default for. Every other key of these configs may go.
NEEDED = {
    *("seed", "data.batch_size", "data.dataset._target_", "data.sampler._target_", "tracker.kind"),
    *("model._target_", "task._target_", "optimizer._target_", "optimizer._partial_", "optimizer.fallback"),
    *("optimizer.fallback._target_", "optimizer.fallback._partial_", "scheduler._target_", "scheduler._partial_"),
    *("scheduler.step_size", "data.dataset"),
}


def paths(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else key
        yield path
        if isinstance(value, dict):
            yield from paths(value, path)


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", list(overrides)))


def refusal(config: dict[str, Any]) -> str | None:
    """What a person is told who starts or resumes a run with this config; None if it can be built."""
    try:
        build.assemble(config, trust.check_config(config, source=SOURCE), source=SOURCE)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("base", BASES)
def test_a_key_that_was_taken_out_is_named_or_has_a_default(base: str) -> None:
    """Hydra's `~key` does that, with `=value` or without; so does somebody who edits a stored config."""
    whole = composed(*BASES[base])
    for path in paths(whole):
        config = copy.deepcopy(whole)
        *parents, key = path.split(".")
        del functools.reduce(lambda node, parent: node[parent], parents, config)[key]
        refused = refusal(config)
        if path in GROUPS or path in NEEDED:
            assert refused is not None and "\n" not in refused, path
            assert key in refused and refused.startswith(parents[0] if parents else key), f"{path}: {refused}"
        else:
            assert refused is None, f"{path}: {refused}"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", [None, 3, "none", []], ids=repr)
def test_a_stored_config_whose_group_is_no_group_is_refused(group: str, value: Any) -> None:
    config = composed()
    config[group] = value
    with pytest.raises(ConfigError, match=rf"^{group}: the config needs this group"):
        trust.check_config(config, source=SOURCE)


def test_all_missing_groups_are_told_together() -> None:
    with pytest.raises(ConfigError) as raised:
        trust.check_config({"seed": 0}, source=SOURCE)
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == list(GROUPS)


@pytest.mark.parametrize("fallback", ["adamw", {}, {"_target_": None}, {"_target_": "torch.optim.AdamW"}], ids=repr)
def test_a_fallback_that_is_no_optimizer_to_be_built_later_is_refused(fallback: Any) -> None:
    config = composed("optimizer=sparse_adam")
    config["optimizer"]["fallback"] = fallback
    with pytest.raises(ConfigError, match=r"^optimizer\.fallback(\._partial_)?: "):
        trust.check_config(config, source=SOURCE)


# Optimizers and schedulers with names


def named(optimizers: Any, schedulers: Any = None) -> dict[str, Any]:
    config = composed("tracker=none", "scheduler=step")
    return config | {"optimizer": optimizers, "scheduler": schedulers or config["scheduler"]}


def adam(**own: Any) -> dict[str, Any]:
    return {"_target_": "torch.optim.Adam", "_partial_": True, **own}


STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1, "interval": "epoch"}


def test_each_name_has_the_settings_of_its_schedule() -> None:
    optimizers = {"a": adam(parameters="a.*"), "b": adam(parameters="b.*")}
    shared = trust.check_config(named(optimizers, STEP | {"interval": "step"}), source=SOURCE)
    assert [shared.schedule(name).interval for name in ("a", "b")] == ["step", "step"]
    own = trust.check_config(named(optimizers, {"a": STEP, "b": STEP | {"interval": "step"}}), source=SOURCE)
    assert [own.schedule(name).interval for name in ("a", "b")] == ["epoch", "step"]


@pytest.mark.parametrize(
    ("optimizers", "schedulers", "told"),
    [
        ({"a": {"lr": 0.1}}, None, r"^optimizer\.a: needs a _target_, the class to build, for example torch\.optim\.AdamW\."),
        ({"a": {"_target_": "torch.optim.Adam"}}, None, r"^optimizer\.a\._partial_: must be true"),
        ({"a": adam(fallback={})}, None, r"^optimizer\.a\.fallback: needs a _target_"),
        ({"a/b": adam()}, None, r"a/b.*: a name has letters, digits and _ only, and begins with a letter\."),
        ({"a": adam()}, {"b": STEP}, r"^scheduler\.b: there is no optimizer of that name\. The config's optimizers: a\."),
        (adam(), {"b": STEP}, r"^scheduler\.b: there is no optimizer of that name\. The config's optimizers: without a name"),
        ({"a": adam()}, {"a": STEP | {"interval": "day"}}, r"^scheduler\.a\.interval='day': must be one of epoch, step\."),
        ({"a": adam()}, {"_target_": None, "a": STEP}, r"^scheduler\.a: would have no effect beside scheduler\._target_=null"),
        ({"a": adam(), "b": None}, None, r"^optimizer: needs a _target_"),
        ({}, None, r"^optimizer: needs a _target_"),
    ],
)  # fmt: skip
def test_names_that_are_wrong_are_refused_in_one_line(optimizers: Any, schedulers: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        trust.check_config(named(optimizers, schedulers), source=SOURCE)
    assert "\n" not in str(error.value)
