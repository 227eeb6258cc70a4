"""An exponential average of a model's weights, for `trainer.ema_decay`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from savepoint import parallel
from savepoint.config import Settings


def make_average(model: nn.Module, settings: Settings) -> "Average | None":
    """Build the average of the model's weights that `trainer.ema_decay` asks for; None if it asks for none."""
    decay = settings.trainer.ema_decay
    return None if decay is None else Average(model, decay)


class Average(swa_utils.AveragedModel):
    """An exponential average of a model's weights and buffers that is updated without waiting for the device.

    torch's own update copies its counter to the device and waits for the copy, though this average never reads it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        average: Any = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        # Buffers too: batch norm's statistics belong to the weights that they were measured with.
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self._average = average

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards `model`. The first update copies the model."""
        if self.n_averaged == 0:
            super().update_parameters(model)
            return
        kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for mine, theirs in zip(_tensors(self.module), _tensors(model), strict=True):
            averages, values = kinds.setdefault(mine.dtype, ([], []))
            averages.append(parallel.own(mine.detach()))
            values.append(parallel.own(theirs.detach()))
        for averages, values in kinds.values():
            self._average(averages, values, None)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
