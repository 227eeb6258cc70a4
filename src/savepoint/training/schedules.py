"""Build the learning-rate schedule of a run, planned to the end of training. Inner schedules are built first."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from savepoint import trust
from savepoint.config import Settings
from savepoint.errors import ConfigError
from savepoint.trust import join_path

# Names of a schedule's own length. If the config leaves it null, it is planned from the end of training.
LENGTHS = ("T_max", "total_steps", "total_iters")
# torch divides by these, steps later, without checking them.
PERIODS = ("T_max", "step_size", "step_size_up", "step_size_down")
# Keys of conf/scheduler/ that belong to the engine. All others are arguments of the class.
OWN = ("interval", "monitor")


def build(
    node: dict[str, Any],
    settings: Settings,
    optimizer: Optimizer,
    *,
    batches: int,
    make: Callable[..., Any],
    name: str = "",
    path: str = "scheduler",
) -> tuple[Any, int | None]:
    """Build the schedule that the config's group `node` describes.

    batches: the number of them in an epoch. make: `trust.make`. name: the optimizer's. path: the place of `node`.
    Returns: the schedule, and the planned end of training if its length depends on that end; (None, None) for none.
    Raises: ConfigError that names the key.
    """
    own = {key: value for key, value in node.items() if key not in OWN}
    if own.get("_target_") is None:
        return None, None
    schedule = settings.schedule(name)
    end = planned_end(settings, batches, interval=schedule.interval)
    _check_lengths(own, end, schedule.interval, path)
    # Otherwise torch warns when the constructor of SequentialLR takes the first step of a ChainedScheduler.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    scheduler = _bound(make(_planned(own, 0, end), path=path), optimizer, path=path)
    if missing := [method for method in ("step", "state_dict", "load_state_dict") if not hasattr(scheduler, method)]:
        raise ConfigError(f"{path}: {own['_target_']} is no scheduler: it has no {' and no '.join(missing)}.")
    plateau = isinstance(scheduler, ReduceLROnPlateau)
    if plateau and (schedule.interval == "step" or schedule.monitor is None):
        raise ConfigError(
            f"{path}: ReduceLROnPlateau follows a metric that is measured once an epoch: "
            f"set {path}.interval=epoch and {path}.monitor, for example val/loss."
        )
    if schedule.monitor is not None and not plateau:
        raise ConfigError(f"{path}.monitor={schedule.monitor}: {own['_target_']} follows no metric. Set it to null.")
    return scheduler, end if planned_key(own, end) is not None else None


def capture(scheduler: Any) -> dict[str, Any]:
    """Return the state of a schedule, without the function that SWALR of torch 2.9 keeps in it and makes anew."""
    return _without_function(scheduler.state_dict())  # type: ignore[no-any-return]


def _without_function(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    kept = {key: value for key, value in state.items() if key != "anneal_func" or not callable(value)}
    if isinstance(inner := kept.get("_schedulers"), list):
        kept["_schedulers"] = [_without_function(each) for each in inner]
    return kept


def restore(scheduler: Any, saved: dict[str, Any]) -> None:
    """Restore a freshly built schedule. Call it after the optimizer is restored.

    The state is copied, because torch keeps its lists and tensors and removes entries that it has read.
    """
    scheduler.load_state_dict(copy.deepcopy(saved))


def walk(node: dict[str, Any], path: str = "scheduler") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a schedule and all schedules inside it, each with its path in the config."""
    yield path, node
    for index, inner in enumerate(_inner(node)):
        yield from walk(inner, join_path(join_path(path, "schedulers"), index))


def planned_end(settings: Settings, batches: int, *, interval: str) -> int:
    """Return the planned end of training, in epochs or steps, whichever the schedule counts."""
    trainer, by_epoch = settings.trainer, interval == "epoch"
    updates_per_epoch = math.ceil(batches / trainer.accumulate)
    ends = []
    if trainer.max_epochs is not None:
        ends.append(trainer.max_epochs if by_epoch else trainer.max_epochs * updates_per_epoch)
    if trainer.max_steps is not None:
        ends.append(math.ceil(trainer.max_steps / updates_per_epoch) if by_epoch else trainer.max_steps)
    return min(ends)


def planned_key(node: dict[str, Any], end: int) -> tuple[str, int] | None:
    """Return the key and the value of the length that depends on the planned end of training; None if no length does.

    A schedule that ends at the next one's milestone does not depend on that end.
    """
    key = _null_length(node)
    if key is not None:
        return key, end
    for index, (inner, begins, ends) in enumerate(_windows(node, 0, end)):
        if ends == end and (found := planned_key(inner, end - begins)):
            return f"schedulers.{index}.{found[0]}", found[1]
    return None


def _planned(node: dict[str, Any], begins: int, ends: int) -> dict[str, Any]:
    """Fill in each length that is null: from where that schedule begins to where the next one takes over."""
    planned = dict(node)
    if key := _null_length(node):
        planned[key] = max(1, ends - begins)  # at least 1, also for a schedule that begins after the end of training
    if _inner(node):
        planned["schedulers"] = [_planned(*window) for window in _windows(node, begins, ends)]
    return planned


def _null_length(node: dict[str, Any]) -> str | None:
    return next((key for key in LENGTHS if key in node and node[key] is None and not node.get("steps_per_epoch")), None)


def _inner(node: dict[str, Any]) -> list[dict[str, Any]]:
    inner = node.get("schedulers")
    return inner if isinstance(inner, list) and all(isinstance(each, dict) for each in inner) else []


def _windows(node: dict[str, Any], begins: int, ends: int) -> list[tuple[dict[str, Any], int, int]]:
    """Return each inner schedule with its begin and end: one after the other with milestones, all at once without."""
    inner, milestones = _inner(node), node.get("milestones")
    if not inner or milestones is None:
        return [(each, begins, ends) for each in inner]
    starts = [begins, *(begins + milestone for milestone in milestones)]
    stops = [*(min(start, ends) for start in starts[1:]), ends]
    return list(zip(inner, starts, stops, strict=True))


def _check_lengths(node: dict[str, Any], end: int, interval: str, place: str) -> None:
    for path, each in walk(node, place):
        if "schedulers" in each and not isinstance(each["schedulers"], list):
            raise ConfigError(f"{path}.schedulers={each['schedulers']}: must be a list of schedulers.")
        for index, inner in enumerate(each.get("schedulers") or []):
            if not isinstance(inner, dict):
                raise ConfigError(f"{path}.schedulers[{index}]={inner}: must be a scheduler, with a _target_.")
        for key in PERIODS:
            if isinstance(each.get(key), int | float) and each[key] <= 0:
                raise ConfigError(f"{path}.{key}={each[key]}: must be above 0, counted in {interval}s.")
        if isinstance(power := each.get("power"), int | float) and power < 0:
            raise ConfigError(f"{path}.power={power}: must be at least 0, or the last rate would be infinite.")
        inner, milestones = _inner(each), each.get("milestones")
        rising = isinstance(milestones, list) and all(type(m) is int for m in milestones)
        if (
            inner
            and milestones is not None
            and not (rising and len(milestones) == len(inner) - 1 and [*milestones] == sorted({0, *milestones})[1:])
        ):
            raise ConfigError(
                f"{path}.milestones={milestones}: must say where each schedule but the first begins, counted in "
                f"{interval}s: {len(inner) - 1} whole numbers above 0, rising."
            )
    for path, each, length in _lasting(node, place, end):
        total, epochs, steps = (each.get(key) for key in ("total_steps", "epochs", "steps_per_epoch"))
        if total is None and isinstance(epochs, int) and isinstance(steps, int):
            total = epochs * steps or None
        if isinstance(total, int | float) and total < length:
            raise ConfigError(
                f"{path}.total_steps={total} ends before training does ({length} {interval}s). "
                "Raise it, or set it to null to have it planned."
            )


def _lasting(node: dict[str, Any], path: str, length: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield each schedule with its path and how long it is in use."""
    yield path, node, length
    for index, (inner, begins, ends) in enumerate(_windows(node, 0, length)):
        yield from _lasting(inner, join_path(join_path(path, "schedulers"), index), ends - begins)


def _bound(partial: Any, optimizer: Optimizer, *, path: str) -> Any:
    """Build a schedule over the optimizer, inner schedules first, because the outer one takes over their rates."""
    if not isinstance(partial, functools.partial):
        raise ConfigError(f"{path}._partial_: must be true: the engine adds the optimizer.")
    inner = partial.keywords.get("schedulers")
    if not isinstance(inner, list):
        return trust.call(partial, optimizer, path=path)
    bound = [
        _bound(each, optimizer, path=join_path(join_path(path, "schedulers"), index))
        for index, each in enumerate(inner)
    ]
    whole = functools.partial(partial.func, *partial.args, **{**partial.keywords, "schedulers": bound})
    if next(iter(inspect.signature(partial.func).parameters)) == "schedulers":  # ChainedScheduler
        whole = functools.partial(whole, optimizer=optimizer)
        return trust.call(whole, path=path)
    initial = [copy.deepcopy(group.get("initial_lr")) for group in optimizer.param_groups]
    scheduler = trust.call(whole, optimizer, path=path)
    for group, rate in zip(optimizer.param_groups, initial, strict=True):
        # SequentialLR before torch 2.13 makes both one tensor, and changes it.
        if isinstance(rate, Tensor) and group["lr"] is group["initial_lr"]:
            group["lr"] = group["lr"].clone()
            group["initial_lr"].copy_(rate)
    return scheduler
