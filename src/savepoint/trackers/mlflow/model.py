"""Store the model of a checkpoint as an MLflow model: code, safetensors and the config. It loads without a pickle.

Only the tracker's process imports this module. torch is not imported.
"""

import functools
import importlib.metadata
import io
import json
import platform
import re
import shutil
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from safetensors import safe_open

from savepoint.errors import UserError
from savepoint.trackers.mlflow import client as clients

CHECKPOINT = "savepoint.checkpoint"  # the tag with the name of a model's checkpoint
FILES = ("model.safetensors", "config.yaml", "provenance.json")
INPUTS, SERVED = "input_example.json", "serving_input_example.json"


def log_model(
    uri: str,
    client: MlflowClient,
    run: Run,
    *,
    checkpoint: Path,
    example: Path,
    repository: Path,
    register_as: str | None,
) -> None:
    """Store the model of a checkpoint in its run unless it is stored, and register it unless it is registered.

    uri: the client's address. A registration sets it as MLflow's address for this whole process, because MLflow's
    registry reads it from there. example: a file with one call of the model, which may be absent.
    register_as: a name in MLflow's registry, or None.
    Weights in the parts of several ranks are not stored: nothing but the checkpoint itself holds them together.
    Raises: UserError if the model is to be registered and no single safetensors file holds all of its state.
    """
    if not (checkpoint / FILES[0]).exists():
        if register_as:
            raise UserError(
                "tracker.register_as: several processes have saved the weights in parts, which MLflow cannot register. "
                "python -m savepoint export puts them together"
            )
        return
    with safe_open(checkpoint / FILES[0], "numpy") as weights:
        elsewhere = (weights.metadata() or {}).get("savepoint.elsewhere")
    if elsewhere:
        if register_as:
            raise UserError(f"tracker.register_as: no safetensors file can hold {elsewhere} of this model")
        return
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    step = int(checkpoint.name.rpartition("_")[2])
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    model = next((each for each in found if each.tags.get(CHECKPOINT) == checkpoint.name), None)
    if model is None:
        clean = re.sub(r"[/:.%\"'=]", "_", run.info.run_name or run_id)  # MLflow refuses these characters
        model = client.create_logged_model(experiment_id, clean, run_id, {CHECKPOINT: checkpoint.name})
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            written = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
            _write(written, Path(folder), checkpoint, example, repository)
            with clients.transfer((checkpoint / FILES[0]).stat().st_size):
                client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
    if register_as:
        mlflow.set_tracking_uri(uri)
        _register(client, register_as, run_id, model)


def _register(client: MlflowClient, name: str, run_id: str, model: LoggedModel) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model.model_id}"
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if all(each.source != source for each in versions):
        version = client.create_model_version(name, source, run_id, model_id=model.model_id)
        # MLflow's page reads a model's registered versions from this tag.
        known = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        known.append({"name": name, "version": version.version})
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(known)})


def _write(model: Model, folder: Path, checkpoint: Path, example: Path, repository: Path) -> None:
    """Write the files of a model into an empty folder, as `mlflow.pyfunc.save_model` does.

    That function would first compare the requirements with what is installed, which takes a second.
    """
    for name in ("data", "code"):
        (folder / name).mkdir()
    for name in FILES:
        shutil.copyfile(checkpoint / name, folder / "data" / name)
    state = json.loads((checkpoint / "state.json").read_bytes())
    facts = {"checkpoint": checkpoint.name, **{key: state[key] for key in ("epoch", "step", "batch")}}
    (folder / "data" / "export.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("loader.py"), folder / "code" / "savepoint_model.py")
    (folder / "code" / "src.zip").write_bytes(_packed(repository))
    (folder / "requirements.txt").write_text("\n".join(_requirements(repository)), encoding="utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")
    if example.is_file():
        model.signature, inputs = _read_example(example)
        for name, content in ((INPUTS, inputs), (SERVED, {"inputs": inputs})):  # Python's JSON, which has NaN
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        model.saved_input_example_info = {"artifact_path": INPUTS, "type": "ndarray", "serving_input_path": SERVED}
    mlflow.pyfunc.add_to_model(model, "savepoint_model", data="data", code="code", python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))


@functools.cache
def _packed(repository: Path) -> bytes:
    """Return a ZIP file of src/ and pyproject.toml, which names the project's package."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [repository / "pyproject.toml", *sorted((repository / "src").rglob("*"))]:
            if path.is_file() and not {"__pycache__"} & {*path.parts} and ".egg-info" not in str(path):
                archive.write(path, path.relative_to(repository).as_posix())
    return packed.getvalue()


@functools.cache
def _requirements(repository: Path) -> list[str]:
    """Return the dependencies in pyproject.toml, each at the version that is installed here."""
    try:
        table = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        table = {}
    found = [f"mlflow=={mlflow.__version__}"]
    for wanted in table.get("project", {}).get("dependencies", ["torch", "numpy", "omegaconf", "hydra-core"]):
        name = re.split(r"[^\w.-]", wanted, maxsplit=1)[0]
        if name == "mlflow":
            continue
        try:  # without a local version such as torch's +cu130, which no public index has
            found.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            found.append(wanted)
    return found


def _read_example(path: Path) -> tuple[ModelSignature, Any]:
    """Return a model's signature, and the inputs of one call as lists: one input alone, or several by name."""
    with safe_open(path, "numpy") as file:
        shapes = json.loads(file.metadata()["shapes"])
        values = {name: file.get_tensor(name) for name in shapes}

    def schema(kind: str) -> Schema:
        keys = [key for key in shapes if key.startswith(kind)]
        named = len(keys) > 1
        return Schema([TensorSpec(values[key].dtype, shapes[key], key[len(kind) :] if named else None) for key in keys])

    inputs = {key[len("inputs/") :]: value.tolist() for key, value in values.items() if key.startswith("inputs/")}
    lone = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return ModelSignature(schema("inputs/"), schema("outputs/")), lone
