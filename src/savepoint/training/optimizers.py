"""Build the optimizers of a run from its config."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from savepoint import trust
from savepoint.config import by_name, match
from savepoint.errors import ConfigError
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
        # Adagrad fills its state when it is built. Without that state torch 2.9 fails; 2.13 fills it at the first step.
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
            # Each optimizer sees its own state alone: Adagrad takes the first entry as an example of all.
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
        checks.disable()  # if nobody says it, torch warns about its own optimizers
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
        # torch checks the values of an optimizer, and none of a group. So one optimizer is made of these values.
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
