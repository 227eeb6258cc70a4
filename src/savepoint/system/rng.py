"""The random generators that training code draws from: Python's, NumPy's, torch's on the CPU and each accelerator."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def fold_in(*parts: int | str) -> int:
    """A seed of 64 bits that depends on every part and on their order.

    The same on every machine and Python version, unlike `hash`. Source: BLAKE2b (RFC 7693) of the parts' text.

    >>> fold_in(0, "train", 3, 17)
    266371558287364527
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def seed(value: int) -> None:
    """Start every generator from `value` (0 to 2**64 - 1).

    Not `torch.manual_seed`: that walks every device back end at 170 µs a call, and this runs once for each batch.
    """
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # 2 µs; all 64 bits, as two words, would cost 12
    torch.default_generator.manual_seed(value)
    for generator in _device_generators():
        generator.manual_seed(value)


def capture() -> dict[str, Any]:
    """The state of every generator, as a tree that `tree.split` can write and `restore` takes back."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.default_generator.get_state(),
        "devices": [generator.get_state() for generator in _device_generators()],
    }


def restore(states: dict[str, Any]) -> None:
    """Put every generator back. On a machine with fewer devices, those that exist are restored, in order."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.default_generator.set_state(states["torch"])
    for generator, state in zip(_device_generators(), states["devices"], strict=False):
        generator.set_state(state)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Whatever is drawn inside, the generators outside go on as if it had not been."""
    states = capture()
    try:
        yield
    finally:
        restore(states)


def _device_generators() -> tuple[torch.Generator, ...]:
    """The generators of the accelerators in use; before the first tensor on one, nothing can have drawn from its own.

    A generator's state lives in host memory: reading it waits for no kernel.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return tuple(torch.cuda.default_generators)
    if torch.backends.mps.is_available():
        return (torch.mps._get_default_mps_generator(),)
    if hasattr(torch, "xpu") and torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        return tuple(torch.xpu.default_generators)
    return ()
