"""`python -m savepoint export`: what is written is whole, is loaded again and compared, and says what it is."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tools import needs
from tools.processes import REPOSITORY
from tools.workshop import NAMES, Workshop
from torch import Tensor, nn

import savepoint
from savepoint import checkpoint, runs
from savepoint.__main__ import main
from savepoint.commands import export, graphs
from savepoint.errors import UserError

SMALL = ("tracker=none", "trainer.threads=1", "data.limit_batches=2", "data.batch_size=16", "trainer.max_epochs=1")


def exported(*arguments: str | Path) -> None:
    assert export.export_model(REPOSITORY, [str(each) for each in arguments]) == 0


def test_the_weights_are_the_checkpoints_file_and_load_as_a_model(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(f"{directory}@{NAMES[1]}", "--to", out)
    there = directory / "checkpoints" / NAMES[1]
    assert {each.name for each in out.iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "provenance.json",
        "export.json",
        "README.md",
    }
    assert (out / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    model = savepoint.load_model(out)
    assert not model.training
    assert all(value.equal(load_file(there / "model.safetensors")[name]) for name, value in model.state_dict().items())
    facts = json.loads((out / "export.json").read_text())
    assert (facts["run"], facts["checkpoint"], facts["step"]) == (runs.read(directory).id, NAMES[1], 4)


def test_the_card_says_model_data_metrics_and_commit(directory: Path, tmp_path: Path) -> None:
    exported(directory, "--to", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    saved = checkpoint.load(directory / "checkpoints" / NAMES[-1])
    for part in (
        "| class | `project.models.mlp.Mlp` |",
        "| hidden | `[8]` |",
        saved.provenance["data"]["train"]["sha256"],
        f"| val/loss | {saved.state['metrics']['val/loss']:.6g} |",
        f"| commit | {saved.provenance['git']['commit'] or 'none'} |",
        "savepoint.load_model(",
    ):
        assert part in card
    assert "torch.export" not in card and "onnxruntime" not in card


@pytest.fixture(scope="module")
def averaging(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the CNN whose weights were averaged."""
    directory = tmp_path_factory.mktemp("averaging") / "run"
    small = (*SMALL, "model=cnn", "model.channels=[4]", "trainer.ema_decay=0.5", f"hydra.run.dir={directory}")
    ended = the_workshop.run("train.py", *small)
    assert ended.status == 0, ended.output
    return directory


def test_averaged_weights_are_exported_on_request(averaging: Path, tmp_path: Path) -> None:
    exported(averaging, "--to", tmp_path / "out", "--ema")
    average = savepoint.load_model(averaging, ema=True).state_dict()
    plain = savepoint.load_model(averaging).state_dict()
    loaded = savepoint.load_model(tmp_path / "out").state_dict()
    assert all(value.equal(average[name]) for name, value in loaded.items())
    assert any(not value.equal(plain[name]) for name, value in loaded.items())
    assert "averaged weights" in (tmp_path / "out" / "README.md").read_text()


@needs.plain_graphs
def test_graphs_give_the_models_output_without_its_class(
    averaging: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(averaging, "--to", tmp_path / "out", "--pt2", "--onnx", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["compared"].keys() == {"model.pt2", "model.onnx"}
    assert all(
        each["any_batch"] and each["samples"] == 16 and each["difference"] < 1e-5 for each in facts["compared"].values()
    )
    model, images = savepoint.load_model(averaging), torch.rand(5, 8, 8)
    with torch.no_grad():
        own = model(images)
    assert torch.export.load(tmp_path / "out" / "model.pt2").module()(images).equal(own)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.allclose(output, own.numpy(), atol=1e-5)


def test_a_torch_that_would_write_a_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(program: Any, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data/weights/weight_0", b"PK")  # a tensor's own bytes
            archive.writestr("model/data/weights/model.pt", b"PK\x03\x04")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(
        UserError, match=r"^--pt2: torch \S+ writes pickles into model\.pt2\. Use torch 2\.13 or newer\.$"
    ):
        graphs._writing("pt2", nn.Linear(2, 2), (torch.ones(2, 2),), {}, tmp_path / "model.pt2")


@needs.plain_graphs
def test_a_graph_holds_no_pickle(averaging: Path, tmp_path: Path) -> None:
    exported(averaging, "--to", tmp_path / "out", "--pt2")
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as archive:
        starts = {name: archive.read(name)[:2] for name in archive.namelist() if "/weights/weight_" not in name}
    assert starts and not [name for name, start in starts.items() if start in (b"\x80\x02", b"PK")]


class Branching(nn.Module):
    """Its path depends on the values of its inputs, so no graph of one path is the model."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 if float(inputs.sum()) > 0 else inputs


@pytest.mark.parametrize("kind", graphs.KINDS)
def test_a_model_that_cannot_be_traced_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--{kind}: Branching cannot be traced: [^\n]*$"):
        graphs._writing(kind, Branching(), (torch.ones(2, 2),), {}, tmp_path / f"model.{kind}")


def test_a_graph_that_gives_another_output_is_refused(tmp_path: Path) -> None:
    inputs: Any = ((torch.ones(2, 2),), {})
    with pytest.raises(UserError, match=r"^--pt2: the graph's output differs from the model's by 0\.5"):
        graphs._compare("pt2", lambda *_: torch.ones(2, 2), lambda inputs: inputs * 2, [inputs, inputs])
    found = graphs._compare("pt2", lambda given, _: given[0] * 2, lambda inputs: inputs * 2, [inputs, inputs])
    assert found == {"difference": 0.0, "samples": 2, "any_batch": True}


@needs.plain_graphs
def test_keywords_and_dicts_reach_the_graph(tmp_path: Path) -> None:
    class Keyed(nn.Module):
        def forward(self, batch: dict[str, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
            return {"out": batch["a"] * scale}

    inputs, keywords = ({"a": torch.rand(4, 3)},), {"scale": torch.rand(4, 1)}
    for kind in graphs.KINDS:
        run = graphs._writing(kind, Keyed().eval(), inputs, keywords, tmp_path / f"model.{kind}")
        found = graphs._compare(
            kind, run, Keyed(), [(inputs, keywords), (({"a": torch.rand(2, 3)},), {"scale": torch.rand(2, 1)})]
        )
        assert found["any_batch"] and found["difference"] < 1e-6


WRONG = {
    "no run": (("--to", "{tmp}/x"), "Which run?"),
    "no place": (("{run}",), "Where to?"),
    "no such run": (("nope", "--to", "{tmp}/x"), "No run nope"),
    "no such checkpoint": (("{run}@77", "--to", "{tmp}/x"), "77"),
    "a wrong option": (("{run}", "--too", "x"), "export has no option --too"),
    "a place that is taken": (("{run}", "--to", "{run}"), "exists already. Give the name of a new directory"),
    "a place that cannot be": (("{run}", "--to", "/proc/x/y"), "cannot be written"),
    "no average": (("{run}", "--to", "{tmp}/x", "--ema"), "was trained without trainer.ema_decay"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_request_is_told_in_one_line_and_leaves_nothing(
    kind: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = WRONG[kind]
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", *(each.format(run=directory, tmp=tmp_path) for each in arguments)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_entry_that_no_safetensors_file_holds_is_refused(directory: Path, tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    loaded = checkpoint.load(directory / "checkpoints" / NAMES[-1])
    with pytest.raises(UserError, match=r"No safetensors file can hold _extra_state"):
        export._write_weights(tmp_path / "model.safetensors", Odd(2, 2), loaded, ema=False)
