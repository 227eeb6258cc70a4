"""Give each process a GPU of its own when several processes on one machine train the jobs of a sweep."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from savepoint import system

# The locks of the GPUs that this process has claimed. They are free again when it ends.
_CLAIMED: list[system.files.Lock] = []


def claim(sweep: Path, number: int) -> None:
    """Hide all GPUs but one from this process. It gets one that no other process of the sweep has claimed.

    If all are claimed, the job's number chooses one, so that jobs are spread evenly.
    Only the first call has an effect, and only before torch is imported: torch reads CUDA_VISIBLE_DEVICES once.
    sweep: the sweep's directory. number: the job's number.
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
