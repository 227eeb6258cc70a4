"""Give each of several processes that train jobs of a sweep on one machine a GPU of its own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from savepoint import system

# Held until this process ends, and then free for the next one.
_CLAIMED: list[system.files.Lock] = []


def claim(sweep: Path, number: int) -> None:
    """Hide all GPUs but one from this process: one that no other process of the sweep has, else its share.

    Only the first call does anything, and only before torch is imported, which reads the variable once.
    sweep: the sweep's directory. number: the job's.
    """
    gpus = _visible()
    if len(gpus) < 2 or _CLAIMED or "torch" in sys.modules:
        return
    for gpu in gpus:
        lock = system.files.Lock(sweep / f".gpu-{gpu}.lock")
        if lock.acquire():
            _CLAIMED.append(lock)
            break
        lock.release()
    else:
        gpu = gpus[number % len(gpus)]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [each.strip() for each in chosen.split(",") if each.strip()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20, check=True)
        return [str(index) for index, line in enumerate(done.stdout.splitlines()) if line.startswith(b"GPU ")]
    return []
