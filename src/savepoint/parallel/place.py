"""Read from the environment which rank this process is. torchrun sets these variables for each process it starts."""

import os


def count() -> int:
    """Return the number of ranks that train together; 1 for a process that is alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return the number of this process among the ranks, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_rank() -> int:
    """Return the number of this process among the ranks of its machine, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def on_one_machine() -> bool:
    """Whether all ranks were started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == count()


def leads() -> bool:
    """Whether this process makes the run directory, writes checkpoints' documents, and talks to people and trackers."""
    return rank() == 0


def be_alone() -> None:
    """Let this process, and those that it starts, go on as if torchrun had not started it among others."""
    os.environ.pop("RANK", None)


def restarts() -> int:
    """Return how often torchrun has started the ranks again (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if count() > 1 else 0
