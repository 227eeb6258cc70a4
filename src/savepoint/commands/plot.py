"""Plot what runs logged: `python -m savepoint plot`, as a picture and in the terminal.

Only metrics.jsonl is read. pyplot is not used: it keeps every figure in memory, and may look for a display.
"""

import math
import warnings
from pathlib import Path

from savepoint import config, runs, trust
from savepoint.commands import options, tables
from savepoint.errors import UserError, short_list

USAGE = "usage: python -m savepoint plot <run> … [--keys train/loss,val/loss] [--to FILE.png]"
KEYS, TO = "train/loss,val/loss", "plot.png"
WIDTH, HEIGHT = 80, 15  # of the plot in the terminal: columns, and lines without those that explain it
SIGNS = "●○■□▲△◆◇"
LABEL_WIDTH = 9  # columns for the values at the left
STYLES = ("-", "--", ":", "-.")

Curve = tuple[str, int, int, list[tuple[int, float]]]  # label, number of the run, number of the key, (step, value)


def plot_runs(repository: Path, arguments: list[str]) -> int:
    """Draw the values of some keys against the step, for each run that is named. Returns: 0.

    arguments: as typed after `plot`.
    Raises: UserError if there is no such run, no such key, or nothing finite to draw, or the picture cannot be written.
    """
    given = options.parse(arguments, USAGE, values=("--keys", "--to"))
    to = Path(given.values.get("--to", TO))
    if to.suffix.lower() != ".png":
        raise UserError(f"--to {to}: the picture is a PNG. Give a name that ends in .png.")
    if not given.arguments:
        raise UserError(f"Which runs? {USAGE}")
    chosen = [_found(query, repository) for query in given.arguments]
    drawn = _curves(chosen, given.values.get("--keys", KEYS))
    try:
        _picture(to, _title(chosen[0]) if len(chosen) == 1 else "", drawn)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror}.") from error
    print(trust.printable("\n".join([*sketch(drawn), str(to)])))
    return 0


def _found(query: str, repository: Path) -> runs.Run:
    found = runs.find(query, repository)
    if found.checkpoint is not None:
        raise UserError(f"{query}: plot takes runs. This one is {found.run.id}.")
    return found.run


def _title(run: runs.Run) -> str:
    return tables.safe(f"{run.id} {run.record['name'] or ''}".strip())


def _curves(chosen: list[runs.Run], keys: str) -> list[Curve]:
    """Read the values of the keys. Raises: UserError if no run has logged a key that was asked for."""
    histories = [runs.read_history(run.metrics) for run in chosen]
    there = sorted({key for lines in histories for line in lines for key in line} - {"step", "epoch", "time"})
    asked = [key.strip() for key in keys.split(",") if key.strip()]
    # A run without validation has no val/loss, and nobody asked for it.
    if missing := [key for key in asked if key not in there and keys != KEYS]:
        what = f"{short_list(missing)}: not logged.{config.closest(missing[0], there)}"
        raise UserError(f"{what} There are: {short_list(there, most=12)}.")
    curves = []
    for number, (run, lines) in enumerate(zip(chosen, histories)):
        for index, key in enumerate(asked):
            points = [(line["step"], float(str(line[key]))) for line in lines if key in line]
            finite = [(int(str(step)), value) for step, value in points if math.isfinite(value)]
            label = key if len(chosen) == 1 else f"{_title(run)} {key}"
            if finite:
                curves.append((label, number, index, finite))
    if not curves:
        raise UserError(
            f"There is nothing to draw: {keys} has no finite value. Logged are: {short_list(there, most=12)}."
        )
    return curves


def _picture(path: Path, title: str, curves: list[Curve]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, number, index, points in curves:
        steps, values = zip(*points)
        # A colour for each run, a kind of line for each key; a single run has a colour for each key.
        color = f"C{(number if any(each[1] for each in curves) else index) % 10}"
        marker = "o" if len(points) <= 40 else ""
        axes.plot(
            steps, values, STYLES[index % 4], color=color, label=label.replace("$", r"\$"), marker=marker, markersize=3
        )
    if _logarithmic(curves):
        axes.set_yscale("log")
    axes.set_title(title.replace("$", r"\$"), loc="left")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about signs of a name that the font lacks
        figure.savefig(path, format="png")


def _logarithmic(curves: list[Curve]) -> bool:
    """Whether the values span more than a factor of 30. On a linear axis most of such a curve would look flat."""
    values = [value for *_, points in curves for _, value in points]
    return min(values) > 0 and max(values) > 30 * min(values)


def sketch(curves: list[Curve]) -> list[str]:
    """Draw the curves, each with a sign of its own, in 80 columns and 15 lines. Then comes a line for each sign."""
    scale = math.log10 if _logarithmic(curves) else float
    points = [[(step, scale(value)) for step, value in each[3]] for each in curves]
    steps, values = zip(*(pair for each in points for pair in each))
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    columns, rows = WIDTH - LABEL_WIDTH - 2, HEIGHT - 2
    grid = [[" "] * columns for _ in range(rows)]
    for sign, pairs in zip(_signs(len(points)), points):
        for step, value in pairs:
            column = round((step - left) / max(right - left, 1) * (columns - 1))
            row = round((high - value) / ((high - low) or 1.0) * (rows - 1))
            grid[row][column] = sign
    shown = {0: high, rows // 2: (low + high) / 2, rows - 1: low}
    labels = [
        f"{10 ** shown[row] if scale is math.log10 else shown[row]:.4g}" if row in shown else "" for row in range(rows)
    ]
    lines = [f"{label:>{LABEL_WIDTH}} │{''.join(line).rstrip()}" for label, line in zip(labels, grid)]
    lines.append(f"{'':>{LABEL_WIDTH}} └{'─' * columns}")
    ends = f"{left}{right:>{columns - len(str(left))}}"
    lines.append(f"{'step':>{LABEL_WIDTH}}  {ends}")
    return lines + [f"{sign} {each[0]}" for sign, each in zip(_signs(len(curves)), curves)]


def _signs(count: int) -> str:
    return SIGNS * (count // len(SIGNS) + 1)
