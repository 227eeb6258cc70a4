"""Write and read a whole tensor file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from savepoint import system, trust
from savepoint.checkpoint.tensorfile import Plan, Written, read_header, read_tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    plan = Plan(tensors, metadata)
    return Written(size=system.files.write(path, plan.chunks()), sha256=plan.chunks().sha256())


def read(data: trust.Memory, *, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = read_header(data, name=name)
    return read_tensors(data, header, name=name), header.metadata
