"""What parallel.py measures of checkpoints: a model that is cut among ranks, saved and loaded, against torch's own.

A state is an MLP and AdamW's moments, cut by FSDP. Savepoint saves as its training loop does. Torch is given a state
dict that is ready, and fills its tensors in place. Each figure is that of the rank that took longest.

torch.distributed.checkpoint syncs its files itself, and verifies nothing; its directory is synced here. Savepoint
digests every byte when it saves, and verifies every byte when it loads.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aims
import checkpoint as one_process
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from step import REPOSITORY
from torch import Tensor

from savepoint import checkpoint, parallel, runs, trust
from savepoint.config import Settings, compose
from savepoint.training import Saves, TrainState, assemble, restore

SAVE, DCP_SAVE = "durable save", "dcp.save + fsync"
STALL, DCP_STALL, COPY = "stall of an async save", "stall of dcp.async_save", "one copy of a rank's part"
LOAD, DCP_LOAD = "verified load", "dcp.load"
AIMS = (
    aims.Aim(SAVE, DCP_SAVE, 0.75),
    aims.Aim(STALL, COPY, 1.3),
    aims.Aim(STALL, DCP_STALL, 1.0),
    aims.Aim(LOAD, DCP_LOAD, 1.0),
)


def build(size: str) -> tuple[TrainState, Settings]:
    """Make a state of so many bytes over all ranks (`500MB`), with AdamW's moments."""
    parameters = aims.in_bytes(size) // 12
    width = 64 * max(1, int((parameters / 10) ** 0.5) // 64)
    hidden = [width] * (1 + max(1, round(parameters / width**2)))
    overrides = ["trainer.parallel=fsdp", "fsdp.classes=Linear", "trainer.device=cpu", "tracker=none"]
    overrides += [f"model.hidden={json.dumps(hidden)}", "checkpoint.keep_last=1000", "checkpoint.monitor=null"]
    composed = compose(overrides, REPOSITORY / "conf")
    settings = trust.check_config(composed, source=REPOSITORY / "src")
    state, _ = assemble(composed, settings, source=REPOSITORY / "src")
    optimizer = state.optimizers[""].optimizer
    for parameter in state.model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    optimizer.zero_grad()
    return state, settings


def state_dict(state: TrainState) -> dict[str, Any]:
    return {"model": state.model.state_dict(), "optimizer": state.optimizers[""].optimizer.state_dict()}


def own_part(state: TrainState) -> list[Tensor]:
    moments = state.optimizers[""].optimizer.state_dict()["state"].values()
    tensors = [*state.model.state_dict().values(), *itertools.chain(*(each.values() for each in moments))]
    return [parallel.own(each) for each in tensors]


def slowest(action: Callable[[], object], *, finish: Callable[[], object] = lambda: None) -> float:
    """Return the seconds of the rank that takes longest.

    finish: waits for what the action leaves to another thread, which may talk to the other ranks as well.
    """
    dist.barrier()
    took = torch.tensor(one_process.seconds(action), dtype=torch.float64)
    finish()
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def training_saves(folder: Path, settings: Settings) -> Saves:
    run = runs.create(folder / f"rank-{parallel.rank()}", id=runs.new_id(), name=None, config="", overrides=[])
    source = runs.gather_provenance(REPOSITORY) | {"config_sha256": ""}
    return Saves(run, settings, config="", patch=None, provenance=source, resumed_from=None)


def dcp_save(state: dict[str, Any], directory: Path) -> None:
    dcp.save(state, checkpoint_id=directory)
    if parallel.leads():
        for each in (directory, directory.parent):
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


class Contenders:
    """What takes turns. Every rank makes the same calls."""

    def __init__(self, state: TrainState, saves: Saves, folder: Path) -> None:
        self._state, self._saves, self._folder = state, saves, folder
        self._dict, self._part = state_dict(state), own_part(state)
        self._buffers = [torch.empty_like(each) for each in self._part]
        self._numbers = itertools.count()
        self.timed: dict[str, Callable[[], float]] = {
            SAVE: functools.partial(self._ours, last=True),
            DCP_SAVE: self._dcp,
            STALL: functools.partial(self._ours, last=False),
            DCP_STALL: self._dcp_stall,
            COPY: self._copy,
        }

    def _begin(self) -> Path:
        one_process.settle()
        for each in self._part:  # near the processor is what an update would have left there
            each.sum()
        self._state.step += 1
        return self._folder / f"dcp-{next(self._numbers)}"

    def _ours(self, *, last: bool) -> float:
        self._begin()
        took = slowest(lambda: self._saves.save(self._state, last=last), finish=self._saves.wait)
        self._remove(self._saves.newest)
        return took

    def _dcp(self) -> float:
        directory = self._begin()
        took = slowest(lambda: dcp_save(self._dict, directory))
        self._remove(directory)
        return took

    def _dcp_stall(self) -> float:
        directory = self._begin()
        under_way: list[Any] = []
        save = functools.partial(dcp.async_save, self._dict, checkpoint_id=directory)
        took = slowest(lambda: under_way.append(save()), finish=lambda: under_way[0].result())
        self._remove(directory)
        return took

    def _copy(self) -> float:
        self._begin()
        return slowest(lambda: torch._foreach_copy_(self._buffers, self._part))

    def _remove(self, directory: Path | None) -> None:
        dist.barrier()
        if parallel.leads() and directory is not None:
            shutil.rmtree(directory)


def time_loads(state: TrainState, saves: Saves, folder: Path, repeats: int) -> aims.Measured:
    saves.save(state, last=True)
    dcp_save(tensors := state_dict(state), folder / "dcp")
    dist.barrier()
    (name,) = checkpoint.names(folder / "rank-0" / "checkpoints")
    path = folder / "rank-0" / "checkpoints" / name

    def timed(load: Callable[[], object]) -> float:
        one_process.trim()
        return slowest(load)

    contenders = {
        LOAD: lambda: timed(lambda: restore(state, checkpoint.load(path, part=True))),
        DCP_LOAD: lambda: timed(lambda: dcp.load(tensors, checkpoint_id=folder / "dcp")),
    }
    return one_process.turns(contenders, repeats)


def measure(size: str, repeats: int, folder: Path) -> aims.Measured:
    """Save and load a state again and again. Every rank has to call this."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    folder = folder / size
    folder.mkdir(exist_ok=True)
    state, settings = build(size)
    with contextlib.closing(training_saves(folder, settings)) as saves:
        measured = one_process.turns(Contenders(state, saves, folder).timed, repeats)
        return measured | time_loads(state, saves, folder, repeats)


def tables(results: dict[str, aims.Measured]) -> str:
    """Ratios beside their aims, then what they are ratios of."""
    titles = [aims.called(size) for size in results]
    lines = [aims.row("ratio", "aim", *titles), aims.row(*["---"] * (2 + len(titles)))]
    for aim in AIMS:
        cells = (aims.judged(size, each, aim) for size, each in results.items())
        lines.append(aims.row(f"{aim.ours} / {aim.theirs}", f"≤ {aim.at_most:g}", *cells))
    lines += ["\nMilliseconds, median (least … most).\n", aims.row("", *titles), aims.row(*["---"] * (1 + len(titles)))]
    for name in (SAVE, DCP_SAVE, STALL, DCP_STALL, COPY, LOAD, DCP_LOAD):
        lines.append(aims.row(name, *(aims.spread(each[name], 1e3) for each in results.values())))
    return "\n".join(lines)
