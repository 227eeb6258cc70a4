"""Check and measure in one process what an accelerator does: generators, snapshots, memory, the time of a step."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from killed import REPOSITORY, make_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from savepoint import checkpoint, runs, system, trackers, training, trust
from savepoint.checkpoint import Snapshot
from savepoint.config import Settings
from savepoint.training import Parts, TrainState
from savepoint.training.step import update

MIB = 2**20
SLEEP_CYCLES = 20_000_000  # of a GPU's clock: about 10 ms


def wait(device: str) -> None:
    """Wait until the device has done everything that it was asked to do."""
    if device != "cpu":
        torch.cuda.synchronize()


def check_generators(device: str) -> int:
    """Seed, capture and restore the generators of every device, and compare what they draw. Returns: how many."""
    count = 1 if device == "cpu" else torch.cuda.device_count()
    # A generator exists once its device is in use.
    devices = [torch.empty(0, device=device if device == "cpu" else f"cuda:{index}").device for index in range(count)]

    def draw() -> list[Tensor]:
        return [torch.rand(1000, device=each).cpu() for each in devices]

    system.rng.seed(3)
    first = draw()
    captured = system.rng.capture()
    second = draw()
    system.rng.restore(captured)
    restored = draw()
    system.rng.seed(3)
    with system.rng.isolated():
        draw()
    seeded = draw()
    for index, name in enumerate(devices):
        assert torch.equal(second[index], restored[index]), f"{name} draws other numbers once it was restored"
        assert torch.equal(first[index], seeded[index]), f"{name} draws other numbers from the same seed"
        assert not torch.equal(first[index], second[index]), f"{name} draws the same numbers again"
    return count


def check_snapshot(device: str, mebibytes: int) -> None:
    """Change tensors right before and right after they are copied, and compare the copy with their values in between.

    The device is busy when the changes and the copy are asked for. So a copy that does not wait for the change before
    it is wrong, and a change that does not wait for the copy before it spoils that copy.
    """
    snapshot = Snapshot()
    real = [torch.zeros(mebibytes * MIB // 4, device=device), *(torch.zeros(7, device=device) for _ in range(100))]
    # Tensors whose bytes do not lie in memory as they lie in the file: these take another way through torch.
    real.append(torch.zeros(64, 32, 8, 8, device=device).contiguous(memory_format=torch.channels_last))
    conjugate = torch.zeros(100, 100, dtype=torch.complex64, device=device)
    tensors = {str(index): tensor for index, tensor in enumerate(real)} | {"conjugate": conjugate.conj()}
    documents = {checkpoint.CONFIG: "", checkpoint.PROVENANCE: "{}"}
    draft = checkpoint.draft(model=tensors, state={"epoch": 0, "step": 0}, documents=documents, metadata={})
    for turn in range(1, 6):
        if device != "cpu":
            torch.cuda._sleep(SLEEP_CYCLES)
        for tensor in real:
            tensor.fill_(turn)
        conjugate.fill_(complex(0, turn))
        copied = snapshot.copy(draft.model)
        for tensor in (*real, conjugate):
            tensor.fill_(-1)
        snapshot.wait()
        content = copied.tensors[0].view(torch.float32)
        # Complex numbers are the widest and come first: pairs of a real and an imaginary part, here conjugated.
        pairs, numbers = content[: 2 * conjugate.numel()].view(-1, 2), content[2 * conjugate.numel() :]
        expected = torch.tensor([0.0, -turn]).expand_as(pairs)
        assert torch.equal(pairs, expected), f"copy {turn}: a lazy conjugate is not as it was"
        assert torch.equal(numbers, torch.full_like(numbers, turn)), f"copy {turn} is not the state of its moment"


@dataclasses.dataclass(frozen=True)
class Saved:
    """What saves cost. Times are medians, sizes are in MiB; memory is that of the device, and None on the CPU.

    state: the size of the state. call: µs until an asynchronous save returns. update: µs until the device can begin the
    next update. durable: ms until the checkpoint is on the disk. peak: memory that the saves took on the device.
    """

    state: float
    call: float
    update: float
    durable: float
    peak: float | None


def measure_saves(device: str, folder: Path, *, large: bool) -> Saved:
    """Save a training state while training goes on. Raises: AssertionError if a checkpoint is not the state saved."""
    config = make_config("transformer", device, folder, {})
    if large:  # 100 million parameters: 1.2 GB with AdamW's moments
        config["model"] |= {"width": 1024, "layers": 8, "heads": 16}
        config["checkpoint"]["keep_last"] = 1
    settings = trust.check_config(config, source=REPOSITORY / "src")
    state, parts = _assemble(config, settings)
    run = runs.create(folder / "run", id=runs.new_id(), name=None, config="", overrides=[])
    source = {"git": {"commit": None}, "config_sha256": ""}
    saves = training.Saves(run, settings, config="", patch=None, provenance=source, resumed_from=None)
    batches = list(parts.train.epoch(0))
    times, peaks = [], []
    for batch in batches[:5]:
        update(state, parts, [batch])
        model, optimizer = copy.deepcopy(
            (state.model.state_dict(), state.optimizers[""].optimizer.state_dict()["state"])
        )
        wait(device)
        held = _reset_peak(device)
        started = time.perf_counter()
        saves.save(state)
        called = time.perf_counter() - started
        probe = torch.zeros(1, device=device)
        wait(device)
        free = time.perf_counter() - started
        peaks.append(_peak(device) - held)
        del probe
        saves_step = state.step
        # Training goes on while the checkpoint is written, and changes the weights at once.
        torch._foreach_mul_([parameter.detach() for parameter in state.model.parameters()], 1.1)
        update(state, parts, [batch])
        saves.wait()
        times.append((1e6 * called, 1e6 * free, 1e3 * (time.perf_counter() - started)))
        _check_saved(saves.newest, saves_step, model, optimizer)
        del model, optimizer
    wait(device)
    held = _reset_peak(device)
    saves.save(state, last=True)
    peaks.append(_peak(device) - held)
    saves.close()
    size = sum(path.stat().st_size for path in saves.newest.glob("*.safetensors")) / MIB if saves.newest else 0.0
    peak = max(peaks) / MIB
    assert peak < size / 20 or device == "cpu", f"saving {size:.0f} MiB took {peak:.0f} MiB more on the device"
    call, free, durable = (statistics.median(each) for each in zip(*times[1:], strict=True))
    return Saved(size, call, free, durable, None if device == "cpu" else peak)


def _reset_peak(device: str) -> int:
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated()


def _check_saved(path: Path | None, step: int, model: dict[str, Tensor], optimizer: dict[int, Any]) -> None:
    assert path is not None, "nothing was saved"
    loaded = checkpoint.load(path)
    assert loaded.state["step"] == step
    for name, value in model.items():
        assert torch.equal(loaded.model[name], value.cpu()), f"{name} was saved as it became later"
    for index, entry in optimizer.items():
        for name, value in entry.items():
            there = loaded.state["optimizer"]["state"][index][name]
            assert torch.equal(there, value.cpu()), f"the optimizer's {name} {index} was saved as it became later"


def _assemble(config: dict[str, Any], settings: Settings) -> tuple[TrainState, Parts]:
    training.environment(settings, threads=1)
    return training.assemble(config, settings, source=REPOSITORY / "src")


class _Unsaved:
    """Saves nothing: a checkpoint is no part of a step."""

    def __init__(self, metrics: Path) -> None:
        self.history, self.usage = runs.History(metrics), metrics.with_name("usage.jsonl")

    def save(self, state: TrainState, *, last: bool = False) -> None:
        pass

    def due(self) -> bool:
        return False


class _Silent:
    """Shows no progress."""

    def advance(self, *, epoch: int, step: int) -> None:
        pass


def measure_step(device: str, folder: Path, *, steps: int, rounds: int) -> tuple[float, float]:
    """Time the engine's `fit` and a loop written by hand, in turns, with the same model and data.

    Returns: µs that a step of `fit` takes, and how many times as long as a step of the other loop; both are medians.
    """
    config = make_config("transformer", device, folder, {"data.limit_batches": steps + 1, "trainer.max_steps": steps})
    settings = trust.check_config(config, source=REPOSITORY / "src")
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        calls = (_fit(config, settings, folder / f"{turn}.jsonl"), _loop(config, settings, device))
        times.append((_time(device, calls[0]), _time(device, calls[1])))
    del times[0]  # torch imports parts of itself at the first step, and CUDA loads its libraries
    ratio = statistics.median(ours / bare for ours, bare in times)
    return 1e6 * statistics.median(ours for ours, _ in times) / steps, ratio


def _time(device: str, call: Callable[[], None]) -> float:
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def _fit(config: dict[str, Any], settings: Settings, metrics: Path) -> Callable[[], None]:
    state, parts = _assemble(config, settings)
    saves, progress, stop = _Unsaved(metrics), _Silent(), system.signals.Stop()
    return lambda: training.fit(state, parts, saves, trackers.NoTracker(), progress, stop)  # type: ignore[arg-type]


def _loop(config: dict[str, Any], settings: Settings, device: str) -> Callable[[], None]:
    """A loop with nothing but the model and the optimizer, over batches that were cut and pinned beforehand."""
    state, parts = _assemble(config, settings)
    batches = list(parts.train.epoch(0))[:-1]

    def loop() -> None:
        model, optimizer = state.model.train(), state.optimizers[""].optimizer
        for inputs, targets in batches:
            inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop
