"""Compare two runs or two checkpoints bit by bit, and list what differs."""

from typing import Any

import torch
from torch import Tensor

from savepoint import checkpoint, runs
from savepoint.checkpoint import split
from savepoint.runs import Run


def diff_runs(a: Run, b: Run) -> list[str]:
    """List the differences between two runs, of their newest sound checkpoints and metrics.jsonl; [] for equal runs.

    Run ids, provenance and values that depend on the clock are not compared.
    Raises: UserError if a metrics.jsonl cannot be read.
    """
    pair = [checkpoint.latest(run.checkpoints)[0] for run in (a, b)]
    if pair[0] is None or pair[1] is None:
        return [f"{run.directory}: no sound checkpoint" for run, one in zip((a, b), pair, strict=True) if one is None]
    found = [] if pair[0].path.name == pair[1].path.name else [f"checkpoint: {pair[0].path.name}, {pair[1].path.name}"]
    return found + diff_checkpoints(pair[0], pair[1]) + diff_histories(a, b)


def diff_checkpoints(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> list[str]:
    """List the differences between two checkpoints. Tensors are compared by dtype, shape and bits, values by text."""
    tensors, values = diff_contents(a, b)
    return tensors + values


def diff_contents(
    a: checkpoint.Checkpoint, b: checkpoint.Checkpoint, *, magnitudes: bool = False
) -> tuple[list[str], list[str]]:
    """List the differences between the tensors of two checkpoints, and those between all their other values.

    Between checkpoints of two versions of the format, only what both versions save is compared.
    magnitudes: add the largest difference of each tensor's values.
    """
    states = [a.state, b.state]
    if a.state["format"] != b.state["format"]:
        both = a.state.keys() & b.state.keys() - {"format"}
        states = [{key: each[key] for key in both} for each in states]
    (tensors_a, values_a), (tensors_b, values_b) = map(split, states)
    found = [each for pair in ((a.model, b.model), (tensors_a, tensors_b)) for each in _tensors(*pair, magnitudes)]
    return found, _values(values_a, values_b, "")


def _tensors(a: dict[str, Tensor], b: dict[str, Tensor], magnitudes: bool) -> list[str]:
    found = [f"{name}: only in one of the two" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        one, other = a[name], b[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            found.append(f"{name}: {one.dtype} {list(one.shape)}, {other.dtype} {list(other.shape)}")
        elif not torch.equal(_bits(one), _bits(other)):
            count = int((_bits(one) != _bits(other)).any(dim=1).sum())
            by = _magnitude(one, other) if magnitudes else ""
            found.append(f"{name}: {count} of {one.numel()} values differ{by}")
    return found


def _bits(tensor: Tensor) -> Tensor:
    """View a tensor as rows of bytes, one row for each value. Unlike its value, a NaN's bytes equal themselves."""
    return tensor.reshape(-1, 1).contiguous().view(torch.uint8)


def _magnitude(one: Tensor, other: Tensor) -> str:
    """Word the largest difference between two tensors. Pairs of values with a NaN are left out."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    distances = (one.to(wide) - other.to(wide)).abs()
    numbers = distances[~distances.isnan()]
    return f", by at most {numbers.max().item():.3g}" if numbers.numel() else ""


def _values(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        at = {key: f"{path}/{key}".lstrip("/") for key in sorted(a.keys() | b.keys())}
        found = [f"{at[key]}: only in one of the two" for key in at if key not in a or key not in b]
        return found + [each for key in at if key in a and key in b for each in _values(a[key], b[key], at[key])]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [found for i in range(len(a)) for found in _values(a[i], b[i], f"{path}/{i}")]
    # The text is compared as well: 0.0 == -0.0, and their bits differ.
    return [] if type(a) is type(b) and repr(a) == repr(b) else [f"{path}: {a!r}, {b!r}"]


def diff_histories(a: Run, b: Run, *, lines: int | None = None) -> list[str]:
    """List the differences between two metrics.jsonl, without what depends on the clock.

    lines: how many of each to compare; None for all.
    """
    lines_a, lines_b = _lines(a)[:lines], _lines(b)[:lines]
    if len(lines_a) != len(lines_b):
        return [f"metrics.jsonl: {len(lines_a)} lines, {len(lines_b)} lines"]
    pairs = enumerate(zip(lines_a, lines_b, strict=True), start=1)
    return [found for number, (x, y) in pairs for found in _values(x, y, f"metrics.jsonl line {number}")]


def _lines(run: Run) -> list[dict[str, object]]:
    """Read metrics.jsonl without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key != "time" and not key.startswith("system/")}
        for line in runs.read_history(run.metrics)
    ]
