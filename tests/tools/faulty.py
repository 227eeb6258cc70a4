"""Models with a fault each. The workshop's project has this file among its models, with an option for each class."""

import contextlib
import os
import random
import resource
import signal
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from savepoint import register


class Raising(nn.Module):
    """Raises at its `at`-th forward pass, or while it is built if `at` is 0. error: `bug`, `value`, or `file`, which is missing."""

    def __init__(self, *, error: str = "bug", at: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.error, self.left = error, at
        if at == 0:
            raise KeyError("a bug while it is built")

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0 and self.error == "file":
            raise FileNotFoundError(2, "No such file or directory", "data/cat.png")
        if self.left == 0 and self.error == "value":
            raise ValueError("model.width=3: one of 4 is needed")
        if self.left == 0:
            raise RuntimeError("a bug in the model")
        return self.linear(inputs.flatten(1))


class Filling(nn.Module):
    """From its `at`-th forward pass on, no file can become larger than `limit` bytes: the disk is as good as full."""

    def __init__(self, *, at: int | None = None, limit: int = 8000) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.at, self.limit, self.count = at, limit, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        if self.count == self.at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        return self.linear(inputs.flatten(1))


class Swallowing(nn.Module):
    """Ctrl-C comes while it is built, and it keeps that to itself, as some libraries do while they are imported.

    wrong: it raises an error of its own in place of it, as if a value were wrong.
    """

    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        if wrong:
            raise ValueError("the library could not be loaded")

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1))


class Slow(nn.Module):
    """Takes its time for each batch."""

    def __init__(self, *, seconds: float = 0.3) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seconds = seconds

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.linear(inputs.flatten(1))


class Count:
    """How often it was asked, and the mean of what it was asked about: state that no module has."""

    def __init__(self) -> None:
        self.times, self.mean = 0, torch.zeros(64)

    def follow(self, inputs: Tensor) -> Tensor:
        self.times += 1
        self.mean = self.mean.lerp(inputs.mean(0), 1 / self.times)
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"times": self.times, "mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times, self.mean = state_dict["times"], state_dict["mean"]


class Remembering(nn.Module):
    """Subtracts the mean of all that it saw in training. registered: whether that is said to be state."""

    def __init__(self, *, registered: bool = True, name: str = "count") -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.count = register(name, Count()) if registered else Count()

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        return self.linear(inputs - (self.count.follow(inputs) if self.training else self.count.mean))


class Thawing(nn.Module):
    """Its first layer is frozen until an epoch, as a pretrained one would be."""

    def __init__(self, *, epoch: int = 1) -> None:
        super().__init__()
        self.first, self.head, self.epoch = nn.Linear(64, 16), nn.Linear(16, 10), epoch

    def begin_epoch(self, epoch: int) -> None:
        self.first.requires_grad_(epoch >= self.epoch)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.first(inputs.flatten(1)).relu())


class Unfreezing(nn.Module):
    """Its first layer is frozen until it has been called five times."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 16).requires_grad_(False), nn.Linear(16, 10)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == 5:
                self.first.requires_grad_(True)
        return self.head(self.first(inputs.flatten(1)).relu())


class Drawing(nn.Module):
    """Draws from every library in training, and has batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(self.norm(self.first(inputs.flatten(1))).relu())
        if self.training:
            hidden = hidden * random.uniform(0.9, 1.1) + float(np.random.normal(0, 0.1))
        return self.head(hidden)


class Double(nn.Module):
    """Of float64 throughout: optimizers keep some of their state in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1).double())


class Lazy(nn.Module):
    """Its layer has no weights before the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
