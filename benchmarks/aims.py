"""What checkpoint.py aims at, and how near its measurements come: as tables, and as a plot."""

import statistics
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

SAVE, TORCH_SAVE, SAFE_SAVE, RAW = "durable save", "torch.save + fsync", "safetensors + fsync", "raw write + fsync"
STALL, COPY = "stall of an async save", "one copy in memory"
LOAD, TORCH_LOAD, SAFE_LOAD = "verified load", "torch.load", "safetensors load_file"
ASYNC, SYNC, STATE, MEGABYTE = "peak memory, async", "peak memory, sync", "the state", "1 MB"
TIMED = (SAVE, TORCH_SAVE, SAFE_SAVE, RAW, STALL, COPY, LOAD, TORCH_LOAD, SAFE_LOAD)
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
Measured = dict[str, list[float]]  # seconds, one for each round; of memory, bytes


@dataclass(frozen=True)
class Aim:
    """`ours` should be at most so many times `theirs`. small: for the many small tensors, and only for them."""

    ours: str
    theirs: str
    at_most: float
    small: bool = False


AIMS = (
    Aim(SAVE, TORCH_SAVE, 0.75),
    Aim(SAVE, RAW, 1.15),
    Aim(STALL, COPY, 1.3),
    Aim(STALL, TORCH_SAVE, 0.2),
    Aim(LOAD, TORCH_LOAD, 1.0),
    Aim(ASYNC, STATE, 1.05),
    Aim(SYNC, MEGABYTE, 64),
    Aim(SAVE, SAFE_SAVE, 2.0, small=True),
    Aim(LOAD, SAFE_LOAD, 2.0, small=True),
)


def ratios(measured: Measured, aim: Aim) -> list[float]:
    return [ours / theirs for ours, theirs in zip(measured.get(aim.ours, []), measured[aim.theirs])]


def spread(values: list[float], scale: float = 1) -> str:
    shown = [value * scale for value in (statistics.median(values), min(values), max(values))]
    digits = 0 if shown[0] >= 100 else 1 if shown[0] >= 10 else 2
    middle, least, most = (f"{value:.{digits}f}" for value in shown)
    return middle if len(values) == 1 else f"{middle} ({least} … {most})"


def judged(size: str, measured: Measured, aim: Aim) -> str:
    values = ratios(measured, aim)
    if not values:
        return "–"
    met = ("✓ " if statistics.median(values) <= aim.at_most else "✗ ") if aim.small == size.isdecimal() else ""
    return met + spread(values)


def tables(results: dict[str, Measured]) -> str:
    """Ratios beside their aims, then what they are ratios of."""
    titles = [called(size) for size in results]
    lines = [
        "Median (least … most) of the ratios. ✓: the aim is met, ✗: it is not, neither: there is none.\n",
        row("ratio", "aim", *titles),
        row(*["---"] * (2 + len(titles))),
    ]
    for aim in AIMS:
        ratio = f"{aim.ours} / {aim.theirs}"
        lines.append(row(ratio, f"≤ {aim.at_most:g}", *(judged(size, one, aim) for size, one in results.items())))
    lines += ["\nMilliseconds, median (least … most).\n", row("", *titles), row(*["---"] * (1 + len(titles)))]
    for name in TIMED:
        lines.append(row(name, *(spread(one[name], 1e3) for one in results.values())))
    return "\n".join(lines)


def in_bytes(size: str) -> int:
    return int(float(size[:-2]) * UNITS[size[-2:]])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def called(size: str) -> str:
    return f"{int(size):,} tensors" if size.isdecimal() else f"{size[:-2]} {size[-2:]}"


def plot(results: dict[str, Measured], title: str) -> Figure:
    """A panel for each thing measured: its ratios, median and least to most, beside their aims as dashed lines."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    *panels, last = figure.subplots(2, 3).flat
    sized = {size: measured for size, measured in results.items() if not size.isdecimal()}
    for axes, ours in zip(panels, (SAVE, STALL, LOAD, ASYNC, SYNC)):
        axes.set(title=ours, xscale="log", xlabel="model and AdamW state")
        axes.set_xticks([in_bytes(size) for size in sized], [called(size) for size in sized])
        axes.set_xticks([], minor=True)
        for colour, aim in enumerate(aim for aim in AIMS if aim.ours == ours and not aim.small):
            curve(axes, sized, aim, f"C{colour}")
    for size in [size for size in results if size.isdecimal()]:
        bars(last, results[size], called(size))
    for axes in panels[:3]:  # from a tenth to ten times as long
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in figure.axes:
        axes.margins(x=0.2, y=0.15)  # room for the aims at the right
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in [*panels[3:], last]:
        axes.set_ylim(0, axes.get_ylim()[1])
    return figure


def curve(axes: Axes, sized: dict[str, Measured], aim: Aim, colour: str) -> None:
    found = {in_bytes(size): ratios(measured, aim) for size, measured in sized.items()}
    points = [(size, statistics.median(values), min(values), max(values)) for size, values in found.items() if values]
    if points:
        sizes, middle, least, most = zip(*points)
        below, above = ([abs(a - b) for a, b in zip(middle, ends)] for ends in (least, most))
        axes.errorbar(sizes, middle, (below, above), color=colour, marker="o", capsize=3, label=f"/ {aim.theirs}")
        axes.legend(loc="best", fontsize="small", framealpha=0.9)
    aimed(axes, aim, colour)


def bars(axes: Axes, measured: Measured, title: str) -> None:
    small = [aim for aim in AIMS if aim.small]
    found = [ratios(measured, aim) for aim in small]
    middle = [statistics.median(values) for values in found]
    ends = [[abs(one - end(values)) for one, values in zip(middle, found)] for end in (min, max)]
    axes.set_title(title)
    axes.bar([f"{aim.ours}\n/ {aim.theirs}" for aim in small], middle, 0.4, yerr=ends, capsize=3)
    aimed(axes, small[0], "C0")


def aimed(axes: Axes, aim: Aim, colour: str) -> None:
    axes.axhline(aim.at_most, color=colour, linestyle="--", linewidth=1)
    place, where = axes.get_yaxis_transform(), {"ha": "right", "va": "bottom", "fontsize": "small"}
    axes.text(1, aim.at_most, f"aim ≤ {aim.at_most:g}", color=colour, transform=place, **where)
