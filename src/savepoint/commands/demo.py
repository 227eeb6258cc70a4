"""The promise, shown: train; train again, but killed with SIGKILL and resumed; compare every bit of the two."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.errors import UserError

# What tends to go wrong: batch norm, dropout, augmentation that draws from three libraries, a schedule.
CONFIG = ["experiment=digits_cnn", "trainer.max_epochs=4", "tracker=none", "trainer.log_every_n_steps=5"]


def play_demo(repository: Path) -> int:
    """Show the promise on a real run. Returns: the exit code; 0 only if nothing differs."""
    root = Path(tempfile.mkdtemp(prefix="savepoint-demo-"))
    try:
        return _demo(repository, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _demo(repository: Path, root: Path) -> int:
    whole, killed = root / "uninterrupted", root / "killed"
    train = [sys.executable, str(repository / "train.py"), *CONFIG]
    print(f"1. train, uninterrupted     python train.py {' '.join(CONFIG)}", flush=True)
    started = time.monotonic()
    _finish([*train, f"hydra.run.dir={whole}"])
    seconds = time.monotonic() - started
    print(f"   {seconds:.1f} s")
    print("2. train the same again, and kill -9 in the middle", flush=True)
    process = subprocess.Popen([*train, f"hydra.run.dir={killed}"], stdout=subprocess.DEVNULL)
    # Not before the first checkpoint, so that there is something to lose; then whenever it happens to be.
    while not checkpoint.names(killed / runs.CHECKPOINTS) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2 * seconds))
    process.kill()
    process.wait()
    lines = len((killed / runs.METRICS).read_bytes().splitlines())
    print(f"   killed after {lines} lines of metrics.jsonl; newest: {checkpoint.names(killed / runs.CHECKPOINTS)[-1]}")
    print("3. resume                   python resume.py run=…", flush=True)
    _finish([sys.executable, str(repository / "resume.py"), f"run={killed}"])
    print("4. compare every tensor, every value of state.json, every line of metrics.jsonl", flush=True)
    pair = runs.read(whole), runs.read(killed)
    differences = diff.diff_runs(*pair)
    for difference in differences:
        print(f"   {difference}")
    last, _ = checkpoint.latest(pair[1].checkpoints)
    assert last is not None
    tensors = len(last.model), len(checkpoint.split(last.state)[0])
    print(f"   {last.path.name}: {tensors[0]} tensors of the model, {tensors[1]} of the training state")
    print("different" if differences else "identical")
    return 1 if differences else 0


def _finish(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[1:])} failed:\n{done.stdout}")
