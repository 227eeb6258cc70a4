"""Export a checkpoint's model for use elsewhere: weights, config, model card, and on request a graph without Python.

Everything in an export is loaded again and compared. Only then its directory appears, whole, under its name.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from savepoint import checkpoint, runs, system, trust, weights
from savepoint.checkpoint import Checkpoint
from savepoint.commands import card, graphs, options, places
from savepoint.errors import CheckpointError, UserError, short_list

USAGE = "usage: python -m savepoint export <run>[@best] --to DIR [--onnx] [--pt2] [--ema] [--json]"
FLAGS = ("--onnx", "--pt2", "--ema", "--json")


def export_model(repository: Path, arguments: list[str]) -> int:
    """Write the export that is asked for, and print what is in it. Returns: the exit code.

    arguments: as typed after `export`.
    Raises: UserError for a wrong argument, for a directory that exists, and for a model that cannot be exported.
    """
    given = options.parse(arguments, USAGE, flags=FLAGS, values=("--to",))
    query = given.run()
    if not given.values.get("--to"):
        raise UserError(f"Where to? {USAGE}")
    to = Path(given.values["--to"])
    if os.path.lexists(to):
        raise UserError(f"{to} exists already. Give the name of a new directory.")
    loaded, run = places.load(query, repository)
    hidden = to.absolute().with_name(f".tmp-{to.name}-{os.getpid()}")
    try:
        hidden.mkdir(parents=True)
        facts = _write(hidden, given.flags, run, loaded, source=repository / "src")
        system.files.patiently(os.rename, hidden, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if "--json" in given.flags:
        print(json.dumps({"directory": str(to.absolute()), **facts}))
    else:
        _print(to, facts)
    return 0


def _write(
    directory: Path, flags: frozenset[str], run: runs.Run | None, loaded: Checkpoint, *, source: Path
) -> dict[str, Any]:
    """Write every file of an export. Returns: what export.json says."""
    ema = "--ema" in flags
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
    if wanted := [kind for kind in graphs.KINDS if f"--{kind}" in flags]:
        facts["compared"] = graphs.write(directory, wanted, model, loaded, source=source)
        (directory / weights.EXPORT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    text = card.write(run, loaded, facts, model=model)
    (directory / "README.md").write_text(text, encoding="utf-8")
    return facts


def _write_weights(path: Path, model: nn.Module, loaded: Checkpoint, *, ema: bool) -> None:
    """Copy the checkpoint's file byte for byte, or write a file of the averaged weights.

    If several ranks have written the weights in parts, the file is the one that one process would have written.
    """
    entries = model.state_dict()
    if outside := [name for name, value in entries.items() if not _storable(name, value)]:
        raise UserError(
            f"No safetensors file can hold {short_list(outside)} of this model, so an export would not be whole. "
            f"Load it from its checkpoint: savepoint.load_model({str(loaded.path)!r})."
        )
    if not ema:
        first = checkpoint.tensor_files(checkpoint.digests(loaded.path))[checkpoint.MODEL][0]
        if first == checkpoint.MODEL:
            shutil.copyfile(loaded.path / first, path)
        else:
            metadata = checkpoint.read_header((loaded.path / first).read_bytes(), name=first).metadata
            system.files.write(path, checkpoint.Plan(loaded.model, metadata).chunks())
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
