"""Load a model or its weights in a notebook, in a service, or in a fork's own classes, for example a teacher's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import checkpoint, registry, runs, system, trust
from savepoint.checkpoint import Checkpoint
from savepoint.config import InitSettings
from savepoint.errors import CheckpointError, ConfigError, UserError
from savepoint.weights import lineage
from savepoint.weights.matching import load, restore_model
from savepoint.weights.reading import Weights, load_checkpoint, of_checkpoint, read
from savepoint.weights.source import Source, find

EXPORT = "export.json"  # what an export says of itself
SOURCE = Path(__file__).resolve().parents[2]  # holds the packages savepoint and project


def load_model(query: str | Path, *, device: str | torch.device = "cpu", ema: bool = False) -> nn.Module:
    """Build the model of a run with the weights of one of its checkpoints, in evaluation mode.

    No generator of random numbers is changed. If the constructor of a task or a data set calls this, the run records
    the origin of the weights, and a resume of the run loads the very same weights.

    query: `<run>[@best|@last|@<step>|@<checkpoint>]` as on the command line, a checkpoint directory, or a directory
    that `python -m savepoint export` wrote.
    device: where the model is moved to. ema: load the exponential average of the weights, which a run with
    `trainer.ema_decay` has.
    Raises: UserError if nothing has that name, ConfigError if the config asks for a class that this repository does not
    allow, CheckpointError if the weights are damaged or do not fit.
    """
    text = str(query)
    source = _find(text)
    if isinstance(source, Path) and not (source / checkpoint.MANIFEST).exists():
        if ema:
            raise UserError(f"{text}: files hold one kind of weights. Export the average of a run with --ema.")
        model, weights = _exported(source, text)
        load(model, weights, InitSettings(), path="")
    else:
        loaded = load_checkpoint(source) if isinstance(source, runs.Found) else checkpoint.load(source)
        run = source.run.id if isinstance(source, runs.Found) else None
        weights = of_checkpoint(loaded, query=text, run=run, ema=ema)
        model = restored_model(loaded, source=SOURCE, ema=ema)
    lineage.note(weights.origin)
    return model.to(device)


def load_weights(
    model: nn.Module,
    query: str | Path,
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    rename: dict[str, str] | None = None,
    strict: bool = True,
) -> list[str]:
    """Load weights from a run or from safetensors files into a model that you have built.

    The origin of the weights is recorded as `load_model` records it. `include`, `exclude`, `rename` and `strict` mean
    what these keys of `init` mean in a config: see docs/weights.md.

    query: what `init_from` takes: a run, a `.safetensors` file, or a directory of them.
    Returns: a line each for what was left as it was built, what was left over, and what was converted.
    Raises: UserError if nothing has that name, ConfigError for a pattern that matches nothing, CheckpointError that
    lists all names that do not fit.
    """
    choice = InitSettings(include=include, exclude=exclude, rename=rename, strict=strict)
    weights = read(_find(str(query)), query=str(query))
    notes = load(model, weights, choice, path="")
    lineage.note(weights.origin)
    return notes


def make_model(config: dict[str, Any], *, source: Path) -> nn.Module:
    """Build the model of a config. source: the directory that holds the `project` package.

    Raises: ConfigError if it is no module, or has parameters without a shape.
    """
    model = trust.make(config["model"], path="model", source=source)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {config['model']['_target_']} is not a torch.nn.Module.")
    if lazy := [name for name, each in model.named_parameters() if isinstance(each, nn.UninitializedParameter)]:
        raise ConfigError(f"model: {lazy[0]} has no shape before the first batch, which is too late to restore it. "
                          "Give its module the size of its inputs, in place of a lazy one.")  # fmt: skip
    return model


def restored_model(loaded: Checkpoint, *, source: Path, ema: bool = False) -> nn.Module:
    """Build the model of a checkpoint on the CPU, in evaluation mode, as it was when training evaluated that state.

    The errors are those of `load_model`.
    """
    model = _built(trust.parse_config(loaded.config), source)
    restore_model(model, loaded)
    if ema:
        _load_average(model, loaded)
    begin_epoch(model, loaded.state)
    return model.eval()


def begin_epoch(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Call the model's `begin_epoch`, if it has one, with the epoch in which training evaluated this state.

    state: has the numbers `epoch` and `batch`.
    """
    epoch, batch = state.get("epoch"), state.get("batch")
    if isinstance(epoch, int) and (begin := getattr(model, "begin_epoch", None)):
        begin(max(0, epoch - (batch == 0)))


def _built(config: dict[str, Any], source: Path) -> nn.Module:
    if not isinstance(config.get("model"), dict):
        raise ConfigError("model: the config has no such group.")
    # The CPU, even if a run is comparing shapes on the meta device, as it does before it builds its own model.
    with system.rng.isolated(), registry.collecting(), torch.device("cpu"):
        return make_model(config, source=source)


def _load_average(model: nn.Module, loaded: Checkpoint) -> None:
    saved = loaded.state.get("averaged")
    if not isinstance(saved, dict):
        raise UserError(f"{loaded.path} has no averaged weights: its run was trained without trainer.ema_decay.")
    average = {name.removeprefix("module."): value for name, value in saved.items() if name.startswith("module.")}
    own = model.state_dict()
    wrong = [name for name, value in own.items() if isinstance(value, Tensor) and not _alike(average.get(name), value)]
    if wrong or average.keys() - own.keys():
        raise CheckpointError(f"{loaded.path}: its averaged weights do not fit the model.")
    model.load_state_dict(average)


def _alike(saved: Any, built: Tensor) -> bool:
    return isinstance(saved, Tensor) and saved.shape == built.shape and saved.dtype == built.dtype


def _exported(path: Path, query: str) -> tuple[nn.Module, Weights]:
    """Build the model of a directory that `export` wrote, and read its weights."""
    if not (path / runs.CONFIG).is_file():
        raise UserError(
            f"{query}: it has weights alone, and no {runs.CONFIG} that says which model they belong to. "
            "Build the model, then call savepoint.load_weights(model, path)."
        )
    facts: dict[str, Any] = {}
    if (path / EXPORT).is_file():
        facts = trust.parse_json(trust.read_file(path / EXPORT, at_most=trust.MAX_JSON), path / EXPORT)
    model = _built(runs.read_config(path), SOURCE)
    begin_epoch(model, facts)
    return model.eval(), read(path, query=query)


def _find(query: str) -> Source:
    """Find the weights that a query names. While a run is built again, find those that it was built with before.

    A relative path is looked for in the working directory, then in the repository.
    """
    before, repository = lineage.known(query), SOURCE.parent
    here, there = query.rpartition("@")[0] or query, repository / query
    path = str(there) if not Path(here).exists() and Path(str(there).rpartition("@")[0] or there).exists() else query
    if before is None or before.run is None:
        return find(path, repository, apart_from=lineage.being_built())
    try:
        found = find(path, repository)
    except UserError:
        found = None
    if not isinstance(found, runs.Found) or found.run.id != before.run:
        found = runs.find(before.run, repository)
    return runs.Found(found.run, before.checkpoint)
