"""Weights from anywhere: a run, a file, shards with an index. What fits is loaded, and what does not is listed at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from savepoint import weights
from savepoint.config import InitSettings, rename
from savepoint.errors import CheckpointError, ConfigError, UserError
from savepoint.weights.matching import load
from savepoint.weights.reading import Origin, Weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)


class Tied(nn.Module):
    """As a language model whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def of(entries: dict[str, Any]) -> Weights:
    return Weights(Origin("file", None, None, {}), entries, {})


def choose(**values: Any) -> InitSettings:
    return InitSettings(**values)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_all_weights_are_loaded_and_nothing_is_said() -> None:
    one, other = Net(), Net()
    assert load(one, of(tensors(other)), choose()) == []
    assert all(value.equal(tensors(other)[name]) for name, value in tensors(one).items())


def test_what_is_left_out_keeps_the_values_it_was_built_with() -> None:
    one, other = Net(), Net()
    before, given = tensors(one), tensors(other)
    for choice in (choose(exclude="head.*"), choose(include=["backbone.*"])):
        notes = load(one, of(given), choice)
        assert notes == ["left as it was built: head.weight, head.bias"]
        for name, value in tensors(one).items():
            assert value.equal((before if name.startswith("head") else given)[name])


def test_names_are_renamed_before_anything_is_compared() -> None:
    one, other = Net(), Net()
    given = {f"module.{name.replace('head', 'fc')}": value for name, value in tensors(other).items()}
    load(one, of(given), choose(rename={"module.fc.*": "head.*", "module.*": "*"}))
    assert all(value.equal(tensors(other)[name]) for name, value in tensors(one).items())


def test_floats_take_the_dtype_of_the_model_and_that_is_said() -> None:
    one, other = Net(), Net().to(torch.bfloat16)
    assert load(one, of(tensors(other)), choose()) == ["bfloat16 converted to float32"]
    assert one.head.weight.dtype == torch.float32 and one.head.weight.equal(other.head.weight.float())


def test_a_file_that_has_one_name_of_tied_weights_is_whole() -> None:
    one, other = Tied(), Tied()
    for name in ("embedding.weight", "head.weight"):
        assert load(one, of({name: other.head.weight.detach()}), choose()) == []
        assert one.embedding.weight is one.head.weight and one.head.weight.equal(other.head.weight)


def test_all_misfits_are_listed_together() -> None:
    given = tensors(Net())
    given["extra"] = torch.zeros(1)
    given["head.weight"] = torch.zeros(3, 4)
    given["backbone.1.num_batches_tracked"] = torch.tensor(1.0)
    del given["head.bias"]
    with pytest.raises(CheckpointError) as error:
        load(Net(), of(given), choose())
    text = str(error.value)
    for part in (
        "missing: head.bias",
        "unexpected: extra",
        "head.weight is [3, 4] in the checkpoint and [2, 4] in the model",
        "backbone.1.num_batches_tracked is torch.float32 in the checkpoint and torch.int64",
        "init.exclude",
        "init.strict=false",
    ):
        assert part in text
    assert "\n" not in text


def test_without_strict_names_may_be_missing_and_shapes_may_not_differ() -> None:
    given = tensors(Net())
    given["extra"] = given.pop("head.bias")
    notes = load(Net(), of(given), choose(strict=False))
    assert notes == ["left as it was built: head.bias", "not in the model: extra"]
    given["head.weight"] = torch.zeros(3, 4)
    with pytest.raises(CheckpointError, match=r"head\.weight is \[3, 4\]"):
        load(Net(), of(given), choose(strict=False))
    with pytest.raises(CheckpointError, match="missing: backbone"):
        load(Net(), of({"nothing": torch.zeros(1)}), choose(strict=False))


WRONG = {
    "a pattern without a match": ({"exclude": "haed.*"}, r"^init\.exclude=haed\.\*: matches no name.* Did you mean head\.\*\?"),
    "a rule without a match": ({"rename": {"x.*": "*"}}, r"^init\.rename=x\.\*: matches no name\."),
    "a rule with too many stars": ({"rename": {"head.*": "*.*"}}, "has a \\* for which 'head.\\*' has none"),
    "two names that become one": ({"rename": {"head.*": "head.weight"}}, "several names would become head.weight"),
    "nothing chosen": ({"include": "head.*", "exclude": "head.*"}, "None of the weights of file was chosen"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_choice_that_cannot_be_meant_is_refused(kind: str) -> None:
    values, words = WRONG[kind]
    with pytest.raises((ConfigError, CheckpointError), match=words):
        load(Net(), of(tensors(Net())), choose(**values))


def test_the_first_rule_that_matches_renames() -> None:
    assert rename({"a.*.b.*": "*-*", "a.*": "rest"}, ["a.1.b.2", "a.x"], path="") == {"a.1.b.2": "1-2", "a.x": "rest"}
    assert rename({"a?": "b"}, ["ab", "abc"], path="") == {"ab": "b", "abc": "abc"}


def shards(root: Path, given: dict[str, Tensor]) -> Path:
    """Write weights as the Hugging Face hub has them: two files and an index."""
    root.mkdir(exist_ok=True)
    placed = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(given)}
    for file in set(placed.values()):
        save_file({name: value for name, value in given.items() if placed[name] == file}, root / file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return root


def test_a_file_and_shards_with_an_index_hold_the_same(tmp_path: Path) -> None:
    given = tensors(Net())
    save_file(given, tmp_path / "one.safetensors")
    for path in (tmp_path / "one.safetensors", shards(tmp_path / "shards", given)):
        source = weights.find(str(path), tmp_path)
        assert source == path
        found = weights.read(source, query=str(path))
        assert found.entries.keys() == given.keys()
        assert all(found.entries[name].equal(value) for name, value in given.items())
        names = {"one.safetensors"} if path.is_file() else {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
        assert found.origin.sha256.keys() == names and all(len(each) == 64 for each in found.origin.sha256.values())


def bent(index: Any) -> Any:
    def bend(root: Path) -> Path:
        shards(root, tensors(Net()))
        (root / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
        return root

    return bend


def cut(root: Path) -> Path:
    file = shards(root, tensors(Net())) / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    return root


def gone(root: Path) -> Path:
    (shards(root, tensors(Net())) / "model-00002-of-00002.safetensors").unlink()
    return root


def two(root: Path) -> Path:
    root.mkdir()
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, root / f"{name}.safetensors")
    return root


def pickled(root: Path) -> Path:
    root.mkdir()
    (root / "pytorch_model.bin").write_bytes(b"\x80\x02")
    return root


FAULTY = {
    "an index that is no JSON": (bent("{"), "model.safetensors.index.json"),
    "an index without a map": (bent({"metadata": {}}), "it has no weight_map"),
    "an index that leaves its directory": (bent({"weight_map": {"x": "../model.safetensors"}}), "is no .safetensors file of its directory"),
    "an index that names a pickle": (bent({"weight_map": {"x": "model.bin"}}), "is no .safetensors file of its directory"),
    "an index with a number": (bent({"weight_map": {"x": 1}}), "is no .safetensors file of its directory"),
    "an index that says another tensor": (bent({"weight_map": {"x": "model-00001-of-00002.safetensors"}}), "does not hold what the index says"),
    "a shard that was cut": (cut, "is no sound safetensors file"),
    "a shard that is missing": (gone, "files that it names are missing: model-00002-of-00002.safetensors"),
    "two files without an index": (two, "which of its files? It has a.safetensors, b.safetensors"),
    "a pickle": (pickled, "is a pickle, which can run code"),
    "a pickled file": (lambda root: pickled(root) / "pytorch_model.bin", "is a pickle, which can run code"),
    "another kind of file": (lambda root: Path(__file__), "weights are read from .safetensors files"),
    "no file": (lambda root: root / "none.safetensors", "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTY)
def test_files_that_cannot_be_read_are_named(kind: str, tmp_path: Path) -> None:
    make, words = FAULTY[kind]
    path = make(tmp_path / "weights")
    with pytest.raises(UserError) as error:
        weights.read(weights.find(str(path), tmp_path), query=str(path))
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
