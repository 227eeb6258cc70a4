"""Refuse combinations of optimizer, schedule and precision that torch refuses, or accepts and gets wrong.

Each is refused at the start, by name and with what to do. torch would say so steps or epochs later, or never.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from savepoint.config import Settings
from savepoint.errors import ConfigError
from savepoint.training import optimizers, schedules, sharding

_SCHEDULERS = "torch.optim.lr_scheduler."
_CHAINS = (f"{_SCHEDULERS}SequentialLR", f"{_SCHEDULERS}ChainedScheduler")
# Arguments that replace the rate of every group, whatever its own is.
_RATES = ("max_lr", "base_lr", "swa_lr")


@dataclass(frozen=True)
class Setup:
    """The combination to check.

    node: the scheduler's config, because torch refuses some schedulers when it builds them. path: its place.
    """

    node: dict[str, Any]
    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    path: str = "scheduler"

    @property
    def parts(self) -> list[Optimizer]:
        """The optimizer, or the two optimizers that it consists of."""
        both = self.optimizer
        return [both.main, both.fallback] if isinstance(both, optimizers.Both) else [both]

    @property
    def groups(self) -> list[tuple[str, dict[str, Any]]]:
        """The parameter groups, each with the name of its optimizer."""
        return [(type(part).__name__, group) for part in self.parts for group in part.param_groups]

    @property
    def schedules(self) -> list[tuple[str, dict[str, Any], str]]:
        """The schedulers of the config, each with its path, its node and its class."""
        walked = schedules.walk(self.node, self.path)
        return [(path, node, str(node.get("_target_"))) for path, node in walked if node.get("_target_") is not None]


def check(
    node: dict[str, Any],
    settings: Settings,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    name: str = "",
    path: str = "scheduler",
) -> None:
    """Check every rule for an optimizer and its scheduler. Raises: ConfigError with one line for each broken rule.

    name: the optimizer's. path: the place of `node`, the scheduler, in the config.
    """
    setup = Setup(node, settings, model, optimizer, device, path)
    faults = [fault for rule in RULES for fault in rule(setup)]
    if name:
        faults = [re.sub(r"^optimizer(?=[.:])", f"optimizer.{name}", fault) for fault in faults]
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _closure_with_scaler(setup: Setup) -> Iterator[str]:
    for part in setup.parts:
        if optimizers.searches(part) and setup.settings.amp.dtype == "float16":
            name = type(part).__name__
            yield f"amp.dtype=float16: GradScaler cannot serve {name}, which steps by a closure. Use amp=bf16 or none."


def _closure_as_a_part(setup: Setup) -> Iterator[str]:
    for part in setup.parts:
        if optimizers.searches(part) and len(setup.parts) > 1:
            name = type(part).__name__
            yield f"optimizer.fallback: {name} has to train all parameters. Use adamw, or optimizer=lbfgs alone."


def _closure_with_strides(setup: Setup) -> Iterator[str]:
    """LBFGS flattens each gradient with `view`, which fails for channels_last."""
    if any(isinstance(part, torch.optim.LBFGS) for part in setup.parts):
        names = [name for name, parameter in setup.model.named_parameters() if not parameter.is_contiguous()]
        if names:
            yield f"optimizer: LBFGS takes contiguous parameters only, and {names[0]} is not. Use another optimizer."


def _scaled_halves(setup: Setup) -> Iterator[str]:
    halves = [name for name, parameter in setup.model.named_parameters() if parameter.dtype is torch.float16]
    if halves and setup.settings.amp.dtype == "float16":
        yield f"amp.dtype=float16: {halves[0]} is float16 already, and a GradScaler takes float32. Use amp=none."


def _cycled_momentum(setup: Setup) -> Iterator[str]:
    kinds = [{"betas", "momentum"} & set(group) for _, group in setup.groups]
    if set.intersection(*kinds):
        return
    names = " with ".join(type(part).__name__ for part in setup.parts)
    for path, node, target in setup.schedules:
        # Both cycle the momentum by default.
        if target in (f"{_SCHEDULERS}OneCycleLR", f"{_SCHEDULERS}CyclicLR") and node.get("cycle_momentum", True):
            yield f"{path}.cycle_momentum=true: {names} has nothing to cycle in every group. Set it to false."


def _one_rate_for_groups_of_several(setup: Setup) -> Iterator[str]:
    rates = [float(group["lr"]) for _, group in setup.groups]
    for path, node, _ in setup.schedules:
        for key in _RATES:
            value = node.get(key)
            if len(set(rates)) > 1 and isinstance(value, int | float):
                first = rates[0] or max(rates)
                one_each = ",".join(f"{value * rate / first:.6g}" for rate in rates)
                yield (
                    f"{path}.{key}={value}: this would become the learning rate of every group; now they have {rates}. "
                    f"Give one for each: {path}.{key}=[{one_each}]."
                )


def _plateau_inside(setup: Setup) -> Iterator[str]:
    for path, _, target in setup.schedules[1:]:
        if target == f"{_SCHEDULERS}ReduceLROnPlateau":
            yield f"{path}: ReduceLROnPlateau follows a metric, and its outer schedule does not. Use scheduler=plateau."


def _chain_that_begins_later(setup: Setup) -> Iterator[str]:
    """SequentialLR starts its second schedule by a method that SequentialLR and ChainedScheduler lack."""
    for path, node, target in setup.schedules:
        inner = node.get("schedulers") if target == _CHAINS[0] else None
        for index, each in enumerate(inner if isinstance(inner, list) else []):
            if index and isinstance(each, dict) and each.get("_target_") in _CHAINS:
                name = each["_target_"].removeprefix(_SCHEDULERS)
                yield (
                    f"{path}.schedulers[{index}]: SequentialLR can begin with a {name}, but not switch to one. "
                    "Write its schedulers and milestones into the outer one."
                )


def _sparse_gradients(setup: Setup) -> Iterator[str]:
    sparse = set(optimizers.sparse(setup.model))
    for part in setup.parts:
        for group in part.param_groups:
            names = set(group.get("param_names", []))
            if isinstance(part, torch.optim.SparseAdam):
                if names - sparse:
                    yield (
                        f"optimizer: SparseAdam takes sparse gradients only, and {sorted(names - sparse)[0]} has none. "
                        "Give it a fallback for the others, as conf/optimizer/sparse_adam.yaml does."
                    )
            elif names & sparse and (why := _refuses_sparse(part, group)) is not None:
                yield (
                    f"optimizer: {type(part).__name__}{why} takes no sparse gradients, and {sorted(names & sparse)[0]} "
                    "has them. Use optimizer=sparse_adam, or sparse=False in the model (model.sparse=false)."
                )


def _refuses_sparse(part: Optimizer, group: dict[str, Any]) -> str | None:
    """Return " with <option>" if an option rules out sparse gradients, "" if the class does, None if nothing does."""
    if isinstance(part, torch.optim.SGD | torch.optim.Adagrad):
        options = [key for key in ("weight_decay", "fused") if group.get(key)]
        return f" with {options[0]}" if options else None
    takes = not type(part).__module__.startswith("torch.") or isinstance(part, torch.optim.LBFGS)
    return None if takes else ""


def _clipped_sparse_gradients(setup: Setup) -> Iterator[str]:
    sparse = optimizers.sparse(setup.model)
    if sparse and setup.settings.trainer.clip_grad_norm is not None:
        yield f"trainer.clip_grad_norm: torch clips no sparse gradients, and {sparse[0]} has them. Set it to null."


def _parameters_in_parts(setup: Setup) -> Iterator[str]:
    """These look at a parameter as a whole, or change it in a way that torch does not know for parts of it."""
    whole = tuple(getattr(torch.optim, name) for name in WHOLE if hasattr(torch.optim, name))
    for part in setup.parts:
        if isinstance(part, whole) and sharding.wanted(setup.settings):
            name = type(part).__name__
            yield f"trainer.parallel=fsdp: {name} needs whole parameters. Use adamw, say, or trainer.parallel=ddp."


def _made_for_other_loops(setup: Setup) -> Iterator[str]:
    for name, group in setup.groups:
        if group.get("differentiable"):
            yield f"optimizer.differentiable=true: {name} would keep the graph of every step. Set it to false."
        if group.get("capturable") and setup.device.type == "cpu":
            yield f"optimizer.capturable=true: {name} can be captured on a GPU only. Set it to false."


def _limits_unchecked_by_torch(setup: Setup) -> Iterator[str]:
    """These values make a step of the optimizer raise an exception, at once or after many steps."""
    for part in setup.parts:
        for group in part.param_groups:
            for key, (allowed, expected) in LIMITS.get(type(part), {}).items():
                if not allowed(group[key]):
                    yield f"optimizer.{key}={group[key]}: {type(part).__name__} needs {expected}."


WHOLE = ("LBFGS", "Adafactor", "Muon", "Rprop")
LIMITS: dict[type, dict[str, tuple[Callable[[Any], bool], str]]] = {
    torch.optim.LBFGS: {
        "lr": (lambda value: value > 0, "a rate greater than 0"),
        "max_eval": (lambda value: value >= 1, "at least 1 evaluation"),
        "history_size": (lambda value: value >= 1, "a history of at least 1 update"),
        "line_search_fn": (lambda value: value in (None, "strong_wolfe"), "strong_wolfe, or null for no line search"),
    },
    torch.optim.ASGD: {"alpha": (lambda value: abs(value) <= 100, "a power between -100 and 100")},
}


RULES: tuple[Callable[[Setup], Iterator[str]], ...] = (
    _closure_with_scaler,
    _closure_as_a_part,
    _closure_with_strides,
    _scaled_halves,
    _cycled_momentum,
    _one_rate_for_groups_of_several,
    _plateau_inside,
    _chain_that_begins_later,
    _sparse_gradients,
    _clipped_sparse_gradients,
    _parameters_in_parts,
    _made_for_other_loops,
    _limits_unchecked_by_torch,
)
