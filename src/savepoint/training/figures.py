"""Write the pictures and texts that a task draws of its model into the run directory, under `figures/`."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from savepoint import checkpoint, parallel, system
from savepoint.errors import ConfigError
from savepoint.training import evaluation
from savepoint.training.state import Parts, TrainState

MOST = 32  # figures of one drawing
KEPT = 50  # newest files of each figure
NAME = re.compile(r"[A-Za-z0-9][\w .-]{0,63}", re.ASCII)
# Leaves out the version of matplotlib, so that equal pictures are equal files.
_BARE: Any = {"Software": None}
log = logging.getLogger("savepoint")


def draw_if_due(state: TrainState, parts: Parts, directory: Path, stop: system.signals.Stop) -> bool:
    """Let the task draw its figures at the end of an epoch, and write each to `directory/<name>/<checkpoint's name>`.

    They are due every `trainer.figures_every_n_epochs`, if the task has `figures`. If the disk refuses a figure, a
    warning says so, and training goes on without the figure.
    Returns: False if `stop.signal` was set meanwhile. A resumed run then draws the figures.
    Raises: ConfigError for what is no figure.
    """
    every = parts.settings.trainer.figures_every_n_epochs
    if every is None or (state.epoch + 1) % every != 0 or not hasattr(parts.task, "figures"):
        return True
    drawn, model = {}, state.model
    if parallel.leads() or (parts.team is not None and parts.team.together):
        validating = evaluation.validating(model, parts, state.epoch, stop, whole=True)
        with contextlib.suppress(evaluation.Stopped), validating as batches:
            drawn = render(parts.task, parts.forward, batches, parts)
    if stop.agree() is not None:
        return False
    name = checkpoint.name_of(epoch=state.epoch + 1, step=state.step)
    try:
        for figure, (suffix, contents) in drawn.items():
            _write(directory / figure, f"{name}{suffix}", contents)
    except OSError as error:
        log.warning("The figures at step %d are not written: %s.", state.step, error.strerror)
    return True


def render(task: Any, forward: Any, batches: Any, parts: Parts) -> dict[str, tuple[str, bytes]]:
    """Let a task draw, and turn its figures into files. Returns: suffix and contents of each, by the figure's name."""
    with parts.autocasting():
        drawn = task.figures(forward, evaluation.on_device(batches, parts))
    kind = type(task).__name__
    if not isinstance(drawn, Mapping) or len(drawn) > MOST:
        found = f"{len(drawn)} figures" if isinstance(drawn, Mapping) else f"a {type(drawn).__name__}"
        raise ConfigError(f"task: figures of {kind} returns {found}, and has to return at most {MOST} by their names.")
    for name in drawn:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"task: figures of {kind} has one named {name!r}. Use letters, digits, spaces, . _ and -."
            )
    return {name: _file(name, figure) for name, figure in drawn.items()}


def _file(name: str, figure: Any) -> tuple[str, bytes]:
    if isinstance(figure, str):
        return ".txt", figure.encode(errors="replace")
    buffer = io.BytesIO()
    if hasattr(figure, "savefig"):  # matplotlib's
        figure.savefig(buffer, format="png", metadata=_BARE)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # pyplot keeps every figure that it made
        return ".png", buffer.getvalue()
    if isinstance(figure, Tensor | np.ndarray):
        from matplotlib import image

        image.imsave(buffer, _pixels(name, figure), format="png", metadata=_BARE)
        return ".png", buffer.getvalue()
    kind = type(figure).__name__
    raise ConfigError(f"task: the figure {name!r} is a {kind}. Give a matplotlib Figure, an image or text.")


def _pixels(name: str, image: Any) -> Any:
    """Convert an image to bytes, (height, width, 3).

    image: (height, width), or (1 or 3, height, width), as uint8 or as floats in 0..1.
    """
    pixels = image.detach().cpu().float().numpy() if isinstance(image, Tensor) else np.asarray(image, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ConfigError(
            f"task: the figure {name!r} has the shape {list(image.shape)}. An image is (height, width), or (1 or 3, "
            "height, width)."
        )
    scale = 1.0 if "uint8" in str(image.dtype) else 255.0
    bytes_ = np.nan_to_num(pixels * scale).clip(0, 255).round().astype(np.uint8)
    return np.broadcast_to(bytes_, (3, *bytes_.shape[1:])).transpose(1, 2, 0)


def _write(directory: Path, name: str, contents: bytes) -> None:
    """Write a figure, and delete the oldest ones of its kind."""
    directory.mkdir(parents=True, exist_ok=True)
    system.files.replace(directory / name, contents)
    for old in sorted((path for path in directory.glob("epoch_*")), key=_step)[:-KEPT]:
        old.unlink(missing_ok=True)


def _step(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0
