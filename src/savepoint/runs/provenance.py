"""Record where a run comes from: git commit, uncommitted changes, versions, hardware. Enough to reproduce it."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from savepoint import parallel
from savepoint.trust import redact, redact_arguments

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "mlflow", "scikit-learn")
# Files that git does not track yet belong to an experiment if they are code, configs or text.
SOURCE_SUFFIXES = frozenset({".py", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".md", ".txt"})
MAX_UNTRACKED = 100_000  # bytes; a larger file is data
# Options with which `git diff` makes a patch that `git apply` takes, whatever the user's own settings are.
_PATCH = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")


def gather_provenance(repository: Path) -> dict[str, Any]:
    """Describe this process: git state, versions, hardware, threads, host, command, time.

    docs/checkpoint-format.md has the keys. Values are None where they cannot be found out, for example without git.
    """
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
        "ranks": parallel.count(),
        "host": platform.node(),
        "command": _command(),
        "time": now(),
    }


def uncommitted_changes(repository: Path) -> str | None:
    """Return the uncommitted changes as a patch for `git apply`, secrets redacted. None if there are none, or no git.

    Untracked source files of at most 100,000 bytes are included as additions; files of runs are not.
    """
    tracked = _git(repository, *_PATCH, "HEAD", strip=False)
    if tracked is None:
        return None
    parts = [tracked]
    for name in (_git(repository, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0"):
        if name and in_patch(repository / name):
            # git diff --no-index exits with 1 when the two files differ.
            added = _git(repository, *_PATCH, "--no-index", "/dev/null", name, strip=False, ok=(1,))
            parts.append(added or "")
    return redact("".join(parts)) or None


def code_differences(then: dict[str, Any], now: dict[str, Any], patches: tuple[str | None, str | None]) -> list[str]:
    """List how the code of two records differs: by its commit, and by its uncommitted changes. [] if it does not.

    then, now: as `gather_provenance` returns them. patches: the uncommitted changes of both, None for none.
    """
    found = _commits(then, now)
    if patches[0] != patches[1]:
        sizes = ["none" if each is None else f"{len(each.splitlines())} lines" for each in patches]
        found.append(f"uncommitted changes {sizes[0]} → {sizes[1]}")
    return found


def in_patch(path: Path) -> bool:
    """Whether an untracked file is small source, which a patch includes. All else is data."""
    source = path.suffix in SOURCE_SUFFIXES and path.is_file() and path.stat().st_size <= MAX_UNTRACKED
    # A file in a run's directory is an output of the code, even where git does not ignore it.
    return source and not any((parent / "run.json").is_file() for parent in path.parents)


def provenance_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what changed between two records and may change bits, as `name old → new`; [] if nothing did.

    then, now: as `gather_provenance` returns them, but `then` may come from a stranger's checkpoint.
    """
    found = _commits(then, now)
    before, after = (_part(each, "versions") for each in (then, now))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            found.append(f"{name} {before[name]} → {after[name]}")
    before, after = (_part(each, "hardware") for each in (then, now))
    for name in ("machine", "processor", "accelerators", "cuda"):
        if before.get(name) != after.get(name):
            found.append(f"{name} {before.get(name)} → {after.get(name)}")
    for name in ("threads", "device", "compile"):
        if then.get(name) != now.get(name):
            found.append(f"{name} {then.get(name)} → {now.get(name)}")
    if _ranks(then) != _ranks(now):
        found.append(f"ranks {_ranks(then)} → {_ranks(now)}")
    return found


def _ranks(record: dict[str, Any]) -> str:
    """Say how many processes trained, and how they divided it. The first checkpoints lack both."""
    how = record.get("parallel")
    return f"{record.get('ranks', 1)}" + (f" ({how})" if how is not None else "")


def _commits(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before, after = (_part(each, "git").get("commit") for each in (then, now))
    return [f"git commit {_short(before)} → {_short(after)}"] if before != after else []


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the microsecond: runs are sorted by this text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _command() -> str:
    """Return the command line without secrets, and without the run's directory, which may move."""
    kept = [each for each in sys.argv[1:] if not each.startswith(("hydra.run.dir=", "hydra.sweep.dir=", "run="))]
    return shlex.join([Path(sys.argv[0]).name, *redact_arguments(kept)])


def _git(repository: Path, *arguments: str, strip: bool = True, ok: tuple[int, ...] = (0,)) -> str | None:
    """Return what git prints. None if there is no git, no repository or no commit yet.

    ok: exit codes that are not failures.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    if done.returncode not in ok:
        return None
    text = done.stdout.decode(errors="surrogateescape")
    return text.strip() if strip else text


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model name. Math libraries choose their kernels by it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a record, which may be a stranger's; {} if it is no mapping."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _short(commit: object) -> str:
    return str(commit)[:10] if commit else "none"
