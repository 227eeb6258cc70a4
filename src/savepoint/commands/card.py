"""The model card of an export: what the model is, what it was trained on, what it measured, how to use it."""

from typing import Any

from torch import nn

from savepoint import checkpoint, runs, trust
from savepoint.checkpoint import Checkpoint


def write(run: runs.Run | None, loaded: Checkpoint, facts: dict[str, Any], *, model: nn.Module) -> str:
    """Return the text of README.md. run: None for a checkpoint without one. facts: what export.json says."""
    config, provenance = trust.parse_config(loaded.config), loaded.provenance
    weights = "averaged weights of " if facts["ema"] else ""
    sections = [
        f"# {(run and run.record['name']) or type(model).__name__}",
        f"The {weights}checkpoint `{loaded.path.name}` of run `{facts['run']}`, exported by Savepoint.",
        _table("Model", _model(config, model)),
        _table("Training", _training(loaded, provenance)),
        _table("Data", _data(config, provenance)),
        _table("Measured at this checkpoint", _numbers(checkpoint.measured(loaded.path))),
        *(
            _table(f"Measured on the {each.split} split{_with(each.overrides)}", _numbers(dict(each.values)))
            for each in (runs.read_evaluations(run.directory) if run else [])
            if each.checkpoint == loaded.path.name
        ),
        _table("Files", _files(facts)),
        _use(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {trust.printable(str(value)).replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines]) if lines else ""


def _model(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    return {"class": f"`{config['model']['_target_']}`", "parameters": f"{count:,}"} | {
        key: f"`{value}`" for key, value in arguments.items()
    }


def _training(loaded: Checkpoint, provenance: dict[str, Any]) -> dict[str, Any]:
    git, versions = provenance.get("git") or {}, provenance.get("versions") or {}
    changes = " with uncommitted changes" if git.get("dirty") else ""
    origins = [f"{each['query']} ({', '.join(each['sha256'].values())})" for each in provenance.get("weights") or []]
    return {
        "epochs": loaded.state["epoch"],
        "updates": loaded.state["step"],
        "commit": f"{git.get('commit') or 'none'}{changes}",
        "command": f"`{provenance.get('command', '')}`",
        "started": provenance.get("time", ""),
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if versions.get(name)),
    } | ({"weights from": "; ".join(origins)} if origins else {})


def _data(config: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    dataset = (config.get("data") or {}).get("dataset") or {}
    rows = {"class": f"`{dataset.get('_target_', 'none')}`"}
    for split, facts in (provenance.get("data") or {}).items():
        digest = f", SHA-256 of the first {facts['digested']}: `{facts['sha256']}`" if facts.get("digested") else ""
        rows[split] = f"{facts.get('samples')} samples{digest}"
    return rows


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}


def _with(overrides: Any) -> str:
    return f" with {' '.join(overrides)}" if overrides else ""


def _files(facts: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "`model.safetensors`": "the weights; any safetensors reader opens it",
        "`config.yaml`": "the whole config of the run",
        "`provenance.json`": "commit, versions, hardware, data",
        "`export.json`": "what was exported, for programs",
    }
    for name, compared in facts["compared"].items():
        rows[f"`{name}`"] = f"a graph; its output differs from the model's by at most {compared['difference']:.2g}"
    return rows


def _use(facts: dict[str, Any]) -> str:
    lines = ["## Use", "", "In a checkout of the project, with this directory's path:", "", "```python"]
    lines += ["import savepoint", "", 'model = savepoint.load_model("path/to/this/directory")', "```"]
    if "model.pt2" in facts["compared"]:
        lines += ["", "Without the project:", "", "```python", "import torch", ""]
        lines += ['model = torch.export.load("model.pt2").module()', "```"]
    if "model.onnx" in facts["compared"]:
        lines += ["", "Without torch:", "", "```python", "import onnxruntime", ""]
        lines += ['model = onnxruntime.InferenceSession("model.onnx")', "```"]
    return "\n".join(lines)
