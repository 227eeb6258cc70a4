"""Begin from a checkpoint of a run whose config differs: the full state, except where the difference takes effect.

A checkpoint is adapted before it is restored, so there is one way to restore. What the difference does not touch stays
as it was saved. A part that is new, or is another one now, starts as it was built, and a note says so.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from savepoint.checkpoint import Checkpoint
from savepoint.config import Settings, by_name, differences
from savepoint.errors import ConfigError, short_list
from savepoint.training import optimization, optimizers, schedules
from savepoint.training.optimization import NoSchedule, Optimization, naming
from savepoint.training.state import Parts, TrainState, capture, fits

# What schedules write into the groups of an optimizer.
_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
_CYCLED = ("momentum", "betas")  # by OneCycleLR and CyclicLR, if they are asked to
# Schedules that replace the optimizer's own rate, and the keys that decide it in its place.
_OWNERS = {"OneCycleLR": "max_lr", "CyclicLR": "base_lr and max_lr"}

Node = dict[str, Any]


class Difference:
    """What differs between the config of a checkpoint and that of its fork."""

    def __init__(self, before: Node, after: Node) -> None:
        self.before, self.after = before, after
        self.keys = differences(before, after)

    def touches(self, *paths: str) -> bool:
        """Whether a key at or below one of these paths differs."""
        return any(key == path or key.startswith(f"{path}.") for key in self.keys for path in paths)

    def lines(self) -> list[str]:
        """Return `key  old → new` for each key that changes what is trained, aligned."""
        hidden = ("tracker", "name", "_partial_")
        shown = {key: each for key, each in self.keys.items() if not {*key.split(".")} & {*hidden}}
        width = max(map(len, shown), default=0)
        return [f"{key.ljust(width)}  {_short(old)} → {_short(new)}" for key, (old, new) in shown.items()]


def adapt(
    checkpoint: Checkpoint, fresh: TrainState, parts: Parts, difference: Difference, *, make: Callable[..., Any]
) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint as `state.restore` takes it into a run with another config, and notes for the log.

    fresh: the state as the new config builds it. Its schedules are stepped to where the run is. make: `trust.make`.
    Raises: ConfigError for a difference that could have no effect.
    """
    fits(fresh.model, checkpoint)
    saved, notes = dict(checkpoint.state), list[str]()
    _, new = capture(fresh)
    saved["history_lines"] = 0  # the history of a fork begins at the fork
    with naming(checkpoint, "optimizer"):
        _adapt_optimizers(saved, fresh, parts.settings, difference, notes, make=make)
    if difference.touches("seed"):
        saved["rng"] = new["rng"]
        notes.append("generators begin anew, from the new seed")
    if difference.touches("init.freeze"):
        saved["frozen"] = new["frozen"]
    if (saved.get("averaged") is None) != (new["averaged"] is None):
        saved["averaged"] = _average_of(checkpoint, new["averaged"])
        notes.append("average of the weights: " + ("ends" if new["averaged"] is None else "begins at the present ones"))
    _adapt_registered(saved, new, notes)
    _adapt_position(saved, new, checkpoint, parts, difference, notes)
    if difference.touches("task", "data.dataset"):
        saved |= {"best": None, "stale": 0}
        notes.append("best value begins anew, as it is measured in another way")
    if difference.touches("task"):
        saved |= {key: new[key] for key in ("sums", "samples", "logged", "logged_sums", "metrics")}
    return replace(checkpoint, state=saved), notes


def _adapt_optimizers(
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
    """One optimizer of the fork with its schedule and its scaler, and what the checkpoint has of it, if anything."""

    def __init__(
        self, name: str, fresh: Optimization, saved: Node | None, settings: Settings, difference: Difference
    ) -> None:
        self.name, self.fresh, self.saved, self.difference = name, fresh, saved, difference
        self.path = f"optimizer.{name}".rstrip(".")
        self.interval = settings.schedule(name).interval
        self.monitor = settings.schedule(name).monitor
        both = (difference.before, difference.after)
        self.nodes = [by_name(config["optimizer"]).get(name) for config in both]
        schedulers = [by_name(config["scheduler"]) for config in both]
        self.schedules = [nodes.get(name, nodes.get("", {})) for nodes in schedulers]

    def adapt(self, model: nn.Module, state: Node, notes: list[str], *, make: Any) -> Node:
        """Return the entries that the optimizer begins with. state: the checkpoint's, for its epoch and step."""
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
        built = [optimizers.build_all(each["optimizer"], model, make=make)[self.name] for each in self._configs()]
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

    def _configs(self) -> tuple[Node, Node]:
        return self.difference.before, self.difference.after

    def _begins_fresh(self) -> str | None:
        """Say why the state of the optimizer cannot go on, or return None if it can."""
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
    """Name what these options keep for each parameter and the checkpoint lacks: max_exp_avg_sq for amsgrad, say.

    Found out by a step on a parameter of one element. Optimizers that cannot make it are taken to need nothing.
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


def _adapt_registered(saved: Node, new: Node, notes: list[str]) -> None:
    """Keep the registered state that the fork has too; let what is new begin as it was built."""
    there, here = saved.get("registered") or {}, new["registered"]
    saved["registered"] = {name: there.get(name, value) for name, value in here.items()}
    for words, names in (("begins fresh", here.keys() - there.keys()), ("is gone", there.keys() - here.keys())):
        notes += [f"registered state {name} {words}" for name in sorted(names)]


def _adapt_position(
    saved: Node, new: Node, checkpoint: Checkpoint, parts: Parts, difference: Difference, notes: list[str]
) -> None:
    """Say where in the data the fork goes on. Epoch and step are kept."""
    streams = [each is not None for each in (saved.get("stream"), new["stream"])]
    samples = ((checkpoint.provenance.get("data") or {}).get("train") or {}).get("samples")
    other = samples != parts.train.samples or difference.touches("seed", "data.sampler", "data.shuffle")
    if any(streams):
        cut = saved["batch"] > 0 and difference.touches("data")
        other = cut or streams[0] != streams[1] or difference.touches("data.dataset", "seed")
        if other:
            saved["stream"] = new["stream"]
            notes.append("data: the stream begins anew" if streams[1] else "data: no stream any more")
    batch, title = saved["batch"], f"epoch {saved['epoch'] + 1}"
    if other and batch:
        saved["batch"] = 0
        notes.append(f"data: {title} begins again, as its samples or their order are others")
    elif batch and difference.touches("data.batch_size"):
        done = batch * difference.before["data"]["batch_size"]
        saved["batch"] = math.ceil(done / difference.after["data"]["batch_size"])
        notes.append(f"data: {title} goes on after {done} samples, at batch {saved['batch']} of the new size")
    elif difference.touches("data.batch_size"):
        notes.append(f"data: an epoch has {len(parts.train)} batches from here on")
    saved["batch"] = min(saved["batch"], len(parts.train))


def _average_of(checkpoint: Checkpoint, fresh: Node | None) -> Node | None:
    """Return an average that begins at the checkpoint's weights. fresh: as it was built, None for no average."""
    if fresh is None:
        return None
    return {key: checkpoint.model.get(key.removeprefix("module."), value) for key, value in fresh.items()}


def _target(node: Node | None) -> str | None:
    return None if node is None else str(node.get("_target_"))


def _differs(old: Any, new: Any) -> bool:
    return repr(old) != repr(new)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
