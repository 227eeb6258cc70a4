"""Data sets and samplers of every kind. The workshop's project has this file among its data, with an option for some."""

import random
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, RandomSampler, Sampler

from project.data.digits import Digits

Sample = tuple[Tensor, int]


def sample(index: int, *drawn: float) -> Sample:
    """64 numbers that say which sample it is and what its loading drew, and a class of ten."""
    return torch.tensor([index / 100, *drawn]).repeat(64)[:64].float(), index % 10


def drawn() -> tuple[float, ...]:
    """A number from each library that draws from a global generator, and from a generator seeded by one."""
    own = np.random.default_rng(np.random.randint(2**31))
    return torch.randn(()).item(), np.random.randn(), own.standard_normal(), random.gauss(0, 1)


class Drawing(Dataset[Sample]):
    """Augmented with numbers from everywhere. Its classes are unequal: `targets`."""

    def __init__(self, split: str, *, samples: int = 50) -> None:
        self.indices = range(samples) if split == "train" else range(100, 110)
        self.targets = [0 if index % 5 else 1 + index % 2 for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        inputs, _ = sample(self.indices[index], *drawn())
        return inputs, self.targets[index]


class Reversing(Sampler[int]):
    """The last sample first in every other epoch, which it is told; and it draws nothing."""

    def __init__(self, dataset: Any) -> None:
        self.samples, self.epoch = len(dataset), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        yield from range(self.samples) if self.epoch % 2 else reversed(range(self.samples))


class Pairs(Sampler[list[int]]):
    """Batches of one sample from each half, in an order drawn from `random`."""

    def __init__(self, dataset: Any) -> None:
        self.half = len(dataset) // 2

    def __len__(self) -> int:
        return self.half

    def __iter__(self) -> Iterator[list[int]]:
        for one in random.sample(range(self.half), self.half):
            yield [one, self.half + random.randrange(self.half)]


class Shuffling(RandomSampler):
    """torch's own. own: with a generator of its own, which goes on from epoch to epoch."""

    def __init__(self, dataset: Any, *, own: bool = False) -> None:
        super().__init__(dataset, generator=torch.Generator().manual_seed(1) if own else None)


class Stream(IterableDataset[Sample]):
    """The samples `first`, `first` + 1, …, each with drawn numbers. samples: None if it never ends."""

    def __init__(self, split: str, *, samples: int | None = 50, buffer: int = 0) -> None:
        self.first = 0 if split == "train" else 100
        self.samples = samples if split == "train" else 10
        self.size = buffer if split == "train" else 0
        self.given = 0
        self.kept: list[Tensor] = []

    def __iter__(self) -> Iterator[Sample]:
        while self.samples is None or self.given < self.samples:
            self.given += 1
            inputs, target = sample(self.first + self.given - 1, *drawn())
            yield self.through_buffer(inputs), target

    def through_buffer(self, inputs: Tensor) -> Tensor:
        """Kept for later, in the place of one that is given now; all libraries have a say in which."""
        if not self.size:
            return inputs
        if len(self.kept) < self.size:
            self.kept.append(inputs)
            return inputs
        place = int(torch.randint(self.size, ())) + np.random.randint(self.size) + random.randrange(self.size)
        given = self.kept[place % self.size].clone()
        self.kept[place % self.size].copy_(
            inputs
        )  # in place, so that whoever kept the state without a copy is found out
        return given

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.kept = state["given"], state["kept"]


class Sized(Stream):
    """The same with a length. length: what it says, if that is not true."""

    def __init__(self, split: str, *, samples: int = 50, buffer: int = 0, length: int | None = None) -> None:
        super().__init__(split, samples=samples, buffer=buffer)
        self.length = self.samples if length is None or split == "val" else length

    def __len__(self) -> int:
        assert self.length is not None
        return self.length


class Permuted(Stream):
    """It draws an order whenever it is asked for an iterator: at once, and not with the first sample."""

    def __iter__(self) -> Iterator[Sample]:
        assert self.samples is not None
        order = torch.randperm(self.samples).tolist()
        return self.rest(order)

    def rest(self, order: list[int]) -> Iterator[Sample]:
        for index in order[self.given :]:
            self.given += 1
            yield sample(self.first + index, *drawn())


class Plain:
    """Can be iterated over, and nothing else: no IterableDataset either."""

    def __init__(self, split: str) -> None:
        self.samples: Iterable[int] = range(10)

    def __iter__(self) -> Iterator[Sample]:
        return map(sample, self.samples)


class Guarded(Digits):
    """Must not be touched by training where it is the test split. Half of its training images test."""

    def __init__(self, split: str) -> None:
        super().__init__(split, limit=64, test_fraction=0.4)
        self.split = split
        self._check()

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self._check()
        return super().__getitems__(indices)

    def _check(self) -> None:
        names = {frame.name for frame in traceback.extract_stack()}
        assert self.split != "test" or "fit" not in names, "training touched the test split"


class Untestable(Digits):
    def __init__(self, split: str) -> None:
        if split == "test":
            raise ValueError("there is no such split")
        super().__init__(split, limit=64)


class Prepared(Digits):
    """Prepares itself: notes each time in `folder`, and who could have done so at the same time."""

    def __init__(self, split: str, folder: str, limit: int = 64) -> None:
        assert (Path(folder) / "ready").exists(), "read before it was prepared"
        super().__init__(split, limit=limit)

    @classmethod
    def prepare(cls, folder: str) -> None:
        lock = Path(__file__).resolve().parents[3] / ".prepare.lock"
        other = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        alone = subprocess.run([sys.executable, "-c", other, str(lock)], capture_output=True).returncode != 0
        with open(Path(folder) / "ready", "a") as file:
            file.write(f"{cls.__name__} alone={alone}\n")


class Unready(Digits):
    @staticmethod
    def prepare() -> None:
        raise ValueError("the server is down")


class Halves:
    """A collate: half of the samples, as a pair."""

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples[::2], strict=True)
        return torch.stack(inputs), torch.stack(targets)


class NoCollate:
    pass


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Digits one by one: without `__getitems__`, so that they are collated."""

    def __init__(self, split: str) -> None:
        self.digits = Digits(split, limit=64)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.digits[index]
