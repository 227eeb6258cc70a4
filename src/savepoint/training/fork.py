"""Begin from a checkpoint of a run whose config differs: the full state, except where the difference takes effect.

The checkpoint is adapted, and then restored like any other. What the difference does not touch stays as it was saved. A
part that is new, or that another one has replaced, starts as it was built, and a note says so.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from savepoint.checkpoint import Checkpoint
from savepoint.config import Difference
from savepoint.training import ranks
from savepoint.training.fork_optimizers import adapt_optimizers
from savepoint.training.optimization import naming
from savepoint.training.state import Parts, TrainState, capture, fits

Node = dict[str, Any]


def adapt(
    checkpoint: Checkpoint, fresh: TrainState, parts: Parts, difference: Difference, *, make: Callable[..., Any]
) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint as `state.restore` takes it into a run with another config, and notes for the log.

    fresh: the state as the new config builds it. This steps its schedules to where the run is. make: `trust.make`.
    Raises: ConfigError for a difference that could have no effect.
    """
    fits(fresh.model, checkpoint)
    saved, notes = dict(ranks.of_this_one(checkpoint)), list[str]()
    _, new = capture(fresh)
    saved["history_lines"] = 0  # the history of a fork begins at the fork
    with naming(checkpoint, "optimizer"):
        adapt_optimizers(saved, fresh, parts.settings, difference, notes, make=make)
    if difference.touches("seed"):
        saved["rng"] = new["rng"]
        notes.append("generators begin anew, from the new seed")
    if difference.touches("init.freeze"):
        saved["frozen"] = new["frozen"]
    if (saved.get("averaged") is None) != (new["averaged"] is None):
        saved["averaged"] = _average_of(checkpoint, new["averaged"])
        notes.append("average of the weights: " + ("ends" if new["averaged"] is None else "begins at the present ones"))
    _adapt_registered(saved, new, notes)
    _adapt_position(saved, new, checkpoint, parts, difference, notes)
    if difference.touches("task", "data.dataset"):
        saved |= {"best": None, "stale": 0}
        notes.append("best value begins anew, as it is measured in another way")
    if difference.touches("task"):
        saved |= {key: new[key] for key in ("sums", "samples", "logged", "logged_sums", "metrics")}
    return replace(checkpoint, state=ranks.changed(saved)), notes


def _adapt_registered(saved: Node, new: Node, notes: list[str]) -> None:
    """Keep the registered state that the fork registers too. New registered state begins as it was built."""
    there, here = saved.get("registered") or {}, new["registered"]
    saved["registered"] = {name: there.get(name, value) for name, value in here.items()}
    for words, names in (("begins fresh", here.keys() - there.keys()), ("is gone", there.keys() - here.keys())):
        notes += [f"registered state {name} {words}" for name in sorted(names)]


def _adapt_position(
    saved: Node, new: Node, checkpoint: Checkpoint, parts: Parts, difference: Difference, notes: list[str]
) -> None:
    """Decide where in the data the fork goes on. Epoch and step are kept."""
    streams = [each is not None for each in (saved.get("stream"), new["stream"])]
    samples = ((checkpoint.provenance.get("data") or {}).get("train") or {}).get("samples")
    other = samples != parts.train.samples or difference.touches("seed", "data.sampler", "data.shuffle")
    if any(streams):
        cut = saved["batch"] > 0 and difference.touches("data")
        other = cut or streams[0] != streams[1] or difference.touches("data.dataset", "seed")
        if other:
            saved["stream"] = new["stream"]
            notes.append("data: the stream begins anew" if streams[1] else "data: no stream any more")
    batch, title = saved["batch"], f"epoch {saved['epoch'] + 1}"
    if other and batch:
        saved["batch"] = 0
        notes.append(f"data: {title} begins again, as its samples or their order are others")
    elif batch and difference.touches("data.batch_size"):
        done = batch * difference.before["data"]["batch_size"]
        saved["batch"] = math.ceil(done / difference.after["data"]["batch_size"])
        notes.append(f"data: {title} goes on after {done} samples, at batch {saved['batch']} of the new size")
    elif difference.touches("data.batch_size"):
        notes.append(f"data: an epoch has {len(parts.train)} batches from here on")
    saved["batch"] = min(saved["batch"], len(parts.train))


def _average_of(checkpoint: Checkpoint, fresh: Node | None) -> Node | None:
    """Return an average that begins at the checkpoint's weights. fresh: the average as built; None for no average."""
    if fresh is None:
        return None
    return {key: checkpoint.model.get(key.removeprefix("module."), value) for key, value in fresh.items()}
