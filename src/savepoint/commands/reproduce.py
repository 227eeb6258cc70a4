"""Train a run again with the code that made it, and compare every checkpoint and every logged value bit by bit."""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savepoint import checkpoint, runs, system, trust
from savepoint.checkpoint import Checkpoint
from savepoint.commands import diff, places, worktree
from savepoint.config import differences
from savepoint.errors import CheckpointError, UserError, short_list

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
MOST_LINES = 5  # differences that are shown
SECONDS = 10  # a training that is no longer needed may take to stop
# What may differ between the configs of a run's checkpoints without another result.
_INCIDENTAL = ("checkpoint.", "tracker.", "trainer.max_", "name", "init_from")
# Runs the tree's own resume.py, once it is certain that the tree's engine is the one that was imported.
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


@dataclass(frozen=True)
class Request:
    """What was typed after `reproduce`."""

    query: str
    epochs: int | None
    flags: set[str]


@dataclass(frozen=True)
class Original:
    """The run to train again. chosen: the newest checkpoint to compare, whose config and code are used.

    run: None for checkpoints without one. names: the checkpoints to compare, oldest first. every_n_steps: a cadence
    that saves at each of them that lies within an epoch. patch: the uncommitted changes.
    """

    root: Path
    run: runs.Run | None
    chosen: Checkpoint
    names: list[str]
    every_n_steps: int | None
    patch: bytes | None

    @property
    def git(self) -> dict[str, Any]:
        found = self.chosen.provenance.get("git")
        return found if isinstance(found, dict) else {}

    @property
    def changed(self) -> bool:
        return self.patch is not None or bool(self.git.get("dirty"))


@dataclass
class Result:
    """What was compared so far. last: the newest checkpoint of the new training that was looked at."""

    compared: list[str] = field(default_factory=list)
    tensors: int = 0
    lines: int = 0
    differences: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    last: Checkpoint | None = None


def reproduce_run(repository: Path, arguments: list[str]) -> int:
    """Train the named run again and say whether it is identical. arguments: as typed after `reproduce`.

    Returns: the exit code, 0 if it is.
    Raises: UserError for what cannot be found, checked out or trained.
    """
    if {"-h", "--help"} & {*arguments}:
        print(USAGE)
        return 0
    request = _parse(arguments)
    as_json, keep = "--json" in request.flags, "--keep" in request.flags
    say = functools.partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
    original = _find(request, repository, say)
    commit = _commit(original)
    with system.signals.stoppable(), worktree.checked_out(repository, commit, original.patch, keep=keep) as place:
        changes = " with its uncommitted changes" if original.patch is not None else ""
        say(f"training again up to {original.chosen.path.name}, from commit {commit[:12]}{changes}")
        for line in _warnings(original, repository, own_versions="--env" in request.flags):
            say(trust.printable(f"  {line}"))
        python = Path(sys.executable)
        if "--env" in request.flags:
            say("installing the recorded versions, which takes minutes …")
            python = worktree.build_environment(place, original.chosen.provenance.get("versions") or {})
        run = _prepare(original, place, repository)
        with _training(python, place, run, keep=keep) as process:
            result = _compare(original, run, process, request, say=say)
        if keep:
            say(f"kept: {place}; remove it with: git worktree remove --force {place / 'tree'} && rm -r {place}")
    _report(original, result, as_json=as_json)
    return 1 if result.differences else 0


def _parse(arguments: list[str]) -> Request:
    epochs, flags, queries, left = None, set(), [], [*arguments]
    while left:
        argument = left.pop(0)
        name, _, value = argument.partition("=")
        if name == "--epochs":
            text = value or (left.pop(0) if left else "")
            if not text.isdecimal() or int(text) < 1:
                raise UserError(f"--epochs {text}: give a number of epochs, at least 1.")
            epochs = int(text)
        elif argument in ("--env", "--keep", "--trust-code", "--json"):
            flags.add(argument)
        elif argument.startswith("-"):
            raise UserError(f"reproduce has no option {argument}. {USAGE}")
        else:
            queries.append(argument)
    if len(queries) != 1:
        raise UserError(f"Which run? {USAGE}")
    return Request(queries[0], epochs, flags)


def _find(request: Request, repository: Path, say: Callable[[str], None]) -> Original:
    """Find the checkpoints to compare. Raises: UserError if none is sound, or the run may not be trained here."""
    place = places.find(request.query, repository)
    homes = [(repository / name).resolve() for name in ("runs", "sweeps")]
    if "--trust-code" not in request.flags and not any(place.root.resolve().is_relative_to(home) for home in homes):
        raise UserError(
            f"{request.query} lies outside of {repository / 'runs'}, and reproducing it runs the code in its "
            "changes.patch. Read that file first; then add --trust-code."
        )
    chosen = _newest(place, request.query)
    end = checkpoint.position(chosen.path.name)
    names, within = [], []
    for name in checkpoint.names(place.root) if place.run else place.names:
        step, epoch = checkpoint.position(name)
        if (step, epoch) > end or (request.epochs is not None and epoch > request.epochs):
            continue
        try:
            inside = checkpoint.load(place.root / name).state.get("batch") != 0
        except CheckpointError as error:
            say(trust.printable(f"damaged, and not compared: {error}", limit=1000))
            continue
        if not inside or epoch != request.epochs:
            names.append(name)
            within += [step] if inside else []
    patch = chosen.path / checkpoint.PATCH
    return Original(
        place.root,
        place.run,
        chosen,
        names,
        math.gcd(*within) or None,
        patch.read_bytes() if patch.exists() else None,
    )


def _newest(place: places.Place, query: str) -> Checkpoint:
    """Load the newest sound checkpoint of those that were named. Raises: UserError if there is none."""
    faults = []
    for name in reversed(place.names):
        try:
            return checkpoint.load(place.root / name)
        except CheckpointError as error:
            faults.append(str(error))
    raise UserError(faults[0] if faults else f"{query} has no checkpoint, so there is nothing to compare with.")


def _commit(original: Original) -> str:
    commit = original.git.get("commit")
    if commit is None:
        raise UserError(f"{original.chosen.path.name} records no git commit, so its code is not known.")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise UserError(f"{original.chosen.path.name} records the git commit {commit!r}, which is none.")
    return commit


def _warnings(original: Original, repository: Path, *, own_versions: bool) -> list[str]:
    """List what differs here from the record, and what the record lacks. own_versions: whether --env installs them."""
    then, now = original.chosen.provenance, runs.gather_provenance(repository)
    now |= {name: then.get(name) for name in ("git", "threads", "device", "compile")}
    if own_versions:
        now["versions"] = {"python": now["versions"]["python"]}
    found = runs.provenance_differences(then, now)
    if found:
        found.append("other versions or hardware may give other bits" + ("" if own_versions else "; --env installs"))
        found[-1] += "" if own_versions else " the recorded versions"
    if original.changed and original.patch is None:
        found.append("some of its uncommitted files were no source, and are not in the checkpoint")
    if original.patch is not None and b"[redacted]" in original.patch:
        found.append("a secret in its uncommitted changes was redacted; what reads it gets another value")
    return found


def _prepare(original: Original, place: Path, repository: Path) -> runs.Run:
    """Make a run without a checkpoint. Every version of resume.py starts such a run over, from its config.yaml."""
    provenance = original.chosen.provenance
    config = trust.parse_config(original.chosen.config)
    config["tracker"] = {"kind": "none"}
    # What is saved and kept decides nothing that is computed. An older version may lack one of these settings.
    cadence = {"every_n_epochs": 1, "every_n_steps": original.every_n_steps, "every_n_minutes": None}
    cadence |= {"keep_last": 1_000_000, "upload": False}
    for group, wanted in (("checkpoint", cadence), ("trainer", {"test": False, "threads": provenance.get("threads")})):
        known = config.get(group)
        if isinstance(known, dict):
            known |= {key: value for key, value in wanted.items() if key in known}
    origin = provenance.get("forked_from")
    if origin is not None:
        _check_parent(origin, repository)
    run = runs.create(
        place / "run",
        id=runs.new_id(),
        name=None,
        config=trust.dump_config(config),
        overrides=[],
        forked_from=origin,
    )
    run.update(weights=provenance.get("weights") or [])
    return run


def _check_parent(origin: Any, repository: Path) -> None:
    try:
        found = runs.find(origin.get("directory", origin["run"]), repository)
        checkpoint.load(found.run.checkpoints / origin["checkpoint"])
    except (UserError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"The run is a fork, and the checkpoint that it began from cannot be loaded: {error}"
        ) from error


@contextlib.contextmanager
def _training(python: Path, place: Path, run: runs.Run, *, keep: bool) -> Iterator["subprocess.Popen[bytes]"]:
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
        system.signals.kill(process)
        process.wait()


def _compare(
    original: Original,
    run: runs.Run,
    process: "subprocess.Popen[bytes]",
    request: Request,
    *,
    say: Callable[[str], None],
) -> Result:
    """Compare each checkpoint of the new training as soon as it is there, up to the first that differs or the last.

    A checkpoint is removed once a newer one is there, unless the directory is to be kept.
    Raises: UserError if the training fails before.
    """
    result, seen, reached = Result(), list[str](), False
    end = checkpoint.position(original.chosen.path.name)
    while not reached and not result.differences:
        ended = process.poll() is not None  # asked first: what is saved last is then seen below
        for name in [each for each in checkpoint.names(run.checkpoints) if each not in seen]:
            position = checkpoint.position(name)
            reached = position >= end or position[1] == request.epochs
            if name in original.names or reached:
                result.last = checkpoint.load(run.checkpoints / name)
            if name in original.names:
                _compare_one(original, name, result, say)
            if seen and "--keep" not in request.flags:
                shutil.rmtree(run.checkpoints / seen[-1])
            seen.append(name)
            if reached or result.differences:
                break
        if ended and not reached and not result.differences:
            if process.returncode:
                raise UserError(_failure(run))
            break
        time.sleep(0.02)
    if not result.differences:
        missed = [name for name in original.names if name not in result.compared]
        result.differences += [f"{name}: was not made again" for name in missed]
    _compare_history(original, run, result)
    return result


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


def _compare_history(original: Original, run: runs.Run, result: Result) -> None:
    """Compare the logged values up to the newest checkpoint that was looked at. A difference there came first."""
    if original.run is None or result.last is None:
        return
    result.lines = int(result.last.state["history_lines"])
    if found := diff.diff_histories(original.run, run, lines=result.lines):
        result.differences[:0] = found
        result.reasons = result.reasons or _reasons(original, original.chosen, result.last)


def _failure(run: runs.Run) -> str:
    output = (run.directory.parent / "output.txt").read_text(errors="replace").strip().splitlines()
    return "\n".join(["The training failed. It said last:", *output[-worktree.LINES :]])


def _reasons(original: Original, there: Checkpoint, here: Checkpoint) -> list[str]:
    """List what is known to differ between a checkpoint and the one that was made in its place."""
    found = runs.provenance_differences(there.provenance, here.provenance)
    configs = differences(trust.parse_config(there.config), trust.parse_config(original.chosen.config))
    found += [f"{key} {a} → {b}" for key, (a, b) in configs.items() if not key.startswith(_INCIDENTAL)]
    pair = [_data_digests(each) for each in (there, here)]
    found += [f"data {a} → {b}" for a, b in [pair] if a != b]
    if original.changed and original.patch is None:
        found.append("uncommitted files that are not in the checkpoint")
    if original.patch is not None and b"[redacted]" in original.patch:
        found.append("a secret that was redacted in the uncommitted changes")
    return found


def _data_digests(one: Checkpoint) -> str:
    """Return the first digits of the digests of the splits, 12 each; none if the checkpoint has none."""
    data = one.provenance.get("data")
    splits = data.values() if isinstance(data, dict) else []
    digests = [each.get("sha256") for each in splits if isinstance(each, dict)]
    return ",".join(str(each)[:12] for each in digests if each) or "none"


def _receipt(original: Original, result: Result) -> dict[str, str]:
    name = result.compared[-1] if result.compared else None
    weights = checkpoint.digests(original.root / name)[checkpoint.MODEL] if name else "none"
    return {
        "commit": _commit(original)[:12] + "+" * original.changed,
        "config": hashlib.sha256(original.chosen.config.encode()).hexdigest()[:12],
        "data": _data_digests(original.chosen).partition(",")[0],
        "weights": weights[:12],
    }


def _report(original: Original, result: Result, *, as_json: bool) -> None:
    """Print whether the run is identical or what differs first. Raises: UserError if nothing could be compared."""
    if not result.compared and not result.lines and not result.differences:
        raise UserError("There was nothing to compare: no checkpoint, and no logged value, of these epochs is left.")
    receipt, identical = _receipt(original, result), not result.differences
    if as_json:
        facts = {"identical": identical, "checkpoints": result.compared, "tensors": result.tensors}
        facts |= {"lines": result.lines, "differences": result.differences[:1000], "reasons": result.reasons}
        print(json.dumps({"run": original.chosen.provenance.get("run_id"), **facts, "receipt": receipt}))
        return
    if identical:
        logged = f", {result.lines} logged lines" if result.lines else ""
        print(f"identical: {len(result.compared)} checkpoints, {result.tensors} tensors{logged}")
    else:
        print(trust.printable(f"different, first in {result.differences[0]}"))
        for line in result.differences[1:MOST_LINES]:
            print(trust.printable(f"  {line}"))
        if len(result.differences) > MOST_LINES:
            print(f"  and {len(result.differences) - MOST_LINES} more")
        known = short_list(result.reasons, most=20)
        nothing = "nothing in the record differs: see python -m savepoint verify <run> --exact"
        print(trust.printable(f"likely because of: {known}" if result.reasons else nothing))
    print(trust.printable("receipt: " + "  ".join(f"{name} {digest}" for name, digest in receipt.items())))
