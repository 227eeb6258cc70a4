"""Data sets, models and tasks that cannot be resumed exactly, one fault each, and some that look so and can.

The workshop's project has this file: `project.inexact`.
"""

import contextvars
import functools
import itertools
import os
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import Dataset, get_worker_info

from savepoint import register
from savepoint.training.task import Outcome

COUNT = 0
SEEN: list[int] = []
STEP: contextvars.ContextVar[int] = contextvars.ContextVar("STEP", default=0)


class Data(Dataset[tuple[Tensor, int]]):
    """Sound by itself. `noise(index)` is added to each sample."""

    def __init__(self, split: str, samples: int = 40) -> None:
        generator = torch.Generator().manual_seed(("train", "val").index(split))
        self.split, self.inputs = split, torch.randn(samples, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs = self.inputs[index] + float(self.noise(index))
        return inputs, int(self.inputs[index].sum() > 0)

    def noise(self, index: int) -> float:
        return 0.0


class UnseededItem(Data):
    def noise(self, index: int) -> float:
        return np.random.default_rng().normal()


class UnseededConstructor(Data):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.generator = random.Random()

    def noise(self, index: int) -> float:
        return self.generator.random()


class UnseededTorch(Data):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.generator = torch.Generator()
        self.generator.seed()

    def noise(self, index: int) -> float:
        return torch.rand((), generator=self.generator).item()


class SeededOwn(Data):
    """Its generator is seeded, and no checkpoint holds how far it is."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.generator = np.random.default_rng(3)

    def noise(self, index: int) -> float:
        return self.generator.normal()


class Urandom(Data):
    def noise(self, index: int) -> float:
        return os.urandom(1)[0] / 255


class Uuid(Data):
    def noise(self, index: int) -> float:
        return uuid.uuid4().int % 1000 / 1000


class Hashed(Data):
    def noise(self, index: int) -> float:
        return hash(f"sample {index}") % 1000 / 1000


class SetOrder(Data):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.words = list({f"word {index}" for index in range(20)})

    def noise(self, index: int) -> float:
        return int(self.words[index % 20].split()[1]) / 20


class Address(Data):
    def noise(self, index: int) -> float:
        return id(self) % 1000003 / 1000003


class Hour(Data):
    def noise(self, index: int) -> float:
        return datetime.now().hour / 24


class Counting(Data):
    count = 0

    def noise(self, index: int) -> float:
        self.count += 1
        return self.count / 1000


class CountingClass(Data):
    count = 0

    def noise(self, index: int) -> float:
        CountingClass.count += 1
        return self.count / 1000


class CountingModule(Data):
    def noise(self, index: int) -> float:
        global COUNT
        COUNT += 1
        return COUNT / 1000


class Annotated(CountingModule):
    """Has more to look at than is looked at."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        box = {"x": 0, "y": 0, "width": 1, "height": 1}
        self.boxes = [{"number": number, "boxes": [dict(box) for _ in range(40)]} for number in range(64)]


class FileTime(Data):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        with tempfile.TemporaryFile() as file:
            # Two processes often write within one tick of the file system's clock, which is 4 ms long.
            os.utime(file.fileno(), ns=(0, threading.get_native_id() * 10**6))
            self.written = os.fstat(file.fileno()).st_mtime_ns

    def noise(self, index: int) -> float:
        return self.written % 1000003 / 1000003


class CountingIterator(Data):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.numbers = itertools.cycle(range(7))

    def noise(self, index: int) -> float:
        return next(self.numbers) / 7


@functools.lru_cache(maxsize=1000)
def drawn(index: int) -> float:
    return random.random()


class Cached(Data):
    """Keeps what it once drew for a sample."""

    def noise(self, index: int) -> float:
        return drawn(index)


class OfWorker(Data):
    def noise(self, index: int) -> float:
        worker = get_worker_info()
        return 0.0 if worker is None else 1.0 + worker.id


class Lazy(Data):
    """Sound: what it keeps is what it would compute again."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.cache: dict[int, float] = {}

    def noise(self, index: int) -> float:
        return self.cache.setdefault(index, index / 40)


class Model(nn.Module):
    """Sound by itself. `change(hidden)` is what comes between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(4, 8), self.between(), nn.Linear(8, 2)

    def between(self) -> nn.Module:
        return nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.middle(self.first(inputs)))


class Counted(Model):
    """Counts its own calls, outside of the modules in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(inputs) / (1 + self.calls)


class Middle(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError


class Of(Model):
    """A model with one of the modules below in its middle."""

    def __init__(self, middle: str) -> None:
        self.name = middle
        super().__init__()

    def between(self) -> nn.Module:
        return globals()[self.name]()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value) if name == "name" else super().__setattr__(name, value)


class Failing(Middle):
    """Has a bug that the third call reveals."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError
        return hidden


class FailingInOneRank(Failing):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) if os.environ["RANK"] == "1" else hidden


class Dying(Middle):
    def forward(self, hidden: Tensor) -> Tensor:
        print("about to die", flush=True)
        os.abort()


class NoiseOfItsOwn(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.RandomState()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.generator.normal()


class NoiseOfOneRank(Middle):
    """Draws in rank 1 alone, from a generator of its own that is seeded and in no state."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(3)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.generator.normal() if os.environ["RANK"] == "1" else hidden


class Reseeding(Middle):
    def forward(self, hidden: Tensor) -> Tensor:
        torch.seed()
        return dropout(hidden, 0.5, self.training)


class Memory(Middle):
    """Not deterministic, as an operation is that adds up in whatever order threads come."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + (torch.empty(1).data_ptr() % 4096 + os.times().elapsed % 1) * 1e-4)


class Backward(Middle):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, hidden: Tensor) -> Tensor:
            return hidden.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient * (1 + os.times().elapsed % 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.Function.apply(hidden)


class Calls(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += self.training
        return hidden / (1 + self.calls)


class NotPersistent(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean.lerp(hidden.detach().mean(0), 0.5)
        return hidden - self.mean


class Attribute(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(8)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean.lerp(hidden.detach().mean(0), 0.5)
        return hidden - self.mean


class Global(Middle):
    def forward(self, hidden: Tensor) -> Tensor:
        SEEN.append(len(hidden))
        return hidden / (1 + len(SEEN))


def counter() -> Callable[[], int]:
    count = 0

    def advance() -> int:
        nonlocal count
        count += 1
        return count

    return advance


class Closure(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.advance = counter()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / self.advance()


def numbers() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


class Generating(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / next(self.numbers)


class Advancing:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _module: Any, _arguments: Any, output: Tensor) -> Tensor:
        return self.advance(output)

    def advance(self, value: Tensor) -> Tensor:
        self.count += 1
        return value / self.count


class Hooked(Middle):
    """State that only a hook of a module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.layer.register_forward_hook(Advancing())

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)


class HookedParameter(Hooked):
    def __init__(self) -> None:
        Middle.__init__(self)
        self.layer = nn.Linear(8, 8)
        self.layer.weight.register_hook(Advancing().advance)


class Bound(Middle):
    """State that only a method holds."""

    def __init__(self) -> None:
        super().__init__()
        self.advance = Advancing().advance

    def forward(self, hidden: Tensor) -> Tensor:
        return self.advance(hidden)


class Context(Middle):
    def forward(self, hidden: Tensor) -> Tensor:
        STEP.set(STEP.get() + 1)
        return hidden / STEP.get()


class Growing(Middle):
    """A buffer of another shape in every update."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, 8))

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = torch.cat((self.seen, hidden.detach()[:1]))
        return hidden + self.seen.mean(0)


class Library(Middle):
    """State where nobody looks for it."""

    def forward(self, hidden: Tensor) -> Tensor:
        random.counted = getattr(random, "counted", 0) + 1  # type: ignore[attr-defined]
        return hidden / random.counted  # type: ignore[attr-defined]


class Default(Middle):
    def forward(self, hidden: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(1)
        return hidden / len(seen)


class Validated(Middle):
    """Changes where it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluations = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.evaluations += not self.training
        return hidden / (1 + self.evaluations)


class Clock(Middle):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * (time.time() % 10)


class Unlisted(Middle):
    """A layer in a plain list, which no model, optimizer or checkpoint knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            self.layers[0].weight += 0.01 * self.training
        return self.layers[0](hidden)


class Unused(Middle):
    """Counts, and nothing depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Registered(Middle):
    def __init__(self) -> None:
        super().__init__()
        self.counter = register("counter", Counter())

    def forward(self, hidden: Tensor) -> Tensor:
        self.counter.count += self.training
        return hidden / (1 + self.counter.count)


class Smoothing:
    """A task whose loss depends on the one before."""

    metrics: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.mean = 1.0

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        loss = cross_entropy(model(batch[0]), batch[1])
        self.mean = 0.5 * self.mean + 0.5 * loss.item()
        return Outcome(loss=loss / self.mean, samples=len(batch[0]), sums={})

    def compute(self, sums: Any, samples: int) -> dict[str, float]:
        return {}


class OwnUpdate:
    """Writes out its updates; the loss is weighted by `weight`. Sound by itself."""

    metrics: tuple[str, ...] = ()

    def update(self, step: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        loss = cross_entropy(step.model(batch[0]), batch[1]) * self.weight(batch)
        step.minimize(loss, samples=len(batch[0]))
        return Outcome(loss=loss, samples=len(batch[0]), sums={})

    def weight(self, batch: tuple[Tensor, Tensor]) -> float:
        return 1.0

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        return Outcome(loss=cross_entropy(model(batch[0]), batch[1]), samples=len(batch[0]), sums={})

    def compute(self, sums: Any, samples: int) -> dict[str, float]:
        return {}


class OwnEvaluation(OwnUpdate):
    """Evaluates by itself too. Sound by itself."""

    def evaluate(self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        losses = [cross_entropy(model(inputs), targets) for inputs, targets in batches]
        return {"loss": float(torch.stack(losses).median()) * self.level()}

    def level(self) -> float:
        return 1.0


class Improving(OwnEvaluation):
    """Measures by how much an evaluation is better than the one before."""

    def __init__(self) -> None:
        self.evaluations = 0

    def level(self) -> float:
        self.evaluations += 1
        return self.evaluations


class CountingUpdate(OwnUpdate):
    def __init__(self) -> None:
        self.calls = 0

    def weight(self, batch: tuple[Tensor, Tensor]) -> float:
        self.calls += 1
        return 1 + self.calls / 10


class Replaying(OwnUpdate):
    """Learns from what it has seen before too."""

    def __init__(self) -> None:
        self.buffer: list[Tensor] = []

    def weight(self, batch: tuple[Tensor, Tensor]) -> float:
        self.buffer.append(batch[0])
        return float(torch.cat(self.buffer).mean()) + 1


class Playing(OwnUpdate):
    """Has an environment with a generator of its own, seeded and so the same in each whole run."""

    def __init__(self) -> None:
        self.environment = np.random.default_rng(3)

    def weight(self, batch: tuple[Tensor, Tensor]) -> float:
        return 1 + self.environment.random()


class Momentum(torch.optim.SGD):
    """Keeps a part of its state to itself."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps
        return super().step(closure)


class Warming(torch.optim.lr_scheduler.LRScheduler):
    """Keeps a part of its state out of its state_dict."""

    def __init__(self, optimizer: Any) -> None:
        self.steps = 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.steps += 1
        return [0.1 / self.steps for _ in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_epoch = state["last_epoch"]
