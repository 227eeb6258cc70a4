"""Pictures of what a model predicts. Drawn without pyplot, which keeps every figure and may look for a display."""

from matplotlib.figure import Figure
from torch import Tensor

BLUE, GREY = "#1f6feb", "#9aa5b1"


def confusion_matrix(counts: Tensor) -> Figure:
    """Draw how often each class is taken for each other one.

    counts: (classes, classes), of samples: true classes down, predicted ones across.
    """
    figure = Figure(figsize=(6, 5.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{int(counts.trace())} of {int(counts.sum())} right")
    if len(counts) <= 20:
        axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
        for true, predicted in counts.nonzero().tolist():
            color = "white" if shares[true, predicted] > 0.5 else "black"
            count = int(counts[true, predicted])
            axes.text(predicted, true, str(count), ha="center", va="center", color=color, fontsize=8)
    return figure


def predicted_against_true(targets: Tensor, predictions: Tensor) -> Figure:
    """Draw a point for each sample, and the line on which a perfect model's would lie.

    targets, predictions: (samples,), in one unit.
    """
    figure = Figure(figsize=(5.6, 5.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    low, high = float(min(targets.min(), predictions.min())), float(max(targets.max(), predictions.max()))
    axes.plot([low, high], [low, high], color=GREY, linewidth=1)
    axes.scatter(targets.numpy(), predictions.numpy(), s=14, color=BLUE, alpha=0.6, linewidths=0)
    axes.set(xlabel="true", ylabel="predicted", title=f"{len(targets)} samples", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
