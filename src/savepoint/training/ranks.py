"""The entries of a state in which the ranks of a run differ: sums of metrics, generators, what a fork registers."""

from typing import Any

from savepoint import parallel
from savepoint.checkpoint import Checkpoint
from savepoint.errors import CheckpointError
from savepoint.training.team import added_up, pack, unpack

_ENTRIES = {"sums": dict, "samples": int, "registered": dict, "rng": dict}


def of_all(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the entries in which ranks differ: once as one process needs them, and under `ranks` for each rank.

    Everything else is the same on all ranks. Only rank 0 gets these entries, because it alone saves them. A run of one
    process has none.
    """
    if parallel.count() == 1:
        return {}
    packed = parallel.exchange(pack({name: tree[name] for name in _ENTRIES}))
    if not parallel.leads():
        return {}
    ranks = [unpack(each) for each in packed]
    sums, samples = added_up(ranks)
    return {"ranks": ranks, **ranks[0], "sums": sums, "samples": samples}


def same(saved: dict[str, Any]) -> bool:
    """Whether as many ranks saved a state as train now."""
    return isinstance(saved.get("ranks"), list) and len(saved["ranks"]) == parallel.count()


def changed(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the entries that were changed for this rank in the place where `of_this_one` finds them."""
    own = {name: saved[name] for name in _ENTRIES}
    return saved | {"ranks": [own] * parallel.count()} if same(saved) else saved


def of_this_one(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state as this rank goes on from it.

    If another number of ranks saved it, rank 0 takes over the sums of all. Raises: CheckpointError.
    """
    saved = checkpoint.state
    if same(saved):
        own = saved["ranks"][parallel.rank()]
        if not isinstance(own, dict) or not all(isinstance(own.get(key), kind) for key, kind in _ENTRIES.items()):
            raise CheckpointError(f"{checkpoint.path}: its state of rank {parallel.rank()} cannot be read.")
        return saved | {name: own[name] for name in _ENTRIES}
    return saved if parallel.leads() else saved | {"sums": {}, "samples": 0}
