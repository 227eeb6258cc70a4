"""The interface between a fork's model and data and the engine: a task turns a batch into a loss and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The result of a task for one batch.

    loss: 0-dim, the mean over the batch's samples, with its graph.
    samples: number of samples (or tokens) in that mean. Take it from shapes, so that nothing waits for the device.
    sums: detached 0-dim or small tensors on the device, added up over batches. Metrics are computed from them.
    """

    loss: Tensor
    samples: int
    sums: Mapping[str, Tensor]


class Task(Protocol):
    """Turns a model and a batch into a loss and metrics.

    metrics: the names that `compute` returns, so that `checkpoint.monitor` can be checked before training.
    """

    metrics: tuple[str, ...]

    def __call__(self, model: Callable[..., Any], batch: Any) -> Outcome:
        """Compute the loss of one batch. `model` may be a compiled wrapper: only call it."""
        ...

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """Compute the metrics of an epoch from its sums, which are on the CPU, and its number of samples."""
        ...
