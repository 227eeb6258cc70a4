"""Train a run again with the code that made it, and compare every checkpoint and every logged value bit by bit."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from savepoint import checkpoint, runs, system, trust
from savepoint.checkpoint import Checkpoint
from savepoint.commands import diff, options, worktree
from savepoint.commands import original as originals
from savepoint.commands.original import Original
from savepoint.config import differences
from savepoint.errors import UserError, short_list

USAGE = """\
usage: python -m savepoint reproduce <run>[@<checkpoint>] [--epochs N] [--env] [--keep] [--trust-code] [--json]

Checks out the run's commit in a temporary directory, applies its uncommitted changes, trains the run again from its
beginning, and compares each checkpoint that is still there, and each logged value, bit by bit. Exit code 0: identical.
This runs the code of the commit and of the patch that the checkpoint holds.

  --epochs N    only the first N epochs
  --env         in a new environment with the recorded versions, which takes minutes
  --keep        keep the temporary directory, and say where it is
  --trust-code  also for a run that lies outside of this repository's runs/ and sweeps/
  --json        the result for programs"""
FLAGS = ("--env", "--keep", "--trust-code", "--json")
MOST_LINES = 5  # differences that are shown
SECONDS = 10  # that a training gets to stop
# Settings that may differ between the checkpoints of a run without any effect on the results.
_INCIDENTAL = ("checkpoint.", "tracker.", "trainer.max_", "name", "init_from")
# Checks that the engine which is imported is the tree's, then runs the tree's own resume.py.
_DRIVER = """
import runpy, sys
from pathlib import Path
tree = Path(sys.argv.pop(1))
import savepoint
if not Path(savepoint.__file__).resolve().is_relative_to(tree):
    sys.exit(f"error: savepoint was imported from {savepoint.__file__} instead of {tree}.")
sys.argv[0] = str(tree / "resume.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Result:
    """What was compared so far.

    compared: names of checkpoints. tensors, lines: how many tensors and logged lines were compared. differences: all
    that was found. reasons: what is known to be another than before. last: the newest compared checkpoint of the new
    training.
    """

    compared: list[str] = field(default_factory=list)
    tensors: int = 0
    lines: int = 0
    differences: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    last: Checkpoint | None = None


def reproduce_run(repository: Path, arguments: list[str]) -> int:
    """Train the named run again, and print whether it is identical. arguments: as typed after `reproduce`.

    Returns: the exit code, 0 if the run is identical.
    Raises: UserError for what cannot be found, checked out or trained.
    """
    given = options.parse(arguments, USAGE, flags=FLAGS, values=("--epochs",))
    query, flags, epochs = given.run(), given.flags, _epochs(given.values.get("--epochs"))
    as_json, keep = "--json" in flags, "--keep" in flags
    say = functools.partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
    original = originals.find(query, repository, epochs=epochs, trust_code="--trust-code" in flags, say=say)
    code = worktree.checked_out(repository, original.commit, original.patch, keep=keep)
    with system.signals.stoppable(), code as place:
        changes = " with its uncommitted changes" if original.patch is not None else ""
        say(f"training again up to {original.chosen.path.name}, from commit {original.commit[:12]}{changes}")
        for line in _warnings(original, repository, own_versions="--env" in flags):
            say(trust.printable(f"  {line}"))
        python = Path(sys.executable)
        if "--env" in flags:
            python = worktree.build_environment(place, original.chosen.provenance.get("versions"))
        run = originals.start_over(original, place / "run", repository)
        with _training(python, place, run) as process:
            result = _compare(original, run, process, epochs=epochs, keep=keep, say=say)
            _report(original, result, as_json=as_json)  # before the cleaning up, which may take a while
        if keep:
            say(f"kept: {place}; remove it with: git worktree remove --force {place / 'tree'} && rm -r {place}")
    return 1 if result.differences else 0


def _epochs(text: str | None) -> int | None:
    """Read the number of epochs; None for all. Raises: UserError for anything else."""
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise UserError(f"--epochs {text}: give a number of epochs, at least 1.")
    return None if text is None else int(text)


def _warnings(original: Original, repository: Path, *, own_versions: bool) -> list[str]:
    """List what differs here from the record, and what the record lacks. own_versions: whether --env installs them."""
    then, now = original.chosen.provenance, runs.gather_provenance(repository)
    now |= {name: then.get(name) for name in ("git", "threads", "device", "compile", "ranks", "parallel")}
    if own_versions:
        now["versions"] = {"python": now["versions"]["python"]}
    found = runs.provenance_differences(then, now)
    if found and not own_versions:
        found.append("these may give other bits; --env installs the recorded versions")
    return found + original.gaps()


@contextlib.contextmanager
def _training(python: Path, place: Path, run: runs.Run) -> Iterator["subprocess.Popen[bytes]"]:
    """Train the run with the code of the tree while the body compares. At the end the training is stopped.

    It works in the tree, so that a relative path in a config means a file of the commit, or one that is linked there.
    """
    tree = place / "tree"
    search_path = [str(tree / "src"), str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (place / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-c", _DRIVER, str(tree), f"run={run.directory}"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search_path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the training
        )
    try:
        yield process
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
    finally:
        system.signals.kill(process)  # its loading workers too
        process.wait()


def _compare(
    original: Original,
    run: runs.Run,
    process: "subprocess.Popen[bytes]",
    *,
    epochs: int | None,
    keep: bool,
    say: Callable[[str], None],
) -> Result:
    """Compare each checkpoint of the new training as soon as it is there, up to the first that differs or the last.

    keep: whether checkpoints stay. Otherwise each is removed once there is a newer one, and the disk holds few.
    Raises: UserError if the training fails before.
    """
    result, seen, end = Result(), list[str](), checkpoint.position(original.chosen.path.name)
    for name in _published(run, process):
        reached = checkpoint.position(name) >= end or checkpoint.position(name)[1] == epochs
        if name in original.names or reached:
            result.last = checkpoint.load(run.checkpoints / name)
        if name in original.names:
            _compare_one(original, name, result, say)
        if seen and not keep:
            shutil.rmtree(run.checkpoints / seen[-1])
        seen.append(name)
        if reached or result.differences:
            break
    if not result.differences:
        missed = [name for name in original.names if name not in result.compared]
        result.differences += [f"{name}: was not made again" for name in missed]
    _compare_history(original, result, run)
    return result


def _published(run: runs.Run, process: "subprocess.Popen[bytes]") -> Iterator[str]:
    """Yield the name of each checkpoint of the new training, until it ends. Raises: UserError if it fails."""
    newest, ended = (-1, -1), False
    while not ended:
        ended = process.poll() is not None  # asked before the names are listed, which then include the last one
        for name in checkpoint.names(run.checkpoints):
            if checkpoint.position(name) > newest:
                newest = checkpoint.position(name)
                yield name
        time.sleep(0.02)
    if process.returncode:
        printed = (run.directory.parent / "output.txt").read_text(encoding="locale", errors="replace")
        raise UserError(
            "\n".join(["The training failed. Its last lines:", *printed.strip().splitlines()[-worktree.LINES :]])
        )


def _compare_one(original: Original, name: str, result: Result, say: Callable[[str], None]) -> None:
    there, here = checkpoint.load(original.root / name), result.last
    assert here is not None
    result.compared.append(name)
    result.tensors += len(there.model) + len(checkpoint.split(there.state)[0])
    found = diff.diff_checkpoints(there, here)
    say(f"{name}  {'differs' if found else 'identical'}")
    if found:
        result.differences += [f"{name}: {each}" for each in found]
        result.reasons += _reasons(original, there, here)


def _compare_history(original: Original, result: Result, run: runs.Run) -> None:
    """Compare the logged values up to the newest checkpoint that was looked at. A difference there came first."""
    if original.run is None or result.last is None:
        return
    result.lines = int(result.last.state["history_lines"])
    if found := diff.diff_histories(original.run, run, lines=result.lines):
        result.differences[:0] = found
        result.reasons = result.reasons or _reasons(original, original.chosen, result.last)


def _reasons(original: Original, there: Checkpoint, here: Checkpoint) -> list[str]:
    """List what is known to differ between a checkpoint and the one that was made in its place."""
    found = runs.provenance_differences(there.provenance, here.provenance)
    configs = differences(trust.parse_config(there.config), trust.parse_config(original.chosen.config))
    found += [f"{key} {a} → {b}" for key, (a, b) in configs.items() if not key.startswith(_INCIDENTAL)]
    data = [",".join(originals.data_digests(each)) for each in (there, here)]
    found += [f"data {data[0]} → {data[1]}"] if data[0] != data[1] else []
    return found + original.gaps()


def _report(original: Original, result: Result, *, as_json: bool) -> None:
    """Print whether the run is identical or what differs first. Raises: UserError if nothing could be compared."""
    if not result.compared and not result.lines and not result.differences:
        raise UserError("There was nothing to compare: no checkpoint, and no logged value, of these epochs is left.")
    receipt = original.receipt(result.compared[-1] if result.compared else None)
    if as_json:
        run = {"run": original.chosen.provenance.get("run_id"), "identical": not result.differences}
        facts = {name: getattr(result, name) for name in ("compared", "tensors", "lines", "differences", "reasons")}
        print(json.dumps({**run, **facts, "receipt": receipt}), flush=True)
        return
    if not result.differences:
        logged = f", {result.lines} logged lines" if result.lines else ""
        print(f"identical: {len(result.compared)} checkpoints, {result.tensors} tensors{logged}")
    else:
        first, *others = result.differences
        lines = [f"different, first in {first}", *(f"  {each}" for each in others[: MOST_LINES - 1])]
        lines += [f"  and {len(others) - MOST_LINES + 1} more"] if len(others) >= MOST_LINES else []
        known = "likely because of: " + short_list(result.reasons, most=20)
        unknown = "Nothing in its record differs. To look for the cause: python -m savepoint verify <run> --exact"
        print(trust.printable("\n".join([*lines, known if result.reasons else unknown])))
    print(trust.printable("receipt: " + "  ".join(f"{name} {digest}" for name, digest in receipt.items())), flush=True)
