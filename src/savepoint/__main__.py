"""The command line: python -m savepoint diff A B | verify RUN [--exact] | demo | ui."""

import functools
import os
import subprocess
import sys
from pathlib import Path

from savepoint import lookup, plain, signals
from savepoint.errors import UserError

USAGE = """\
usage: python -m savepoint diff <run> <run>   what differs between two runs' newest checkpoints and histories
       python -m savepoint verify <run>       whether its checkpoints are sound, all of them or the one after @
       python -m savepoint verify <run> --exact
                                              whether a resume of it gives the same bits, tried on its own config
       python -m savepoint demo               train, kill, resume, and compare every bit
       python -m savepoint ui [--port 5000]   the tracker's web page, on this machine only"""
REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["diff", a, b]:
                return _diff(a, b)
            case ["verify", text, "--exact"] | ["verify", "--exact", text]:
                from savepoint import exact

                return exact.main(text, REPOSITORY, say=functools.partial(print, flush=True))
            case ["verify", text] if text != "--exact":
                return _verify(text)
            case ["demo"]:
                from savepoint import demo

                return demo.main(REPOSITORY)
            case ["ui"]:
                return _ui("5000")
            case ["ui", "--port", port] if port.isdigit():
                return _ui(port)
            case [] | ["-h"] | ["--help"]:
                print(USAGE)
                return 0
        raise UserError(f"{' '.join(arguments)!r} is no command.\n{USAGE}")
    except UserError as error:
        print(f"error: {plain.printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return signals.say(interrupt)
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _diff(a: str, b: str) -> int:
    """Exit code: 0 if the two are identical, 1 if not."""
    found = [lookup.find(text, REPOSITORY) for text in (a, b)]
    from savepoint import compare

    differences = compare.runs(found[0].run, found[1].run)
    print("\n".join(differences) if differences else "identical")
    return 1 if differences else 0


def _verify(text: str) -> int:
    """Exit code: 0 if all are sound, 1 if not."""
    from savepoint import verify

    try:
        # Flushed: the next checkpoint may take a minute.
        sound = verify.report(
            verify.find(text, REPOSITORY), source=REPOSITORY / "src", say=functools.partial(print, flush=True)
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{text} cannot be read: {error.strerror}.") from error
    return 0 if sound else 1


def _ui(port: str) -> int:
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{REPOSITORY / 'mlflow.db'}")
    print(f"http://127.0.0.1:{port}   (Ctrl-C ends it)")
    # Without its job workers: they outlive the server that is asked to end.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = ["--host", "127.0.0.1", "--port", port, "--workers", "2"]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, *address]
    try:
        return subprocess.run(command, env=environment, cwd=REPOSITORY).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
