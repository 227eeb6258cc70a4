"""How long an epoch takes to begin, and to go on in its middle, and the memory for that. `python benchmarks/data.py`

Savepoint's batches against torch's DataLoader(shuffle=True) and torchdata's StatefulDataLoader, from nothing to the
first batch, for data sets of 10^4 to 10^10 samples. A sample is its own number, so the order is all that can cost much.
Savepoint loads for 2 ms before it hands out the first batch: the next hundred batches are ready then.

In the middle, Savepoint is asked for the batch with that number. The StatefulDataLoader loads the state that it had
there. The DataLoader has no such state, and goes through the batches before, as a script without a sampler of its own
would. Each measurement is a process of its own, in turns; what needs more than a minute or 8 GB is left out. Memory is
what the peak of the process's resident memory grows by.

torchdata is no dependency of Savepoint: `pip install torchdata` for its column.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint.config import DataSettings  # noqa: E402
from savepoint.data import Batches  # noqa: E402

SAVEPOINT, TORCH, TORCHDATA = "Savepoint", "DataLoader", "StatefulDataLoader"
SIZES = (10**4, 10**6, 10**7, 5 * 10**7, 10**8, 10**9, 10**10)
BATCH = 20
SECONDS, BYTES = 60, 8 * 10**9  # that a process may take
INDEX = 48  # bytes of a shuffled index: in torch's tensor, in a list, and the number itself
Cell = tuple[float, float]  # seconds and megabytes


class Numbers:
    """Each sample is its own number."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> int:
        return index


def savepoint(samples: int, start: int, state: Path | None) -> Iterator[Any]:
    settings = DataSettings(batch_size=BATCH)
    return Batches(Numbers(samples), split="train", settings=settings, seed=0).epoch(0, start=start)


def plain(samples: int, start: int, state: Path | None) -> Iterator[Any]:
    loader: Iterable[Any] = DataLoader(Numbers(samples), batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
    return islice(iter(loader), start, None)


def stateful(samples: int, start: int, state: Path | None) -> Iterator[Any]:
    """state: a file that has the loader's state before batch `start`, and is written if it is not there."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(Numbers(samples), batch_size=BATCH, shuffle=True)
    if state is not None and not state.exists():
        for _ in islice(loader, start):
            pass
        torch.save(loader.state_dict(), state)
    elif state is not None:
        loader.load_state_dict(torch.load(state))
    return iter(loader)


CONTENDERS: dict[str, Callable[[int, int, Path | None], Iterator[Any]]] = {
    SAVEPOINT: savepoint,
    TORCH: plain,
    TORCHDATA: stateful,
}


def once(name: str, samples: int, start: int, state: Path | None) -> None:
    """Print the seconds and megabytes from nothing to the first batch, in this process."""
    make = CONTENDERS[name]
    next(make(100, 0, None))  # torch and NumPy prepare themselves at their first use
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    next(make(samples, start, state))
    seconds = time.perf_counter() - begun
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))


def measured(name: str, samples: int, start: int, state: Path | None) -> Cell | None:
    """Measure in a process of its own. Returns: None if it takes longer than a minute."""
    arguments = [name, str(samples), str(start), str(state or "")]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--once", *arguments],
            stdout=subprocess.PIPE,
            check=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def row(samples: int, names: list[str], *, middle: bool, turns: int, folder: Path) -> dict[str, Cell | None]:
    """Measure each contender in turns. Returns: medians, None for a contender that needs more than it may."""
    start = samples // BATCH // 2 if middle else 0
    states = {TORCHDATA: folder / f"{samples}.pt"} if middle else {}
    found: dict[str, list[Cell]] = {name: [] for name in names if name == SAVEPOINT or samples * INDEX <= BYTES}
    for name in [name for name in found if name in states]:
        if measured(name, samples, start, states[name]) is None:  # writes the state
            del found[name]
    for _ in range(turns):
        for name in list(found):
            cell = measured(name, samples, start, states.get(name))
            if cell is None:
                del found[name]
            else:
                found[name].append(cell)
    return {
        name: (statistics.median(one[0] for one in found[name]), statistics.median(one[1] for one in found[name]))
        if name in found
        else None
        for name in names
    }


def table(title: str, rows: dict[int, dict[str, Cell | None]]) -> list[str]:
    names = list(next(iter(rows.values())))
    lines = [
        f"| {title} | {' | '.join(names)} | {' | '.join(f'{name} / {SAVEPOINT}' for name in names[1:])} |",
        "|---" * (2 * len(names)) + "|",
    ]
    for samples, cells in rows.items():
        own = cells[SAVEPOINT]
        assert own is not None
        times = (ratio(cell[0] / own[0]) if (cell := cells[name]) else "" for name in names[1:])
        lines.append(f"| {samples:,} | {' | '.join(map(shown, cells.values()))} | {' | '.join(times)} |")
    return lines


def ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def shown(cell: Cell | None) -> str:
    return "over a minute or 8 GB" if cell is None else f"{1e3 * cell[0]:,.1f} ms, {cell[1]:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of samples")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        name, samples, start, state = given.once
        once(name, int(samples), int(start), Path(state) if state else None)
        return
    names = [SAVEPOINT, TORCH]
    if importlib.util.find_spec("torchdata"):
        names.append(TORCHDATA)
    else:
        print("without torchdata's StatefulDataLoader: pip install torchdata", file=sys.stderr)
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; batches of {BATCH}, "
          f"median of {given.turns} turns")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for title, middle in (("start", False), ("resume", True)):
            about: dict[str, Any] = {"middle": middle, "turns": given.turns, "folder": Path(folder)}
            print("", *table(title, {samples: row(samples, names, **about) for samples in given.sizes}), sep="\n")


if __name__ == "__main__":
    main()
