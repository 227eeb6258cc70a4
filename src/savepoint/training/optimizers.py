"""Build the optimizers of a run from its config, and restore them from a checkpoint to the last bit."""

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from savepoint import trust
from savepoint.config import by_name, match
from savepoint.errors import CheckpointError, ConfigError, short_list
from savepoint.training import patterns
from savepoint.training.patterns import Named

# Keys of conf/optimizer/ that belong to the engine. All others are arguments of the class.
OWN = ("fallback", "weight_decay_on", "parameters", "groups")


class Both(Optimizer):
    """Two optimizers that act as one: `main` for the parameters that it takes, `fallback` for all others.

    Both share one `state`, and `param_groups` lists the groups of both, so schedules, a GradScaler and a state_dict see
    one optimizer.
    """

    def __init__(self, main: Optimizer, fallback: Optimizer) -> None:
        self.main, self.fallback = main, fallback
        # The defaults that both have: schedules look here for what they may change in every group.
        common = {key: value for key, value in main.defaults.items() if key in fallback.defaults}
        super().__init__([*main.param_groups, *fallback.param_groups], common)
        # Adagrad fills its state as it is built. Without that torch 2.9 fails, and 2.13 fills it at the first step.
        self.state.update({**main.state, **fallback.state})
        self._link()

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.main.step()
        self.fallback.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Link both optimizers to the new `state` and groups. load_state_dict ends with this call."""
        super().__setstate__(state)
        self._link()

    def _link(self) -> None:
        cut = len(self.main.param_groups)
        for part, groups in ((self.main, self.param_groups[:cut]), (self.fallback, self.param_groups[cut:])):
            # Each one sees its own state alone: Adagrad takes the first entry as an example of all.
            own = {p: self.state[p] for group in groups for p in group["params"] if p in self.state}
            part.__setstate__({"state": defaultdict(dict, own), "param_groups": groups})
            part.state = self.state


def build_all(group: dict[str, Any], model: nn.Module, *, make: Callable[..., Any]) -> dict[str, Optimizer]:
    """Build the optimizers of the config's group `optimizer`, by name. One without a name is under "".

    make: `trust.make`. Raises: ConfigError that names the key, and the parameters that none or two would train.
    """
    nodes = by_name(group)
    if "" in nodes:
        if "parameters" in group:
            raise ConfigError(
                "optimizer.parameters: the only optimizer trains every parameter. Give optimizers names to divide the "
                "parameters among them (optimizer.<name>.parameters), or use optimizer.groups."
            )
        return {"": build(group, model, make=make)}
    parameters = patterns.divide(nodes, model)
    return {
        name: build(node, model, make=make, parameters=parameters[name], path=f"optimizer.{name}")
        for name, node in nodes.items()
    }


def build(
    node: dict[str, Any],
    model: nn.Module,
    *,
    make: Callable[..., Any],
    parameters: Named | None = None,
    path: str = "optimizer",
) -> Optimizer:
    """Build the optimizer that `node` describes.

    Parameters are passed with their names, so that a checkpoint can tell two of the same shape apart.
    make: `trust.make`. parameters: those to train; all of the model's if left out. path: the place of `node`.
    Raises: ConfigError that names the key.
    """
    main = make({key: value for key, value in node.items() if key not in OWN}, path=path)
    rest = make(node.get("fallback"), path=f"{path}.fallback")
    decay_on, groups = node.get("weight_decay_on", "all"), node.get("groups") or []
    if decay_on not in ("all", "matrices"):
        raise ConfigError(f"{path}.weight_decay_on={decay_on!r}: must be all or matrices.")
    if rest is not None and groups:
        raise ConfigError(f"{path}.groups: not with a fallback. Give two optimizers names in place of the fallback.")
    kinds = [partial.func for partial in (main, rest) if partial is not None]
    if decay_on == "matrices" and not any(_decays(kind) for kind in kinds):
        names = " and ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{path}.weight_decay_on=matrices: {names} has no weight_decay. Leave it at all.")
    checks: Any = torch.sparse.check_sparse_tensor_invariants
    if sparse(model) and not checks.is_enabled():
        checks.disable()  # explicitly, because otherwise torch warns about its own optimizers
    parameters = list(model.named_parameters()) if parameters is None else parameters
    if rest is None:
        return _one(main, parameters, decay_on, path=path, groups=groups)
    taken = _taken(main.func, model, path)
    mine = [(name, parameter) for name, parameter in parameters if name in taken]
    others = [(name, parameter) for name, parameter in parameters if name not in taken]
    first = _one(main, mine, decay_on, path=path)
    return Both(first, _one(rest, others, decay_on, path=f"{path}.fallback")) if others else first


def searches(optimizer: Optimizer) -> bool:
    """Whether the optimizer's step needs a closure that evaluates the model again, as LBFGS's does."""
    _, *parameters = inspect.signature(type(optimizer).step).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return bool(parameters) and parameters[0].kind in kinds and parameters[0].default is inspect.Parameter.empty


def sparse(model: nn.Module) -> list[str]:
    """List the parameters with sparse gradients: weights of sparse embeddings that no other module uses."""
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    own = {id(module.weight) for module in embeddings}
    others = [module for module in model.modules() if not any(module is each for each in embeddings)]
    own -= {id(p) for module in others for p in module.parameters(recurse=False)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


def restore(optimizer: Optimizer, saved: dict[str, Any], *, where: str) -> None:
    """Restore a freshly built optimizer: every value with its type, dtype, strides and sharing.

    saved: the state_dict, as loaded. where: the checkpoint, for the error.
    Raises: CheckpointError that lists the parameters in which the two differ.
    """
    _check_names(optimizer, saved, where)
    before = [dict(group) for group in optimizer.param_groups]
    # Copied, because training must not write into the checkpoint, and because tensors inside a file's bytes are aligned
    # differently from torch's own, so that kernels may differ. A deep copy keeps strides and sharing.
    exact = copy.deepcopy(saved)
    optimizer.load_state_dict(exact)
    moved: dict[tuple[int, torch.device], Tensor] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in exact["state"].items():
        if index not in range(len(parameters)):
            continue  # an entry of no parameter, which torch has taken as it is
        parameter = parameters[index]
        # torch casts floating state to the parameter's dtype (NAdam's mu_product, ASGD's eta): undo that.
        optimizer.state[parameter] = _uncast(entry, optimizer.state[parameter], moved)
    for group, fresh in zip(optimizer.param_groups, before, strict=True):
        for key, value in group.items():  # a rate that is a tensor moves to the device of this run's
            if isinstance(value, Tensor) and isinstance(fresh.get(key), Tensor):
                group[key] = _moved(value, fresh[key].device, moved)


def _uncast(exact: Any, loaded: Any, moved: dict[tuple[int, torch.device], Tensor]) -> Any:
    """Return the saved value on the device where torch put it. A number that torch turned into a tensor stays one."""
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
    """List names that both have, but in another group or order, names that only one has left out."""
    both = set(_places(here)) & set(_places(there))
    one, other = (_places([[n for n in names or [] if n in both] for names in groups]) for groups in (here, there))
    return [name for name in other if one[name] != other[name]]


def _one(partial: Any, parameters: Named, decay_on: str, *, path: str, groups: list[Any] | None = None) -> Optimizer:
    made: list[Any] = list(parameters)
    if groups:
        made = _grouped(partial, parameters, groups, path)
    if decay_on == "matrices" and _decays(partial.func):
        made = [part for group in (made if groups else [{"params": made}]) for part in _split_decay(group)]
    kind = partial.func
    # Do not call a class that is no optimizer. A function may return one, so it has to be called.
    known = not isinstance(kind, type) or issubclass(kind, Optimizer)
    optimizer = trust.call(partial, made, path=path) if known else None
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{path}: {kind.__name__} is not a torch.optim.Optimizer.")
    return optimizer


def _grouped(partial: Any, parameters: Named, groups: list[Any], path: str) -> list[dict[str, Any]]:
    """Divide parameters into groups: first those that no pattern matches, with the optimizer's own values."""
    left, made = list(parameters), []
    for index, group in enumerate(groups):
        where = f"{path}.groups[{index}]"
        if not isinstance(group, dict):
            raise ConfigError(f"{where}={group}: must be a group, with parameters and the values that differ there.")
        matched = match(group.get("parameters"), [name for name, _ in parameters], path=f"{where}.parameters")
        taken = [(name, parameter) for name, parameter in left if name in matched]
        if not taken:
            raise ConfigError(f"{where}.parameters={group['parameters']}: an earlier group has all that it matches.")
        left = [(name, parameter) for name, parameter in left if name not in matched]
        values = {key: value for key, value in group.items() if key != "parameters"}
        # torch checks the values of a whole optimizer, and takes anything in a group.
        trust.call(
            functools.partial(partial, **values), [nn.Parameter(torch.zeros((1,) * taken[0][1].dim()))], path=where
        )
        made.append({"params": taken, **values})
    return [{"params": left}, *made] if left else made


def _split_decay(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a group into its matrices and the rest, which gets no weight decay."""
    matrices = [(name, p) for name, p in group["params"] if p.dim() >= 2]
    others = [(name, p) for name, p in group["params"] if p.dim() < 2]
    parts = [group | {"params": matrices}] if matrices else []
    return parts + ([group | {"params": others, "weight_decay": 0.0}] if others else [])


def _decays(kind: Any) -> bool:
    return "weight_decay" in inspect.signature(kind).parameters


def _taken(kind: Any, model: nn.Module, path: str) -> set[str]:
    """Return the names of the parameters that an optimizer with a fallback takes itself."""
    name = kind.__name__
    if issubclass(kind, getattr(torch.optim, "Muon", ())):  # torch 2.8 has none
        taken, what = [each for each, p in model.named_parameters() if p.dim() == 2], "matrices"
        advice = "Take the fallback as the optimizer: optimizer=adamw."
    elif issubclass(kind, torch.optim.SparseAdam):
        taken, what = sparse(model), "sparse gradients"
        advice = "A model with nn.Embedding or nn.EmbeddingBag(…, sparse=True) has some: model=embedding."
    else:
        raise ConfigError(
            f"{path}.fallback: {name} takes every parameter, so none is left for a fallback. Set it to null."
        )
    if not taken:
        raise ConfigError(f"{path}: {name} trains {what}, and {type(model).__name__} has none. {advice}")
    return set(taken)
