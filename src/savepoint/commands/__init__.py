"""Commands: look at runs and checkpoints. `python -m savepoint …` has one line for each.

Each room is imported at its first use, so that `ui` need not wait for torch.

Rooms, in reading order:
    options    read what was typed after a command's name
    tables     tables, sizes and times as people read them
    places     find the checkpoints that a query names
    overview   a run in one row, from few bytes
    ls         list runs
    show       show what is known of a run, or what is inside a checkpoint
    plot       what runs logged, as a picture and in the terminal
    rm         remove a run
    soundness  judge one checkpoint
    verify     report on a run's checkpoints, and from which one a resume would begin
    evaluate   measure a checkpoint on its validation or test split
    export     write a checkpoint's model for use elsewhere
    graphs     a model as a graph without Python: ONNX and torch.export
    card       the model card of an export
    exactness  verify --exact: prove that a resume of a run gives the same bits
    sync       send the tracker what it lacks of a run
    diff       compare two runs or checkpoints bit by bit
    contrast   print how two runs or checkpoints differ, section by section
    worktree   check out the code of a run in a temporary directory
    original   find the run to reproduce, and what of it can be compared
    reproduce  train a run again with its own code, and compare
    demo       train, kill, resume, compare
    ui         the tracker's web page
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from savepoint.commands.contrast import compare
    from savepoint.commands.demo import play_demo
    from savepoint.commands.diff import diff_checkpoints, diff_runs
    from savepoint.commands.evaluate import evaluate_run
    from savepoint.commands.exactness import verify_exact
    from savepoint.commands.export import export_model
    from savepoint.commands.ls import list_runs
    from savepoint.commands.plot import plot_runs
    from savepoint.commands.reproduce import reproduce_run
    from savepoint.commands.rm import remove_run
    from savepoint.commands.show import show_run
    from savepoint.commands.sync import sync_runs
    from savepoint.commands.ui import serve_ui
    from savepoint.commands.verify import verify_run

__all__ = [
    "compare",
    "diff_checkpoints",
    "diff_runs",
    "evaluate_run",
    "export_model",
    "list_runs",
    "play_demo",
    "plot_runs",
    "remove_run",
    "reproduce_run",
    "serve_ui",
    "show_run",
    "sync_runs",
    "verify_exact",
    "verify_run",
]

_ROOMS = {
    "compare": "contrast",
    "diff_checkpoints": "diff",
    "diff_runs": "diff",
    "evaluate_run": "evaluate",
    "export_model": "export",
    "list_runs": "ls",
    "play_demo": "demo",
    "plot_runs": "plot",
    "remove_run": "rm",
    "reproduce_run": "reproduce",
    "serve_ui": "ui",
    "show_run": "show",
    "sync_runs": "sync",
    "verify_exact": "exactness",
    "verify_run": "verify",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"savepoint.commands.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
