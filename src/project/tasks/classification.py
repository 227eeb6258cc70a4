"""Classification: one class for each sample."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from savepoint import Outcome
from savepoint.errors import ConfigError


class Classification:
    """Cross entropy as the loss, accuracy as the metric.

    A batch is (inputs, targets): inputs go to the model as they are; targets (batch,) int64 are classes from 0.
    The model returns logits (batch, classes), unnormalised.

    label_smoothing: the share of each target spread over all classes, 0..1. Source: Szegedy et al. 2016, section 7.
    """

    metrics: tuple[str, ...] = ("accuracy",)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be between 0 and 1")
        self.label_smoothing = label_smoothing

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        inputs, targets = batch[:2]
        if targets.is_floating_point() or targets.dim() != 1:
            raise ConfigError(
                "task=classification: a target is one class (int64), and here it is "
                f"{targets.dtype} of shape {list(targets.shape[1:])}. For numbers add task=regression, for text "
                "task=language_model."
            )
        logits = model(inputs)
        loss = cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        # Counted on the device and read once in an epoch: `.item()` here would make a GPU wait at every step.
        correct = (logits.argmax(dim=1) == targets).count_nonzero()
        return Outcome(loss=loss, samples=len(targets), sums={"correct": correct})

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """The metrics of an epoch. accuracy: 0..1."""
        return {"accuracy": sums["correct"].item() / samples}

    def figures(self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Draw the confusion matrix of the validation set."""
        from project.tasks.plots import confusion_matrix

        pairs, classes = [], 0
        for inputs, targets, *_ in batches:
            logits = model(inputs)
            classes = max(classes, logits.shape[1])
            # Each pair of classes as one number. Counted on the CPU: no GPU counts them in a fixed order.
            pairs.append((targets * logits.shape[1] + logits.argmax(dim=1)).cpu())
        counts = torch.cat(pairs).bincount(minlength=classes**2).view(classes, classes)
        return {"confusion_matrix": confusion_matrix(counts)}
