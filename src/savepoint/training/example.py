"""Keep one call of the model on a validation sample with the run: what the model takes and gives.

It is a safetensors file, which a tracker turns into the model's signature.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

MOST_BYTES = 16_000_000  # of a sample; nobody looks at a larger example

Call = tuple[dict[str, Any], Any]  # the arguments by name, and what the model returned


@contextmanager
def noting(model: nn.Module) -> Iterator[list[Call]]:
    """Collect the calls of a model in this block. Yields: the list of them."""
    calls: list[Call] = []
    try:
        names = inspect.signature(model.forward)
    except (ValueError, TypeError):  # a function that is not written in Python
        yield calls
        return

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        calls.append((dict(names.bind(*arguments, **keywords).arguments), output))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def pack(calls: list[Call]) -> bytes | None:
    """Return a safetensors file of the first sample of the last call: `inputs/<name>` and `outputs/<name>`.

    A single output is called `output`; those of a tuple are `output_0` and so on. The metadata has the shapes as JSON,
    under `shapes`. A size in them is -1 if it is the number of samples, or differs between the calls.
    calls: of the same model. Returns: None if the model takes or gives anything but tensors of at least one dimension,
    or more than MOST_BYTES of them.
    """
    found = [_named(call) for call in calls]
    if not found or any(each is None or each.keys() != (found[-1] or {}).keys() for each in found):
        return None
    tensors, shapes = {}, {}
    for name, value in (found[-1] or {}).items():
        sizes = [[*each[name].shape] for each in found if each is not None]
        if value.dim() == 0 or len({len(each) for each in sizes}) != 1:
            return None
        same = [len({*each}) == 1 for each in zip(*sizes)]
        shapes[name] = [-1, *(size if alike else -1 for size, alike in list(zip(value.shape, same))[1:])]
        half = value.is_floating_point() and value.dtype.itemsize < 4  # from autocasting
        tensors[name] = value[:1].detach().to("cpu", torch.float32 if half else value.dtype)
    if sum(each.nbytes for each in tensors.values()) > MOST_BYTES:
        return None
    plain = {name: each.clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}
    return save(plain, {"shapes": json.dumps(shapes)})


def _named(call: Call) -> dict[str, Tensor] | None:
    """Return all tensors of a call by name; None if the call has anything else."""
    arguments, output = call
    if isinstance(output, Tensor):
        outputs = {"output": output}
    elif isinstance(output, tuple | list):
        outputs = {f"output_{number}": each for number, each in enumerate(output)}
    elif hasattr(output, "items"):
        outputs = dict(output.items())
    else:
        return None
    named = {f"inputs/{name}": value for name, value in arguments.items() if value is not None}
    named |= {f"outputs/{name}": value for name, value in outputs.items() if value is not None}
    return named if all(map(_plain, named.values())) else None


def _plain(value: Any) -> bool:
    strided = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    return strided and not value.is_complex()
