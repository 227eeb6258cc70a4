"""Declare the interface between a fork and the engine: a task turns a batch into a loss and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
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

    def add_to(self, sums: dict[str, Tensor]) -> None:
        """Add the loss of all samples and the sums to running sums, on the device: reading them would wait for it."""
        if "loss" not in sums:
            wide = torch.float32 if self.loss.device.type == "mps" else torch.float64
            sums["loss"] = torch.zeros((), dtype=wide, device=self.loss.device)
        sums["loss"].add_(self.loss.detach(), alpha=self.samples)  # multiplies in the wider type
        for name, value in self.sums.items():
            if name in sums:
                sums[name] += value
            else:
                sums[name] = value.clone()


class Task(Protocol):
    """Turns a model and a batch into a loss and metrics.

    A task may also have these methods, each used only if it is there:

    `update(step, batch) -> Outcome` makes an update itself, with several losses and optimizers: see `savepoint.Step`.
    Then `__call__` measures one batch of validation.

    `evaluate(model, batches) -> dict[str, float]` makes a whole evaluation itself, for metrics that are no sums over
    samples, such as AUROC. The model is in evaluation mode, the batches are on its device, no gradients are computed,
    and random draws change no generator of training. The values are logged under `val/`. Return `loss` too if a
    monitor is to follow it.

    `figures(model, batches) -> dict[str, Figure | image | str]` draws what the model predicts, under the same
    conditions, every `trainer.figures_every_n_epochs`. It returns matplotlib figures, images, (height, width) or (1 or
    3, height, width) as uint8 or as floats in 0..1, and texts.

    metrics: the names that `compute` returns, so that `checkpoint.monitor` can be checked before training.
    """

    metrics: tuple[str, ...]

    def __call__(self, model: Callable[..., Any], batch: Any) -> Outcome:
        """Compute the loss of one batch. `model` may be a compiled wrapper: only call it."""
        ...

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """Compute the metrics of an epoch from its sums, which are on the CPU, and its number of samples."""
        ...
