"""Print to any terminal, pipe or file, whatever its encoding has no sign for."""

import io
import sys


def print_anything() -> None:
    """Print signs that stdout's encoding lacks as escapes from now on, as stderr does: a pipe on Windows has no `→`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
