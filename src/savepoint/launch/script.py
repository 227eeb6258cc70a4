"""Run a script's work, and turn whatever it raises into one clear message and an exit code."""

import atexit
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from savepoint import parallel, system, trust
from savepoint.config import explain
from savepoint.errors import UserError


def run_script(work: Callable[[], int | None], *, overrides: Callable[[], list[str]], conf_dir: Path) -> int:
    """Run `work`. Print a user's mistake in one message on stderr; let a bug keep its traceback.

    overrides: returns the overrides that were typed. Errors of Hydra are explained with them.
    work: may return an exit code of its own.
    Returns: the exit code. 0 after success, 2 after a user's mistake, 128 + the signal's number after an interrupt.
    """
    system.terminal.print_anything()
    system.signals.remember()
    try:
        return work() or 0
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt as interrupt:
        return system.signals.say(interrupt)
    except Exception as error:
        # Ctrl-C inside a library can come out as an error of that library.
        if system.signals.pressed():
            return system.signals.say(KeyboardInterrupt())
        message = explain(error, overrides(), conf_dir)
        if message is None:
            raise
        return _refuse(message)


def load_script(name: str, repository: Path) -> Any:
    """Import train.py or resume.py, neither of which belongs to a package."""
    specification = importlib.util.spec_from_file_location(name, repository / f"{name}.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


def _refuse(message: str) -> int:
    print(f"error: {trust.printable(message)}", file=sys.stderr)
    return 2


def leave(code: int) -> NoReturn:
    """End the process with this exit code, without a last garbage collection over all of torch."""
    system.memory.leave()
    if parallel.count() > 1:
        # A rank that still ends when torchrun's SIGTERM comes would die of it, because Python lets go of its handlers.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
