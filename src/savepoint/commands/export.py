"""Export a checkpoint's model for use elsewhere: weights, config, model card, and on request a graph without Python.

A directory appears under its name whole or not at all, once everything in it was loaded again and compared.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import checkpoint, runs, system, trust, weights
from savepoint.checkpoint import Checkpoint
from savepoint.commands import card, graphs, places
from savepoint.errors import CheckpointError, UserError, short_list

USAGE = "usage: python -m savepoint export <run>[@best] --to DIR [--onnx] [--pt2] [--ema] [--json]"
FLAGS = ("--onnx", "--pt2", "--ema", "--json")


@dataclass(frozen=True)
class _Request:
    query: str
    to: Path
    flags: frozenset[str]


def export_model(repository: Path, arguments: list[str]) -> int:
    """Write the export that is asked for, and say what is in it. Returns: the exit code.

    arguments: as typed after `export`.
    Raises: UserError for a wrong argument, for a directory that exists, and for a model that cannot be exported.
    """
    if {"-h", "--help"} & {*arguments}:
        print(USAGE)
        return 0
    request = _parse(arguments)
    if os.path.lexists(request.to):
        raise UserError(f"{request.to} exists already. Give the name of a new directory.")
    loaded, run = places.load(request.query, repository)
    hidden = request.to.absolute().with_name(f".tmp-{request.to.name}-{os.getpid()}")
    try:
        hidden.mkdir(parents=True)
        facts = _write(hidden, request, run, loaded, source=repository / "src")
        system.files.patiently(os.rename, hidden, request.to)
    except OSError as error:
        raise UserError(f"{request.to} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if "--json" in request.flags:
        print(json.dumps({"directory": str(request.to.absolute()), **facts}))
    else:
        _print(request.to, facts)
    return 0


def _parse(arguments: list[str]) -> _Request:
    to, rest, flags, left = None, [], set(), [*arguments]
    while left:
        match left.pop(0):
            case "--to" if left:
                to = left.pop(0)
            case argument if argument.startswith("--to="):
                to = argument.removeprefix("--to=")
            case argument if argument in FLAGS:
                flags.add(argument)
            case argument if argument.startswith("-"):
                raise UserError(f"export has no option {argument}. {USAGE}")
            case argument:
                rest.append(argument)
    if len(rest) != 1:
        raise UserError(f"Which run? {USAGE}")
    if not to:
        raise UserError(f"Where to? {USAGE}")
    return _Request(rest[0], Path(to), frozenset(flags))


def _write(
    directory: Path, request: _Request, run: runs.Run | None, loaded: Checkpoint, *, source: Path
) -> dict[str, Any]:
    """Write every file of an export. Returns: what export.json says."""
    ema = "--ema" in request.flags
    model = weights.restored_model(loaded, source=source, ema=ema)
    _write_weights(directory / checkpoint.MODEL, model, loaded, ema=ema)
    (directory / runs.CONFIG).write_text(loaded.config, encoding="utf-8")
    (directory / checkpoint.PROVENANCE).write_text(json.dumps(loaded.provenance, indent=1), encoding="utf-8")
    state = loaded.state
    facts = {
        "run": loaded.provenance.get("run_id") if run is None else run.id,
        "checkpoint": loaded.path.name,
        "ema": ema,
        **{key: state[key] for key in ("epoch", "step", "batch")},
        "compared": {},
    }
    (directory / weights.EXPORT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    again = weights.load_model(directory)
    own = model.state_dict()
    if differing := [name for name, value in again.state_dict().items() if not _equal(value, own[name])]:
        raise CheckpointError(f"The weights were written and differ when loaded again: {short_list(differing)}.")
    if wanted := [kind for kind in graphs.KINDS if f"--{kind}" in request.flags]:
        facts["compared"] = graphs.write(directory, wanted, model, loaded, source=source)
        (directory / weights.EXPORT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    text = card.write(run, loaded, facts, model=model)
    (directory / "README.md").write_text(text, encoding="utf-8")
    return facts


def _write_weights(path: Path, model: nn.Module, loaded: Checkpoint, *, ema: bool) -> None:
    """Copy the checkpoint's file, byte for byte; write another one for averaged weights."""
    entries = model.state_dict()
    if outside := [name for name, value in entries.items() if not _storable(name, value)]:
        raise UserError(
            f"No safetensors file can hold {short_list(outside)} of this model, so an export would not be whole. "
            f"Load it from its checkpoint: savepoint.load_model({str(loaded.path)!r})."
        )
    if not ema:
        shutil.copyfile(loaded.path / checkpoint.MODEL, path)
        return
    from safetensors.torch import save_file

    # Tied weights share memory, which the library refuses to write twice.
    save_file({name: value.detach().clone().contiguous() for name, value in entries.items()}, path, {"format": "pt"})


def _storable(name: str, value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in checkpoint.NAMES
    return dense and checkpoint.nameable(name)


def _equal(one: Any, other: Any) -> bool:
    bits = torch.equal(one, other) or bool((one.isnan() & other.isnan() | (one == other)).all())
    return one.dtype == other.dtype and bits


def _print(to: Path, facts: dict[str, Any]) -> None:
    print(f"run {facts['run']}  {facts['checkpoint']}  {'averaged weights' if facts['ema'] else 'weights'}")
    print(f"  {to / checkpoint.MODEL}  loaded again, the same bits")
    for name, compared in facts["compared"].items():
        sizes = "any number of samples" if compared["any_batch"] else f"{compared['samples']} samples at a time"
        print(f"  {to / name}  loaded again, differs by at most {compared['difference']:.2g}; takes {sizes}")
    print(f"  {to / 'README.md'}  the model card")
    print(f"to use it: savepoint.load_model({trust.shown(str(to))})")
