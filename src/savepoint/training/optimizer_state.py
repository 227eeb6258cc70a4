"""Restore an optimizer from a checkpoint to the last bit."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from savepoint import parallel
from savepoint.errors import CheckpointError, short_list


def restore(optimizer: Optimizer, saved: dict[str, Any], *, where: str) -> None:
    """Restore a freshly built optimizer: every value with its type, dtype, strides and sharing.

    saved: the state_dict, as loaded. where: the checkpoint, for the error.
    Raises: CheckpointError that lists the parameters in which the two differ.
    """
    _check_names(optimizer, saved, where)
    before = [dict(group) for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    copied: dict[int, Any] = {}
    for index, parameter in enumerate(parameters):
        for value in saved["state"].get(index, {}).values():
            # A moment is cut among the ranks as its parameter is.
            if isinstance(value, Tensor | parallel.Part):
                part = parallel.cut_like(value, parameter, copy=True)
                if part is not value:
                    copied[id(value)] = part
    # Copied, because training must not write into the checkpoint, and because tensors inside a file's bytes are aligned
    # differently from torch's own, so that kernels may differ. A deep copy keeps strides and sharing.
    exact = copy.deepcopy(saved, copied)
    optimizer.load_state_dict(exact)
    moved: dict[tuple[int, torch.device], Tensor] = {}
    for index, entry in exact["state"].items():
        if index not in range(len(parameters)):
            continue  # the entry belongs to no parameter, and torch has taken it as it is
        parameter = parameters[index]
        # torch casts floating state to the parameter's dtype (NAdam's mu_product, ASGD's eta): undo that.
        optimizer.state[parameter] = _uncast(entry, optimizer.state[parameter], moved)
    for group, fresh in zip(optimizer.param_groups, before, strict=True):
        for key, value in group.items():  # a rate that is a tensor moves to the device of this run's rate
            if isinstance(value, Tensor) and isinstance(fresh.get(key), Tensor):
                group[key] = _moved(value, fresh[key].device, moved)


def _uncast(exact: Any, loaded: Any, moved: dict[tuple[int, torch.device], Tensor]) -> Any:
    """Return the saved value on the device where torch put it. A number that torch made a tensor stays a tensor."""
    if isinstance(exact, Tensor):
        return _moved(exact, loaded.device, moved)
    if isinstance(exact, dict):
        exact.update({key: _uncast(exact.get(key, value), value, moved) for key, value in loaded.items()})
        return exact
    if isinstance(exact, list | tuple):
        return type(exact)([_uncast(a, b, moved) for a, b in zip(exact, loaded, strict=True)])
    return loaded if isinstance(loaded, Tensor) else exact


def _moved(tensor: Tensor, device: torch.device, moved: dict[tuple[int, torch.device], Tensor]) -> Tensor:
    """Move a tensor, once even if it occurs in two places. moved: the tensors moved so far, by identity."""
    return moved.setdefault((id(tensor), device), tensor.to(device))


def _check_names(optimizer: Optimizer, saved: dict[str, Any], where: str) -> None:
    here = [group.get("param_names") for group in optimizer.state_dict()["param_groups"]]
    there = [group.get("param_names") for group in saved["param_groups"]]
    sizes = [[len(group["params"]) for group in one] for one in (optimizer.param_groups, saved["param_groups"])]
    if here == there and sizes[0] == sizes[1]:
        return
    # torch matches by position: two parameters of one shape that swapped places would swap their moments.
    places_here, places_there = _places(here), _places(there)
    kinds = {
        "only in the checkpoint": [name for name in places_there if name not in places_here],
        "only in the config": [name for name in places_here if name not in places_there],
        "in another place": [n for n in places_there if n in places_here and places_here[n] != places_there[n]],
    }
    if kinds["only in the checkpoint"] or kinds["only in the config"]:
        kinds["in another place"] = _displaced(here, there)
    faults = [f"{kind}: {short_list(names, most=6)}" for kind, names in kinds.items() if names]
    told = "; ".join(faults or [f"groups of {sizes[1]} parameters in the checkpoint, of {sizes[0]} in the config"])
    raise CheckpointError(f"{where}: its optimizer does not have the parameters that the config builds; {told}.")


def _places(groups: list[list[str] | None]) -> dict[str, tuple[int, int]]:
    return {name: (i, j) for i, names in enumerate(groups) for j, name in enumerate(names or [])}


def _displaced(here: list[list[str] | None], there: list[list[str] | None]) -> list[str]:
    """List the names that both have, but in another group or order. Names that only one has do not count."""
    both = set(_places(here)) & set(_places(there))
    one, other = (_places([[n for n in names or [] if n in both] for names in groups]) for groups in (here, there))
    return [name for name in other if one[name] != other[name]]
