"""Write tables, sizes and times as people read them."""

import datetime
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from savepoint import trust

# rich lays out about 500 rows a second, which is too slow for the runs of a year.
MOST_ROWS = 100


def write(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Print a table: a rich one on a terminal, aligned text in a pipe and for many rows. Empty columns are left out.

    right: the columns that are aligned to the right. Cells may hold a stranger's text.
    """
    cells = [row if "".join(row).isprintable() else [safe(cell) for cell in row] for row in rows]
    kept = [index for index in range(len(header)) if any(row[index] for row in cells)]
    names = [header[index] for index in kept]
    table = [[row[index] for index in kept] for row in cells]
    if sys.stdout.isatty() and len(table) <= MOST_ROWS:
        _rich(names, table, right)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(line[:width] for line in lines(names, table, right=right)))


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> list[str]:
    """Align a table as text.

    >>> lines(["name", "size"], [["a", "9 kB"], ["long", "10 kB"]], right=frozenset({"size"}))
    ['name   size', 'a      9 kB', 'long  10 kB']
    """
    table = [header, *rows]
    formats = []
    for index, name in enumerate(header):
        width = max(len(row[index]) for row in table)
        formats.append(f"{{:{'>' if name in right else '<'}{width}}}")
    return ["  ".join(formats).format(*row).rstrip() for row in table]


def safe(cell: str) -> str:
    """Make a stranger's text one line that a terminal can print."""
    return trust.printable(cell).replace("\n", " ")


def _rich(names: list[str], rows: list[list[str]], right: frozenset[str]) -> None:
    from rich import box, console, text
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        # The first column identifies a row, so it is never cut.
        drawn.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=True,
            min_width=max(len(row[names.index(name)]) for row in rows) if name == names[0] else None,
        )
    for row in rows:
        drawn.add_row(*(text.Text(cell) for cell in row))  # a string could hold rich's own markup
    console.Console().print(drawn)


def size(count: int | None) -> str:
    """Write a number of bytes for people, in decimal units.

    >>> [size(count) for count in (None, 0, 999, 1000, 77_360, 999_950, 2_500_000_000, 10**18)]
    ['?', '0 B', '999 B', '1.0 kB', '77.4 kB', '1.0 MB', '2.5 GB', '1000000.0 TB']
    """
    if count is None or count < 1000:
        return "?" if count is None else f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if round(value, 1) < 1000 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def size_of(path: Path) -> int | None:
    """Add up the sizes of the files in a checkpoint's directory, in bytes. None if they cannot be read."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(path))
    except OSError:
        return None


def local_time(text: object) -> str:
    """Write a time in ISO 8601 as this machine's local time, to the minute. Any other text stays as it is.

    >>> local_time("yesterday")
    'yesterday'
    """
    try:
        return datetime.datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return str(text)
