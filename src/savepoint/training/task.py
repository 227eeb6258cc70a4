"""What a batch means: the one interface between a fork's model and data, and the engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a task says of one batch.

    loss: 0-dim, the mean over the batch's samples, with its graph.
    samples: how many samples (or tokens) that mean is over; from shapes, so that nothing waits for the device.
    sums: what the metrics are computed from, on the device, detached: 0-dim or small tensors that add up over batches.
    """

    loss: Tensor
    samples: int
    sums: Mapping[str, Tensor]


class Task(Protocol):
    """Turns a model and a batch into a loss and metrics.

    metrics: the names that `compute` gives, known in advance, so that `checkpoint.monitor` can be checked at the start.
    """

    metrics: tuple[str, ...]

    def __call__(self, model: Callable[..., Any], batch: Any) -> Outcome:
        """The loss of one batch. `model` may be a compiled wrapper: only call it."""
        ...

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """The metrics of an epoch, from its sums (on the CPU) and its number of samples."""
        ...
