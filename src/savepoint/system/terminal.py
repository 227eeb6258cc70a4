"""Print any text to any terminal, pipe or file, whatever its encoding."""

import io
import sys


def print_anything() -> None:
    """Print characters that stdout's encoding lacks as escapes from now on. A pipe on Windows has no `→`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
