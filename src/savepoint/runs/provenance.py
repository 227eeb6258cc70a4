"""Where a run comes from: the git commit, what was changed since, versions, hardware. Enough to make it again."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from savepoint.trust import redact, redact_arguments

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "mlflow", "scikit-learn")
# Of files that git does not track yet, those that are part of an experiment: its code and its configs.
SOURCE_SUFFIXES = frozenset({".py", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".md", ".txt"})
MAX_UNTRACKED = 100_000  # bytes; a larger file is data


def gather_provenance(repository: Path) -> dict[str, Any]:
    """Everything about this process that could explain a difference between two runs."""
    import torch

    commit = _git(repository, "rev-parse", "HEAD")
    return {
        "git": {
            "commit": commit,
            "branch": _git(repository, "rev-parse", "--abbrev-ref", "HEAD") if commit else None,
            "dirty": bool(_git(repository, "status", "--porcelain")) if commit else None,
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda,
        },
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "command": _command(),
        "time": now(),
    }


def uncommitted_changes(repository: Path) -> str | None:
    """What differs from the commit, for `git apply` on a clean checkout of it. None if nothing does."""
    tracked = _git(repository, "diff", "--binary", "HEAD", strip=False)
    if tracked is None:
        return None
    parts = [tracked]
    for name in (_git(repository, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0"):
        path = repository / name
        source = name and path.suffix in SOURCE_SUFFIXES and path.is_file() and path.stat().st_size <= MAX_UNTRACKED
        if source and not _of_a_run(path):
            # Exits with 1, as diff does where there is a difference.
            added = _git(repository, "diff", "--no-index", "--binary", "/dev/null", name, strip=False, ok=(1,))
            parts.append(added or "")
    return redact("".join(parts)) or None


def provenance_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change bits between two records of provenance, in words, nothing if all of it is equal."""
    found = []
    if then["git"]["commit"] != now["git"]["commit"]:
        found.append(f"git commit {_short(then['git']['commit'])} → {_short(now['git']['commit'])}")
    for name in sorted(then["versions"].keys() & now["versions"].keys()):
        if then["versions"][name] != now["versions"][name]:
            found.append(f"{name} {then['versions'][name]} → {now['versions'][name]}")
    for name in ("machine", "processor", "accelerators", "cuda"):
        if then["hardware"].get(name) != now["hardware"].get(name):
            found.append(f"{name} {then['hardware'].get(name)} → {now['hardware'].get(name)}")
    for name in ("threads", "device", "compile"):
        if then.get(name) != now.get(name):
            found.append(f"{name} {then.get(name)} → {now.get(name)}")
    return found


def now() -> str:
    """The time as ISO 8601, in UTC, to the microsecond, so that runs sort by it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _command() -> str:
    """As typed, without secrets and without the run's directory: a run that is moved does not name where it was."""
    kept = [each for each in sys.argv[1:] if not each.startswith(("hydra.run.dir=", "hydra.sweep.dir=", "run="))]
    return shlex.join([Path(sys.argv[0]).name, *redact_arguments(kept)])


def _git(repository: Path, *arguments: str, strip: bool = True, ok: tuple[int, ...] = (0,)) -> str | None:
    """What git prints; None where there is no git, no repository or no commit yet."""
    try:
        done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    if done.returncode not in ok:
        return None
    text = done.stdout.decode(errors="surrogateescape")
    return text.strip() if strip else text


def _of_a_run(path: Path) -> bool:
    """A run that lies in the repository, where git does not ignore it, is what the code made, and no part of it."""
    return any((parent / "run.json").is_file() for parent in path.parents)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model name, which decides which kernels a math library takes."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _short(commit: str | None) -> str:
    return commit[:10] if commit else "none"
