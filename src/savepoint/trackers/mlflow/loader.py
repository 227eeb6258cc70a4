"""Load the model beside this file for `mlflow.pyfunc.load_model`. Each MLflow model that we store has a copy of it.

Nothing is unpickled: the class comes from `src.zip`, its arguments from config.yaml, the weights from a safetensors
file. In a process that has imported `savepoint` already, the class comes from there.
"""

import atexit
import importlib
import inspect
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch


def _load_pyfunc(path: str) -> "Predictor":
    """Build the model. path: the directory with config.yaml and model.safetensors. MLflow calls this by its name."""
    if "savepoint" not in sys.modules:
        directory = tempfile.mkdtemp(prefix="savepoint-model-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        with zipfile.ZipFile(Path(__file__).with_name("src.zip")) as code:
            code.extractall(directory)
        sys.path.insert(0, str(Path(directory, "src")))
    return Predictor(importlib.import_module("savepoint").load_model(path))


class Predictor:
    """The object that MLflow calls: arrays in, arrays out. model: in evaluation mode, on the CPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> Any:
        """Call the model. inputs: an array, or arrays by the names of the model's arguments. params: further arguments.

        Returns: an array, or arrays by name where the model returns several tensors.
        """
        named = dict(inputs) if hasattr(inputs, "keys") else None
        with torch.no_grad():
            if named is None or not named.keys() <= inspect.signature(self.model.forward).parameters.keys():
                return _arrays(self.model(_tensors(inputs), **(params or {})))
            return _arrays(self.model(**_tensors(named), **(params or {})))


def _tensors(value: Any) -> Any:
    if hasattr(value, "keys"):
        return {key: _tensors(value[key]) for key in value.keys()}  # noqa: SIM118 - a pandas frame has no other way
    return torch.from_numpy(numpy.array(value))  # a copy: torch has no read-only tensors


def _arrays(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    if hasattr(value, "items"):
        return {key: _arrays(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return {f"output_{number}": _arrays(each) for number, each in enumerate(value)}
    return value
