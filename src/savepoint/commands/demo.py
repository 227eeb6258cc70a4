"""Demonstrate the promise: train, train again but kill and resume, and compare the two runs bit by bit."""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.errors import UserError

# This run has what often breaks a resume: batch norm, dropout, a schedule, and augmentation that draws from three
# libraries.
CONFIG = ["experiment=digits_cnn", "trainer.max_epochs=4", "tracker=none", "trainer.log_every_n_steps=5"]


def play_demo(repository: Path) -> int:
    """Train twice, with a kill and a resume the second time, and print what differs. Returns: 0 if nothing does."""
    with tempfile.TemporaryDirectory(prefix="savepoint-demo-", ignore_cleanup_errors=True) as root:
        return _demo(repository, Path(root))


def _demo(repository: Path, root: Path) -> int:
    whole, killed = root / "uninterrupted", root / "killed"
    train = [sys.executable, str(repository / "train.py"), *CONFIG]
    print(f"1. train, uninterrupted     python train.py {' '.join(CONFIG)}", flush=True)
    started = time.monotonic()
    _run([*train, f"hydra.run.dir={whole}"])
    seconds = time.monotonic() - started
    print(f"   {seconds:.1f} s")
    print("2. train the same again, and kill -9 in the middle", flush=True)
    process = subprocess.Popen([*train, f"hydra.run.dir={killed}"], stdout=subprocess.DEVNULL)
    # Wait for the first checkpoint, so that there is something to lose. Chance decides the moment after it.
    while not checkpoint.names(killed / runs.CHECKPOINTS) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2 * seconds))
    process.kill()
    process.wait()
    lines = len((killed / runs.METRICS).read_bytes().splitlines())
    print(f"   killed after {lines} lines of metrics.jsonl; newest: {checkpoint.names(killed / runs.CHECKPOINTS)[-1]}")
    print("3. resume                   python resume.py run=…", flush=True)
    _run([sys.executable, str(repository / "resume.py"), f"run={killed}"])
    print("4. compare every tensor, every value of state.json, every line of metrics.jsonl", flush=True)
    differences = diff.diff_runs(runs.read(whole), runs.read(killed))
    for difference in differences:
        print(f"   {difference}")
    last, _ = checkpoint.latest(killed / runs.CHECKPOINTS)
    assert last is not None
    tensors = len(last.model), len(checkpoint.split(last.state)[0])
    print(f"   {last.path.name}: {tensors[0]} tensors of the model, {tensors[1]} of the training state")
    print("different" if differences else "identical")
    return 1 if differences else 0


def _run(command: list[str]) -> None:
    """Run a command to its end. Raises: UserError with its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[1:])} failed:\n{done.stdout.decode(errors='replace')}")
