"""Adapt the optimizers of a checkpoint to a fork, each with its schedule and its scaler."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from savepoint.config import Difference, Settings, by_name
from savepoint.errors import ConfigError, short_list
from savepoint.training import optimization, optimizers, schedules
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.state import TrainState

# What schedules write into the groups of an optimizer.
_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
_CYCLED = ("momentum", "betas")  # what OneCycleLR and CyclicLR write too, if they cycle the momentum
# Schedules that replace the optimizer's own rate, and the keys that decide it in its place.
_OWNERS = {"OneCycleLR": "max_lr", "CyclicLR": "base_lr and max_lr"}

Node = dict[str, Any]


def adapt_optimizers(
    saved: Node, fresh: TrainState, settings: Settings, difference: Difference, notes: list[str], *, make: Any
) -> None:
    """Replace the entries of each optimizer by those that its fork begins with."""
    there = optimization.entries(saved)
    entries = {}
    for name, one in fresh.optimizers.items():
        part = _Part(name, one, there.get(name), settings, difference)
        entries[name] = part.adapt(fresh.model, saved, notes, make=make)
    if gone := sorted(there.keys() - entries.keys() - {""}):
        notes.append(f"optimizers that are gone: {short_list(gone)}")
    saved.pop("optimizers", None)
    saved |= entries.get("") or {"optimizers": entries}


class _Part:
    """One optimizer of the fork with its schedule and its scaler, and the entries that the checkpoint has of it."""

    def __init__(
        self, name: str, fresh: Optimization, saved: Node | None, settings: Settings, difference: Difference
    ) -> None:
        self.name, self.fresh, self.saved, self.difference = name, fresh, saved, difference
        self.path = f"optimizer.{name}".rstrip(".")
        self.interval = settings.schedule(name).interval
        self.monitor = settings.schedule(name).monitor
        self.configs = (difference.before, difference.after)
        self.nodes = [by_name(config["optimizer"]).get(name) for config in self.configs]
        schedulers = [by_name(config["scheduler"]) for config in self.configs]
        self.schedules = [nodes.get(name, nodes.get("", {})) for nodes in schedulers]

    def adapt(self, model: nn.Module, state: Node, notes: list[str], *, make: Any) -> Node:
        """Return the entries that the optimizer begins with. state: the checkpoint's, which has its epoch and step."""
        fresh, saved = optimization.capture({"": self.fresh}), self.saved
        reason = self._begins_fresh()
        if saved is None or reason is not None:
            notes.append(f"{self.path} begins fresh: {reason}")
            self._replay(state, notes)
            return optimization.capture({"": self.fresh})
        entries = dict(saved)
        if self.difference.touches("amp"):
            entries["scaler"] = fresh["scaler"]
            if fresh["scaler"]:
                notes.append(f"{self.path}: the scale of gradients begins anew")
        built = [optimizers.build_all(each["optimizer"], model, make=make)[self.name] for each in self.configs]
        then, now = (_plain(each) for each in built)
        planned = saved["schedule_length"] != self.fresh.schedule_length
        rates = [[float(group["lr"]) for group in groups] for groups in (then, now)]
        regrouped = [each["param_names"] for each in then] != [each["param_names"] for each in now]
        replayed, scalable = None, not regrouped and 0.0 not in rates[0]
        if rates[0] != rates[1]:
            self._check_owner()
        if self.schedules[0] == self.schedules[1] and not planned and scalable:
            groups = [dict(group) for group in saved["optimizer"]["param_groups"]]
            if rates[0] != rates[1]:
                _scale(groups, entries, *rates)
        else:
            self._replay(state, notes)
            replayed = optimization.capture({"": self.fresh})
            entries |= {key: replayed[key] for key in ("scheduler", "schedule_length")}
            groups = replayed["optimizer"]["param_groups"]
            if not regrouped:
                both = zip(saved["optimizer"]["param_groups"], groups, strict=True)
                groups = [_rescheduled(group, scheduled) for group, scheduled in both]
        if not regrouped:
            for group, old, new in zip(groups, then, now, strict=True):
                own = new.keys() - {*_SCHEDULED, *(_CYCLED if replayed else ())}
                group |= {key: new[key] for key in own if _differs(old.get(key), new[key])}
        entries["optimizer"] = {"state": _by_place(saved["optimizer"], groups), "param_groups": groups}
        before, after = (each["param_groups"][0]["lr"] for each in (saved["optimizer"], entries["optimizer"]))
        if _differs(before, after):
            notes.append(f"{self.path}: the learning rate goes on at {float(after):.6g}, and was {float(before):.6g}")
        return entries

    def _begins_fresh(self) -> str | None:
        """Return why the optimizer's state cannot go on; None if it can."""
        then, now = self.nodes
        if self.saved is None or then is None or now is None:
            return "the checkpoint has none of that name"
        if [_target(then), _target(then.get("fallback"))] != [_target(now), _target(now.get("fallback"))]:
            return f"the checkpoint's is {_target(then)}"
        groups = self.saved["optimizer"]["param_groups"]
        if _names(groups) is None or set(_names(groups) or ()) != set(_names(_plain(self.fresh.optimizer)) or ()):
            return "it trains other parameters than the checkpoint's"
        if then != now and (missing := _missing_state(self.fresh.optimizer, self.saved["optimizer"]["state"])):
            return f"its options need {short_list(missing)}, which the checkpoint's does not have"
        return None

    def _check_owner(self) -> None:
        """Refuse a rate that a schedule would replace at once."""
        for path, node in schedules.walk(self.schedules[1], f"scheduler.{self.name}".rstrip(".")):
            kind = str(node.get("_target_")).rpartition(".")[2]
            if kind in _OWNERS:
                raise ConfigError(f"{self.path}.lr: {kind} decides the learning rate. Change {path}.{_OWNERS[kind]}.")

    def _replay(self, state: Node, notes: list[str]) -> None:
        """Step the fresh schedule to where the run is, as if the run had had it from the beginning."""
        scheduler, title = self.fresh.scheduler, f"scheduler.{self.name}".rstrip(".")
        if isinstance(scheduler, NoSchedule):
            return
        if self.monitor is not None:
            notes.append(f"{title}: {type(scheduler).__name__} begins anew")
            return
        count = state["epoch"] if self.interval == "epoch" else state["step"]
        try:
            for _ in range(count):
                scheduler.step()
        except ValueError as error:  # OneCycleLR past its end
            raise ConfigError(f"{title}: it cannot reach {self.interval} {count}, where the run is: {error}") from error
        notes.append(f"{title}: {type(scheduler).__name__} as if used from the start, now at {self.interval} {count}")


def _rescheduled(group: Node, replayed: Node) -> Node:
    """Return a saved group with everything that a schedule may write taken from the replayed one."""
    kept = {key: value for key, value in group.items() if key not in _SCHEDULED}
    return kept | {key: replayed[key] for key in (*_SCHEDULED, *_CYCLED) if key in replayed}


def _scale(groups: list[Node], entries: Node, then: list[float], now: list[float]) -> None:
    """Multiply the rates of groups, and those that their schedule remembers, by new / old."""
    for group, old, new in zip(groups, then, now, strict=True):
        group |= {key: _scaled(group[key], old, new) for key in ("lr", "initial_lr") if key in group}
    entries["scheduler"] = _scaled_schedule(entries["scheduler"], then, now)


def _scaled_schedule(saved: Node, then: list[float], now: list[float]) -> Node:
    scaled = dict(saved)
    for key in ("base_lrs", "_last_lr"):
        if isinstance(saved.get(key), list) and len(saved[key]) == len(then):
            scaled[key] = [_scaled(*each) for each in zip(saved[key], then, now, strict=True)]
    if isinstance(saved.get("_schedulers"), list):
        scaled["_schedulers"] = [_scaled_schedule(each, then, now) for each in saved["_schedulers"]]
    return scaled


def _scaled(value: Any, old: float, new: float) -> Any:
    if old == new:
        return value
    return type(value)(new) if isinstance(value, float) and value == old else value * (new / old)


def _by_place(saved: Node, groups: list[Node]) -> Node:
    """Return the state of each parameter under its place in `groups`, whatever group had it in the checkpoint.

    Numbers the groups' parameters anew. Entries that belong to no parameter stay under their keys.
    """
    there = {name: index for index, name in enumerate(_names(saved["param_groups"]) or [])}
    place, state = 0, {key: value for key, value in saved["state"].items() if key not in there.values()}
    for group in groups:
        names = group["param_names"]
        group["params"] = list(range(place, place + len(names)))
        state |= {place + i: saved["state"][there[n]] for i, n in enumerate(names) if there[n] in saved["state"]}
        place += len(names)
    return state


def _names(groups: list[Node]) -> list[str] | None:
    """Return the names of the parameters in their order; None if the groups have none."""
    if not all(isinstance(group.get("param_names"), list) for group in groups):
        return None
    return [name for group in groups for name in group["param_names"]]


def _plain(optimizer: Optimizer) -> list[Node]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _missing_state(optimizer: Optimizer, saved: Node) -> list[str]:
    """Name the state that these options need for each parameter and the checkpoint lacks, as amsgrad's max_exp_avg_sq.

    A step on a parameter of one element shows what is needed. An optimizer that cannot make the step counts as one that
    needs nothing.
    """
    there = {key for entry in saved.values() if isinstance(entry, dict) for key in entry}
    missing: set[str] = set()
    for part in (optimizer.main, optimizer.fallback) if isinstance(optimizer, optimizers.Both) else (optimizer,):
        group = part.param_groups[0]
        like = group["params"][0]
        tiny = nn.Parameter(torch.zeros((1,) * like.dim(), dtype=like.dtype, device=like.device))
        tiny.grad = torch.zeros_like(tiny)
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        try:
            kind: Any = type(part)
            trial = kind([{**options, "params": [tiny]}])
            trial.step()
        except Exception:  # a closure, a sparse gradient, an argument without a default: not every class can be tried
            continue
        missing |= {str(key) for key in trial.state[tiny].keys() - there}
    return sorted(missing) if there else []


def _target(node: Node | None) -> str | None:
    return None if node is None else str(node.get("_target_"))


def _differs(old: Any, new: Any) -> bool:
    return repr(old) != repr(new)
