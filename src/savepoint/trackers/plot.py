"""Draw loss.png, a run's losses and learning rate in one picture.

pyplot is not used, because it keeps every figure in memory and may look for a display.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Series = Sequence[tuple[int, float]]  # (step, value), in training order

KEYS = ("train/loss", "val/loss", "lr")
_TRAIN, _VAL, _LR, _INK, _GRID = "#9aa5b1", "#1f6feb", "#b45309", "#24292f", "#e5e7eb"


def draw(path: Path, *, title: str, series: Mapping[str, Series]) -> bool:
    """Draw the losses above and the learning rate below, against the step.

    series: key -> series; keys that are not in KEYS are ignored. Returns: False if there is no finite loss to draw yet.
    """
    finite = {key: [pair for pair in series.get(key, ()) if math.isfinite(pair[1])] for key in KEYS}
    if not finite["train/loss"] and not finite["val/loss"]:
        return False
    figure = Figure(figsize=(8, 5.6), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold", color=_INK)
    _line(losses, finite["train/loss"], color=_TRAIN, label="train/loss")
    _line(losses, finite["val/loss"], color=_VAL, label="val/loss")
    _mark_best(losses, finite["val/loss"])
    _line(rates, finite["lr"], color=_LR, label="lr")
    _scale(losses, [value for key in ("train/loss", "val/loss") for _, value in finite[key]])
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes, label in ((losses, "loss"), (rates, "lr")):
        axes.set_ylabel(label, color=_INK)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK, labelsize=9)
    losses.legend(frameon=False, loc="upper right")
    rates.set_xlabel("step", color=_INK)
    figure.savefig(path)
    return True


def _line(axes: Axes, pairs: Series, *, color: str, label: str) -> None:
    if pairs:
        marker = "o" if len(pairs) <= 40 else ""
        steps, values = zip(*pairs, strict=True)
        axes.plot(steps, values, color=color, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_best(axes: Axes, pairs: Series) -> None:
    if pairs:
        step, value = min(pairs, key=lambda pair: pair[1])
        label = f"best val/loss {value:.4g} at step {step}"
        axes.plot([step], [value], linestyle="", marker="*", markersize=14, color="#d1242f", zorder=5, label=label)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic if the loss falls more than 30-fold: on a linear axis most of it would look flat."""
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
