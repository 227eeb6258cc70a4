"""Compare weights with a model, and load them into it: all of them exactly, or those that `init` chooses."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import parallel
from savepoint.checkpoint import Checkpoint
from savepoint.config import InitSettings, match, rename
from savepoint.errors import CheckpointError, ConfigError, MisfitError, short_list
from savepoint.weights.reading import Weights, model_entries


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights and buffers exactly. Raises: CheckpointError that lists the names that do not fit."""
    check(model, checkpoint)
    _load(model, *model_entries(checkpoint), strict=True)


def check(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Check that the model has the names, shapes and dtypes of a checkpoint. The model may be on the meta device.

    Raises: MisfitError that lists what is missing, unexpected or different.
    """
    own, (entries, _) = model.state_dict(), model_entries(checkpoint)
    faults = {
        "missing": [name for name in own if name not in entries],
        "unexpected": [name for name in entries if name not in own],
        "different": _differences(own, entries, exact=True),
    }
    if listed := _listed(faults):
        excess = [name for name in own if any(each.startswith(f"{name} is ") for each in faults["different"])]
        raise MisfitError(f"{checkpoint.path} does not fit the model that the config builds. {listed}.", excess)


def load(model: nn.Module, weights: Weights, choice: InitSettings, *, path: str = "init") -> list[str]:
    """Load the weights that `choice` names into a model. Floating-point weights take the dtype of the model's.

    path: the place of the choice in the config, for errors; "" if the choice is a function's arguments.
    Returns: a note for the log each for what was left as it was built, what was left over, and what was converted.
    Raises: ConfigError for a pattern that matches nothing; CheckpointError that lists all names that do not fit.
    """
    prefix = f"{path}." if path else ""
    own, given = model.state_dict(), _renamed(weights, choice.rename, prefix)
    known = sorted({*own, *given})
    wanted = (
        set(known) if choice.include is None else match(choice.include, known, path=f"{prefix}include", what="name")
    )
    if choice.exclude is not None:
        wanted -= match(choice.exclude, known, path=f"{prefix}exclude", what="name")
    given = {name: value for name, value in given.items() if name in wanted}
    loaded = {name: value for name, value in given.items() if name in own}
    tied = {_memory(own[name]) for name in loaded} - {None}
    faults = {
        "missing": [name for name in own if name in wanted - loaded.keys() and _memory(own[name]) not in tied],
        "unexpected": [name for name in given if name not in own],
        "different": _differences(own, loaded, exact=False),
    }
    serious = faults if choice.strict or not loaded else {"different": faults["different"]}
    if listed := _listed(serious):
        raise CheckpointError(
            f"The weights of {weights.origin.title} do not fit the model: {listed}. Choose with {prefix}include, "
            f"{prefix}exclude and {prefix}rename, or allow what is missing and unexpected with {prefix}strict=false."
        )
    if not loaded:
        raise CheckpointError(f"None of the weights of {weights.origin.title} was chosen by {prefix}include.")
    _load(model, loaded, weights.versions, strict=False)
    return _notes(own, loaded, faults, wanted)


def _renamed(weights: Weights, rules: Mapping[str, str] | None, prefix: str) -> dict[str, Any]:
    names = rename(rules or {}, weights.entries, path=f"{prefix}rename")
    given = {new: weights.entries[old] for old, new in names.items()}
    if len(given) < len(names):
        twice = sorted({new for new in names.values() if [*names.values()].count(new) > 1})
        raise ConfigError(f"{prefix}rename: several names would become {short_list(twice)}.")
    return given


def _notes(
    own: Mapping[str, Any], loaded: Mapping[str, Any], faults: dict[str, list[str]], wanted: set[str]
) -> list[str]:
    left = faults["missing"] + [name for name in own if name not in wanted]
    notes = [f"left as it was built: {short_list(left)}"] if left else []
    if faults["unexpected"]:
        notes.append(f"not in the model: {short_list(faults['unexpected'])}")
    kinds = {(value.dtype, own[name].dtype) for name, value in loaded.items() if isinstance(value, Tensor)}
    for there, here in sorted(kinds, key=str):
        if there != here:
            notes.append(f"{_name(there)} converted to {_name(here)}")
    return notes


def _load(model: nn.Module, entries: Mapping[str, Any], versions: Mapping[str, Any], *, strict: bool) -> None:
    own = model.state_dict()
    if any(isinstance(value, Tensor) and value.is_meta for value in own.values()):
        return  # the model was built for its shapes alone
    ordered: Any = OrderedDict((name, parallel.cut_like(entries[name], own[name])) for name in own if name in entries)
    recorded = {name: {"version": version} for name, version in versions.items()}
    ordered._metadata = recorded or getattr(own, "_metadata", {})
    model.load_state_dict(ordered, strict=strict)


def _differences(own: Mapping[str, Any], entries: Mapping[str, Any], *, exact: bool) -> list[str]:
    compared = (_difference(name, entries[name], own[name], exact=exact) for name in own if name in entries)
    return [difference for difference in compared if difference]


def _difference(name: str, saved: Any, built: Any, *, exact: bool) -> str | None:
    """Say how an entry differs from the model's in type, shape or dtype; None if it does not.

    exact: whether another floating-point dtype counts as different.
    """
    if name.rpartition(".")[2] == "_extra_state":
        return None  # extra state may be anything, and have another shape at every step
    words = "{} is {} in the checkpoint and {} in the model".format
    tensor = isinstance(saved, Tensor | parallel.Part)
    if tensor != isinstance(built, Tensor):
        return words(name, type(saved).__name__, type(built).__name__)
    if not tensor:
        return None
    if saved.shape != built.shape:
        return words(name, list(saved.shape), list(built.shape))
    both = saved.dtype.is_floating_point and built.dtype.is_floating_point
    if saved.dtype != built.dtype and (exact or not both):
        return words(name, saved.dtype, built.dtype)
    return None


def _listed(faults: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{kind}: {short_list(sorted(names), most=6)}" for kind, names in faults.items() if names)


def _memory(value: Any) -> object:
    """Identify the memory of a tensor. Tied weights share it, and a file often holds only one of their names."""
    if not isinstance(value, Tensor) or value.is_meta or not value.numel():
        return None
    return value.data_ptr(), value.shape, value.stride()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
