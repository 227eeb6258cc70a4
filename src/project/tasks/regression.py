"""Regression: one number for each sample."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from project.tasks.sums import total
from savepoint import Outcome
from savepoint.errors import ConfigError


class Regression:
    """The mean squared error as the loss; its root and the coefficient of determination as metrics.

    A batch is (inputs, targets) or (inputs, targets, scale): inputs go to the model as they are; targets (batch,) are
    floating; scale, () or (batch,), is what they were divided by, so that rmse is in the target's own units.
    The model returns predictions (batch, 1) or (batch,).
    """

    metrics: tuple[str, ...] = ("rmse", "r2")

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, ...]) -> Outcome:
        inputs, targets, *scales = batch
        if not targets.is_floating_point() or targets.dim() != 1:
            raise ConfigError(
                "task=regression: a target is one number with a fraction, and here it is "
                f"{targets.dtype} of shape {list(targets.shape[1:])}. Add data=diabetes, or data=csv for a table."
            )
        predictions = model(inputs)
        if predictions.numel() != targets.numel():
            raise ConfigError(
                f"task=regression: the model gives {list(predictions.shape[1:])} for each sample, and a target is one "
                "number. Add model.out_features=1."
            )
        predictions = predictions.view_as(targets)
        scale = scales[0] if scales else 1.0
        actual = targets * scale
        sums = {
            # Squared in the wide type, like all that is subtracted in `compute`.
            "squared_errors": total(_square(predictions.float() * scale - actual)),
            "targets": total(actual),
            "squared_targets": total(_square(actual)),
        }
        return Outcome(loss=mse_loss(predictions, targets), samples=len(targets), sums=sums)

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """The metrics of an epoch.

        rmse: in the target's units. r2: 1 - sum((prediction - target)²) / sum((target - mean)²), 1 at best, 0 for the
        mean as the prediction; NaN where all targets are equal.
        """
        errors, mean = sums["squared_errors"], sums["targets"] / samples
        spread = sums["squared_targets"] - samples * mean * mean
        r2 = 1 - errors / spread if spread > 0 else torch.tensor(torch.nan)
        return {"rmse": (errors / samples).sqrt().item(), "r2": r2.item()}

    def figures(self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Any]:
        """Draw the predictions of the validation set against its targets, in the target's units, around its mean."""
        from project.tasks.plots import predicted_against_true

        targets, predictions = [], []
        for inputs, actual, *scales in batches:
            scale = scales[0] if scales else 1.0
            targets.append((actual * scale).float().cpu())
            predictions.append((model(inputs).view_as(actual).float() * scale).cpu())
        return {"predicted_against_true": predicted_against_true(torch.cat(targets), torch.cat(predictions))}


def _square(values: Tensor) -> Tensor:
    values = values.detach()
    wide = values if values.device.type == "mps" else values.double()
    return wide * wide
