"""Text as a row of bytes, cut into windows: Python's own reference manual, or a file of your own."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from savepoint.errors import ConfigError


class Text(Dataset[tuple[Tensor, Tensor]]):
    """One split of a text: `inputs` (context,) int64, the bytes of a window; `targets` (context,), the ones after.

    The alphabet is that of bytes, 0..255, whatever the text: so any file will do, a model fits every text, and scores
    of different alphabets can be compared. In English nearly every character is one byte.

    split: "train", the beginning of the text, "val", what follows, or "test", its end: nothing without test_fraction.
    file: path of the text; None takes the manual that Python's `help()` shows, half a megabyte of English.
    context: bytes in a window. The windows lie side by side.
    shift: move each training window at random, by less than its length: epochs differ. Validation windows never move.
    val_fraction, test_fraction: the shares of the text that validate and test.
    """

    def __init__(
        self,
        split: str,
        *,
        file: str | None = None,
        context: int = 64,
        shift: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
    ) -> None:
        if context < 1:
            raise ConfigError(f"data.dataset.context={context}: must be at least 1.")
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.dataset.val_fraction={val_fraction}: must be between 0 and 1, for example 0.1.")
        if not 0 <= test_fraction < 1 - val_fraction:
            raise ConfigError(
                f"data.dataset.test_fraction={test_fraction}: must be at least 0, and below 1 - val_fraction."
            )
        text = read_manual() if file is None else read_text(file)
        end = len(text) - round(len(text) * test_fraction)
        cut = end - round(len(text) * val_fraction)
        part = {"train": text[:cut], "val": text[cut:end], "test": text[end:]}[split]
        if split == "test" and not test_fraction:
            raise ConfigError("data.dataset.test_fraction=0: no text is set aside for testing. Try 0.1.")
        if len(part) <= context:
            raise ConfigError(
                f"data.dataset.file: {file or 'the manual'} is too short: its {split} split has {len(part)} bytes, and "
                f"a window of data.dataset.context={context} needs {context + 1}. Lower data.dataset.context."
            )
        self.context = context
        self.shift = shift and split == "train"
        # Every window with the byte after it, (starts, context + 1): a view, not a copy for each.
        self.windows = sliding_window_view(part, context + 1)

    def __len__(self) -> int:
        return (len(self.windows) - 1) // self.context + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The finished batch: inputs and targets, (n, context) each."""
        starts = np.array(indices) * self.context
        if self.shift:
            # From torch's generator, which the engine seeds for each batch: so it repeats when a run is resumed.
            moved = starts + torch.randint(self.context, (len(indices),)).numpy()
            starts = np.minimum(moved, len(self.windows) - 1)
        chosen = torch.from_numpy(self.windows[starts])
        return chosen[:, :-1].long(), chosen[:, 1:].long()


@cache
def read_manual() -> NDArray[np.uint8]:
    """The topics of Python's reference manual, which ship with Python, in the order of their names.

    Its text differs a little between versions of Python. Raises: ConfigError where Python was installed without it.
    """
    if importlib.util.find_spec("pydoc_data") is None:
        raise ConfigError("data=text: this Python has no pydoc_data. Give a text: data.dataset.file=<path>.")
    from pydoc_data.topics import topics

    return np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), dtype=np.uint8)


def read_text(file: str) -> NDArray[np.uint8]:
    """All bytes of a file. Raises: ConfigError if there is none, or it cannot be read."""
    path = Path(file)
    # Nothing but a file: a device or a pipe could be read for ever.
    if not path.is_file():
        raise ConfigError(f"data.dataset.file: there is no file {path.absolute()}.")
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ConfigError(f"data.dataset.file: {file} cannot be read: {error.strerror}.") from error
