"""What a checkpoint costs: to save, to leave to another thread, to load. `python benchmarks/checkpoint.py`

A state is a transformer with AdamW's moments, of a given size in all; one more is 50,000 small tensors. All contenders
save, copy and load the same tensors. They take turns in every round, in another order each time, so that a noisy
machine disturbs all alike, and each ratio is the median of the rounds' own ratios. The first round does not count:
memory and room on the disk are taken for the first time there. A write begins when the disk has nothing else to do; a
load begins with the file in the kernel's memory, and ends when every number has been read.

Each state has a process of its own, and so has the memory that its saves take on top of it: the most that was ever
resident, less what was before (Linux only). The kernel's own copies of files are no part of that.

2 GB takes about 6 GB of memory and of the disk under --directory, and a disk in memory (tmpfs) knows no fsync.
"""

import argparse
import contextlib
import ctypes
import datetime
import functools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import aims
import torch
from aims import (
    ASYNC,
    COPY,
    LOAD,
    MEGABYTE,
    RAW,
    SAFE_LOAD,
    SAFE_SAVE,
    SAVE,
    STALL,
    STATE,
    SYNC,
    TORCH_LOAD,
    TORCH_SAVE,
    Measured,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from savepoint import checkpoint, runs, trust  # noqa: E402
from savepoint.config import compose  # noqa: E402
from savepoint.training import (  # noqa: E402
    NoSchedule,
    Optimization,
    Saves,
    TrainState,
    capture,
)

RUNS = REPOSITORY / "runs"  # where checkpoints lie
SETTLE_SECONDS = 0.3
DOCUMENTS = {checkpoint.CONFIG: "", checkpoint.PROVENANCE: "{}"}


def build(size: str) -> TrainState:
    """Model and moments of so many bytes (`500MB`), or of so many small tensors (`50000`)."""
    torch.manual_seed(0)
    model = small_layers(int(size)) if size.isdecimal() else transformer(aims.in_bytes(size) // 12)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return TrainState(model, {"": Optimization(optimizer, NoSchedule(), torch.amp.GradScaler("cpu", enabled=False))})


def transformer(parameters: int) -> nn.Module:
    """A block of width w has 12 w² parameters, and there are about w / 64 blocks, as models grow."""
    width = 64 * max(1, int((64 * parameters / 12) ** (1 / 3)) // 64)
    depth = max(1, round(parameters / (12 * width**2)))
    blocks = [nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True) for _ in range(depth)]
    return nn.Sequential(nn.Embedding(256, width), *blocks)


def small_layers(tensors: int) -> nn.Module:
    """Weights and biases of 256 numbers. AdamW has three tensors for each, so a layer is eight."""
    return nn.Sequential(*(nn.LayerNorm(256) for _ in range(tensors // 8)))


def named(state: TrainState) -> dict[str, Tensor]:
    moments = state.optimizers[""].optimizer.state_dict()["state"]
    flat = {f"optimizer.{i}.{name}": value for i, values in moments.items() for name, value in values.items()}
    return state.model.state_dict() | flat


def draft(state: TrainState) -> checkpoint.Draft:
    model, tree = capture(state)
    return checkpoint.draft(model=model, state=tree, documents=DOCUMENTS, metadata={})


def save(state: TrainState, directory: Path) -> Path:
    return checkpoint.publish(directory, draft(state))  # what `checkpoint.save` is


def torch_save(state: TrainState, directory: Path) -> Path:
    path = directory / "state.pt"
    torch.save({"model": state.model.state_dict(), "optimizer": state.optimizers[""].optimizer.state_dict()}, path)
    return synced(path)


def safetensors_save(state: TrainState, directory: Path) -> Path:
    path = directory / "state.safetensors"
    save_file(named(state), path)
    return synced(path)


def synced(path: Path) -> Path:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return path


def raw_write(chunks: list[memoryview], directory: Path) -> Path:
    path = directory / "raw"
    with open(path, "wb") as file:
        file.writelines(chunks)
    return synced(path)


def load(path: Path) -> object:
    loaded = checkpoint.load(path)
    read(loaded.model, *loaded.state["optimizer"]["state"].values())
    return loaded


def torch_load(path: Path) -> object:
    loaded = torch.load(path, weights_only=True)
    read(loaded["model"], *loaded["optimizer"]["state"].values())
    return loaded


def safetensors_load(path: Path) -> object:
    loaded = load_file(path)
    read(loaded)
    return loaded


def read(*groups: dict[str, Tensor]) -> None:
    for group in groups:
        for tensor in group.values():
            tensor.sum()


WRITERS = {SAVE: save, TORCH_SAVE: torch_save, SAFE_SAVE: safetensors_save}
READERS = {LOAD: load, TORCH_LOAD: torch_load, SAFE_LOAD: safetensors_load}  # of what WRITERS wrote, in that order


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    result = action()
    took = time.perf_counter() - begun
    del result  # to give its memory back is no part of it
    return took


def loading(load: Callable[[Path], object], path: Path) -> float:
    trim()
    return seconds(lambda: load(path))


def trim() -> None:
    """Give free memory back to the system: then a load takes its own anew, as in a process that resumes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Until the disk has nothing else to do: it goes on freeing what was deleted after everything is written."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def writing(folder: Path, write: Callable[[Path], object]) -> float:
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        settle()
        return seconds(lambda: write(directory))
    finally:
        shutil.rmtree(directory)


def stall(state: TrainState, saves: Saves) -> float:
    """How long the training loop waits for `Saves.save`, the save before having ended."""
    state.step += 1
    settle()
    read(named(state))  # near the processor is what an update would have left there, here and for a copy
    took = seconds(lambda: saves.save(state))
    saves.wait()
    return took


def copy(state: TrainState, buffers: list[Tensor]) -> float:
    """The least that an async save has to do: every tensor into memory that is there already."""
    tensors = named(state)
    read(tensors)
    return seconds(lambda: [buffer.copy_(tensor) for buffer, tensor in zip(buffers, tensors.values())])


def training_saves(folder: Path, *, async_save: bool) -> Saves:
    """As the training loop has them, keeping one checkpoint."""
    keep = ["checkpoint.keep_last=1", "checkpoint.keep_best=0", "checkpoint.monitor=null"]
    composed = compose([*keep, f"checkpoint.async_save={async_save}", "tracker=none"], REPOSITORY / "conf")
    settings = trust.check_config(composed, source=REPOSITORY / "src")
    one = runs.create(folder / runs.new_id(), id=runs.new_id(), name=None, config="", overrides=[])
    source = runs.gather_provenance(REPOSITORY) | {"config_sha256": ""}
    return Saves(one, settings, config="", patch=None, provenance=source, resumed_from=None)


def turns(contenders: dict[str, Callable[[], float]], repeats: int) -> Measured:
    order = random.Random(0)  # another one in each round: what one leaves behind slows the next
    rounds = [
        {name: contenders[name]() for name in order.sample(sorted(contenders), len(contenders))}
        for _ in range(repeats + 1)
    ]
    return {name: [one[name] for one in rounds[1:]] for name in contenders}


def time_writers(state: TrainState, repeats: int, folder: Path) -> Measured:
    """Those that need the state in memory."""
    plans = draft(state)
    chunks = [*plans.model.chunks(), *plans.training.chunks()]
    buffers = [torch.empty_like(tensor) for tensor in named(state).values()]
    writers = {name: functools.partial(write, state) for name, write in WRITERS.items()}
    writers[RAW] = functools.partial(raw_write, chunks)
    with contextlib.closing(training_saves(folder, async_save=True)) as saves:
        contenders = {name: functools.partial(writing, folder, write) for name, write in writers.items()}
        contenders[STALL] = functools.partial(stall, state, saves)
        contenders[COPY] = functools.partial(copy, state, buffers)
        return turns(contenders, repeats)


def time_all(size: str, repeats: int, folder: Path) -> Measured:
    state = build(size)
    measured = time_writers(state, repeats, folder) | {STATE: [sum(tensor.nbytes for tensor in named(state).values())]}
    paths = [write(state, folder) for write in WRITERS.values()]
    del state
    pairs = zip(READERS.items(), paths)
    contenders = {name: functools.partial(loading, reader, path) for (name, reader), path in pairs}
    return measured | turns(contenders, repeats)


def extra_memory(size: str, folder: Path, *, async_save: bool) -> float:
    """Bytes that two saves take at most, over what the process had before: the model, AdamW, torch."""
    state = build(size)
    with contextlib.closing(training_saves(folder, async_save=async_save)) as saves:
        trim()  # or a save could take what the gradients left behind, unseen
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
        before = resident("VmRSS")
        for _ in range(2):
            state.step += 1
            saves.save(state)
            saves.wait()
        return resident("VmHWM") - before


def resident(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def measure(size: str, repeats: int, folder: Path) -> Measured:
    """Each in a process of its own: what one leaves in memory is nothing to the next."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as processes:

        def alone(function: Callable[..., object], *arguments: object, **keywords: object) -> object:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                return processes.submit(function, size, *arguments, Path(own), **keywords).result()

        measured = alone(time_all, repeats)
        if sys.platform == "linux":
            measured |= {name: [alone(extra_memory, async_save=name == ASYNC)] for name in (ASYNC, SYNC)}
    return measured | {MEGABYTE: [1e6]}


def machine(directory: Path) -> str:
    hardware = runs.gather_provenance(REPOSITORY)["hardware"]
    parts = [hardware["processor"], f"{hardware['cores']} cores"]
    if sys.platform == "linux":
        parts += [f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB of memory"]
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
        parts += [max((len(at), kind) for at, kind in mounts if directory.resolve().is_relative_to(at))[1]]
    return ", ".join([*parts, f"torch {torch.__version__}", f"{datetime.date.today()}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10MB,100MB,500MB,2GB", help="of model and moments together")
    parser.add_argument("--tensors", default="50000", help="how many small tensors")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--directory", type=Path, default=RUNS, help="on the disk to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where to leave checkpoint.json and checkpoint.png")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    title = f"{machine(arguments.directory)}, {arguments.repeats} rounds"
    print(f"{title}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as folder:
        sizes = [*arguments.sizes.split(","), arguments.tensors]
        results = {size: measure(size, arguments.repeats, Path(folder)) for size in sizes}
    print(aims.tables(results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "checkpoint.json").write_text(json.dumps({"machine": title, "states": results}, indent=1))
        aims.plot(results, title).savefig(arguments.out / "checkpoint.png", dpi=120)


if __name__ == "__main__":
    main()
