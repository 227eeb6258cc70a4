"""Commands: look at runs and checkpoints. `python -m savepoint …` has one line for each.

Each is imported at its first use: `ui` need not wait for torch.

Rooms, in reading order:
    diff    compare two runs bit by bit
    verify  check a run's checkpoints, and say from which one resume would begin
    demo    train, kill, resume, compare
    ui      the tracker's web page
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from savepoint.commands.demo import play_demo
    from savepoint.commands.diff import compare, diff_checkpoints, diff_runs
    from savepoint.commands.ui import serve_ui
    from savepoint.commands.verify import verify_exact, verify_run

__all__ = ["compare", "diff_checkpoints", "diff_runs", "play_demo", "serve_ui", "verify_exact", "verify_run"]

_ROOMS = {
    "compare": "diff",
    "diff_checkpoints": "diff",
    "diff_runs": "diff",
    "play_demo": "demo",
    "serve_ui": "ui",
    "verify_exact": "verify",
    "verify_run": "verify",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"savepoint.commands.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
