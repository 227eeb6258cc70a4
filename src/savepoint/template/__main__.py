"""Run `python src/savepoint/template …` with the standard library alone, for copier, cookiecutter and upgrades."""

import io
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  copier and cookiecutter run this with a Python of their own
    sys.exit(f"error: Savepoint needs Python 3.11 or newer, and this is {sys.version.split()[0]}.")

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path[0] = str(REPOSITORY / "src")  # in place of this folder, whose modules would hide others

from savepoint.errors import UserError  # noqa: E402
from savepoint.template.verbs import run  # noqa: E402


def main(arguments: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a pipe on Windows has no sign for →
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run(arguments[0] if arguments else "", REPOSITORY, arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
