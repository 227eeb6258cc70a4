"""Write a model as a graph that needs no Python class, and compare its output with the model's own."""

import inspect
import logging
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from savepoint import training, trust
from savepoint.checkpoint import Checkpoint
from savepoint.errors import UserError

KINDS = ("pt2", "onnx")
# An output may differ by this much, relative to its largest value: another program adds in another order.
TOLERANCE = 1e-3
_MOST_INLINE = 1_500_000_000  # bytes; a larger ONNX file keeps its weights in a second one, since protobuf ends at 2 GB
# The first bytes of a pickle, and of a file of torch.save, which holds one. A tensor's values may begin so by chance.
_PICKLED = (b"\x80\x02", b"PK")
_VALUES = re.compile(r"/weights/weight_\d+$|/constants/tensor_\d+$")

Inputs = tuple[Any, ...]
Call = Callable[[Inputs, dict[str, Any]], Any]


def write(
    directory: Path, kinds: list[str], model: nn.Module, loaded: Checkpoint, *, source: Path
) -> dict[str, dict[str, Any]]:
    """Write `model.pt2` and `model.onnx`, load each again and compare it on a batch of validation.

    kinds: among KINDS. model: on the CPU, in evaluation mode. source: the directory that holds the `project` package.
    Returns: for each file the largest `difference` from the model's output, the number of `samples` compared, and
    `any_batch`, whether it takes another number of samples too.
    Raises: UserError if there are no data to trace the model with, a package is missing, the model cannot be traced, or
    the outputs differ.
    """
    config = trust.parse_config(loaded.config)
    settings = trust.check_config(config, source=source)
    calls = [training.example_call(config, settings, model, source=source, whole=whole) for whole in (True, False)]
    compared = {}
    for kind in kinds:
        path = directory / f"model.{kind}"
        inputs, keywords = calls[0]
        with torch.no_grad():
            run = _writing(kind, model, inputs, keywords, path)
            compared[path.name] = _compare(kind, run, model, calls)
    return compared


def _writing(kind: str, model: nn.Module, inputs: Inputs, keywords: dict[str, Any], path: Path) -> Call:
    """Write a graph. Returns: a function that runs the file that was written."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls deprecated functions of its own
            return (_write_pt2 if kind == "pt2" else _write_onnx)(model, inputs, keywords, path)
    except UserError:
        raise
    except Exception as error:  # whatever the tracer raises: it runs the fork's code and torch's compiler
        raise UserError(f"--{kind}: {type(model).__name__} cannot be traced: {_brief(error)}") from error


def _write_pt2(model: nn.Module, inputs: Inputs, keywords: dict[str, Any], path: Path) -> Call:
    program = torch.export.export(model, inputs, keywords, dynamic_shapes=_dynamic(model, inputs, keywords))
    # The example inputs would be stored as a pickle, the only one in the file.
    program.example_inputs = None
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        parts = [name for name in archive.namelist() if not _VALUES.search(name)]
        if any(archive.read(name)[:2] in _PICKLED for name in parts):
            raise UserError(f"--pt2: torch {torch.__version__} writes pickles into model.pt2. Use torch 2.13 or newer.")
    again = torch.export.load(path).module()
    return lambda inputs, keywords: again(*inputs, **keywords)


def _write_onnx(model: nn.Module, inputs: Inputs, keywords: dict[str, Any], path: Path) -> Call:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("--onnx needs three packages: pip install onnx onnxscript onnxruntime") from error
    # The exporter warns that torchvision is not installed. Nothing here needs it.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # Traced here, because torch 2.8 would fall back to recording the one path that these inputs take.
    program = torch.export.export(model, inputs, keywords, dynamic_shapes=_dynamic(model, inputs, keywords))
    torch.onnx.export(
        program,
        f=str(path),
        dynamo=True,
        external_data=size > _MOST_INLINE,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Inputs, keywords: dict[str, Any]) -> Any:
        leaves = pytree.tree_leaves((inputs, keywords))
        given = [value.detach().cpu().numpy() for value in leaves if isinstance(value, Tensor)]
        return [torch.from_numpy(each) for each in session.run(None, dict(zip(names, given, strict=True)))]

    return run


def _dynamic(model: nn.Module, inputs: Inputs, keywords: dict[str, Any]) -> Any:
    """Declare the first dimension of every input as one of any size, where the model allows that."""

    def first(value: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None

    arguments, named = pytree.tree_map(first, (inputs, keywords))
    if not named:
        return arguments
    names = list(inspect.signature(model.forward).parameters)
    return dict(zip(names, arguments)) | named


def _compare(kind: str, run: Call, model: nn.Module, calls: list[tuple[Inputs, dict[str, Any]]]) -> dict[str, Any]:
    (inputs, keywords), few = calls
    difference = _difference(model(*inputs, **keywords), run(inputs, keywords))
    if not difference <= TOLERANCE:
        raise UserError(
            f"--{kind}: the graph's output differs from the model's by {difference:.2g} of its largest value. "
            "A model whose path depends on its inputs cannot be written as a graph."
        )
    try:
        any_batch = _difference(model(*few[0], **few[1]), run(*few)) <= TOLERANCE
    except Exception:  # whatever the runtime raises for a shape that it was not built for
        any_batch = False
    samples = next((len(value) for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor) and value.dim()), 1)
    return {"difference": difference, "samples": samples, "any_batch": any_batch}


def _difference(own: Any, again: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest value; NaN if their structures differ."""
    ones, others = ([each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)] for value in (own, again))
    if len(ones) != len(others) or any(one.shape != other.shape for one, other in zip(ones, others)):
        return float("nan")
    worst = 0.0
    for one, other in zip(ones, others):
        if one.numel():
            scale = max(float(one.abs().max()), 1.0)
            worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
    return worst


def _brief(error: Exception) -> str:
    """Return an error in one line, without the colours and the advice that torch's exporters add."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    summary = text.partition("## Exception summary")[2].split("\n(Refer")[0]
    words = " ".join(summary.split()) or (lines[0] if lines else "")
    return f"{type(error).__name__}: {words[:500]}"
