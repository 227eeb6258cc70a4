"""What a config may hold, and that only what was checked is built."""

import functools
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from savepoint.errors import BuildError, ConfigError
from savepoint.trust import policy
from savepoint.trust.instantiate import call, make
from savepoint.trust.policy import MAX_FAULTS, check_values

SOURCE = Path(__file__).parents[2] / "src"


def nested(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for _ in range(depth - 1):
        node = {"a": node}
    return node


class Text(str):
    __slots__ = ()


class Number(int):
    pass


EVIL = {"_target_": "os.system", "_args_": ["touch /tmp/owned"]}
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
CYCLE: dict[str, Any] = {}
CYCLE["again"] = [CYCLE, CYCLE]

HOSTILE: list[tuple[Any, str]] = [
    (EVIL, "_target_: 'os.system' is not allowed."),
    ({"model": EVIL}, "model._target_: 'os.system' is not allowed."),
    ({"model": {**LINEAR, "activation": EVIL}}, "model.activation._target_: 'os.system' is not allowed."),
    ({"model": {**LINEAR, "layers": [1, [EVIL]]}}, "model.layers[1][0]._target_: 'os.system' is not allowed."),
    ({"model": {**LINEAR, "_args_": [EVIL]}}, "model._args_[0]._target_: 'os.system' is not allowed."),
    ({"a": {"b": {"c": {"d": [{"e": EVIL}]}}}}, "a.b.c.d[0].e._target_: 'os.system' is not allowed."),
    ({"trainer": EVIL}, "trainer._target_: 'os.system' is not allowed."),
    ({"model": {"_target_": 3}}, "model._target_: must be text, and is a int."),
    ({"model": {"_target_": ["os.system"]}}, "model._target_: must be text, and is a list."),
    ({"model": {"_target_": EVIL}}, "model._target_: must be text, and is a dict."),
    ({"model": {"_target_": True}}, "model._target_: must be text, and is True."),
    ({"model": {"_target_": b"os.system"}}, "model._target_: must be text, and is a bytes."),
    ({"model": {"_target_": Text("torch.nn.ReLU")}}, "model._target_: must be text, and is a Text."),
    ({"model": {"_target_": "${oc.env:HOME}"}}, "model._target_: '${oc.env:HOME}' is not the dotted name of a class"),
    ({"model": {"_target_": "torch.nn.Module"}}, "model._target_: 'torch.nn.Module' is not allowed."),
    ({"model": {**LINEAR, "_recursive_": False}}, "model._recursive_: is not allowed."),
    ({"model": {**LINEAR, "_convert_": "all"}}, "model._convert_: is not allowed."),
    ({"model": {**LINEAR, "_mode_": "x"}}, "model._mode_: is not allowed."),
    ({"model": {**LINEAR, "__class__": "x"}}, "model.__class__: is not allowed."),
    ({"model": {**LINEAR, "__init__": 1}}, "model.__init__: is not allowed."),
    ({"model": {**LINEAR, "_partial_": 1}}, "model._partial_: must be true or false, and is a int."),
    ({"model": {**LINEAR, "_partial_": "true"}}, "model._partial_: must be true or false, and is 'true'."),
    ({"model": {**LINEAR, "_args_": {"a": 1}}}, "model._args_: must be a list, and is a dict."),
    ({"model": {**LINEAR, "_args_": "ab"}}, "model._args_: must be a list, and is 'ab'."),
    ({"model": {"_args_": [1]}}, "model._args_: has no _target_ beside it. Set that to the class to build."),
    ({"model": {"_partial_": True}}, "model._partial_: has no _target_ beside it. Set that to the class to build."),
    ({"a": "${seed}"}, "a: the interpolation '${seed}' is not resolved."),
    ({"a": ["x${oc.env:SECRET}"]}, "a[0]: the interpolation"),
    ({"${a}": 1}, "the interpolation '${a}' is not resolved."),
    ({"a": float("nan")}, "a: nan is not finite."),
    ({"a": [float("-inf")]}, "a[0]: -inf is not finite."),
    ({"a": 2**65}, "a: an integer of 66 bits. At most 64 are allowed."),
    ({"a": 10**5000}, "a: an integer of 16610 bits."),
    ({"a": OrderedDict(b=1)}, "a: a OrderedDict is no plain value"),
    ({"a": (1, 2)}, "a: a tuple is no plain value"),
    ({"a": {1, 2}}, "a: a set is no plain value"),
    ({"a": b"x"}, "a: a bytes is no plain value"),
    ({"a": 1j}, "a: a complex is no plain value"),
    (
        {"a": Path("/x")},
        "a: a PosixPath is no plain value" if sys.platform != "win32" else "a: a WindowsPath is no plain",
    ),
    ({"a": Text("x")}, "a: a Text is no plain value"),
    ({"a": Number(3)}, "a: a Number is no plain value"),
    ({"a": print}, "a: a builtin_function_or_method is no plain value"),
    ({"a": functools.partial(print)}, "a: a partial is no plain value"),
    ({"a": {1: 2}}, "a: the key a int must be text."),
    ({"a": {None: 2}}, "a: the key None must be text."),
    ({"a": {(1,): 2}}, "a: the key a tuple must be text."),
    ({"a": {Text("x"): 2}}, "a: the key a Text must be text."),
    ({"a": "\ud800"}, "a: '\\ud800' is not valid Unicode."),
    (nested(33), "a.a.a"),
    (CYCLE, "again"),
    ({"a": [0] * 100_001}, "a config has at most 100000 values."),
    ({"a": "x" * (2**20 + 1)}, "a: a config holds at most 1048576 bytes."),
    ({"a": ["é" * 1000] * 600}, "a config holds at most 1048576 bytes."),
    ({"a": {"password": "hunter2"}}, "a.password: a config holds no secrets."),
    ({"secret": "x"}, "secret: a config holds no secrets."),
    ({"a": [{"api_key": "x"}]}, "a[0].api_key: a config holds no secrets."),
    ({"a": {"access_token": " "}}, "a.access_token: a config holds no secrets."),
    ({"credentials": "x"}, "credentials: a config holds no secrets."),
    ({"a": "postgresql://me:hunter2@host/db"}, "a: an address with a password in it."),
    ({"a": ["see redis://:hunter2@host"]}, "a[0]: an address with a password in it."),
    ({"tracker": {"uri": "https://u:p%40@h"}}, "tracker.uri: an address with a password in it."),
    ({"\x1b[31m": EVIL}, "['\\x1b[31m']._target_: 'os.system' is not allowed."),
    ({"a.b": EVIL}, "['a.b']._target_: 'os.system' is not allowed."),
]


@pytest.mark.parametrize(("config", "fault"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_config_is_refused_by_its_path_and_nothing_is_imported(config: Any, fault: str) -> None:
    before = set(sys.modules)
    faults = check_values(config, source=SOURCE)
    assert faults
    assert fault in faults[0]
    assert len(faults) <= MAX_FAULTS + 1
    assert all(len(line) < 1000 and line.isprintable() for line in faults)
    assert "hunter2" not in "".join(faults)
    with pytest.raises(ConfigError):
        make(config, path="model", source=SOURCE)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "config",
    [
        {"seed": 2**64 - 1, "a": -(2**63), "b": [1.5, -0.0, None, True, "", "é"], "c": {}, "d": []},
        {"a": {"_target_": None, "interval": "epoch"}},
        {"a": LINEAR, "b": [{**LINEAR, "_partial_": True, "_args_": [1]}]},
        {"password": "", "secret": None, "credentials": {"file": "x"}, "password_length": "8", "db_password": "x"},
        {
            "a": "http://host:8080/a@b",
            "b": "user@host",
            "c": "https://user@host",
            "d": "a:b@c",
            "_": 1,
            "_a": 1,
            "b_": 1,
        },
        nested(32),
    ],
)
def test_an_honest_config_has_no_faults(config: Any) -> None:
    assert check_values(config, source=SOURCE) == []


def test_all_faults_are_reported_and_a_flood_is_cut_short() -> None:
    assert [line.split(":")[0] for line in check_values({"a": EVIL, "b": 1j, "secret": "x"}, source=SOURCE)] == [
        "a._target_", "b", "secret"]  # fmt: skip
    faults = check_values({"a": [EVIL] * 90_000}, source=SOURCE)
    assert len(faults) == MAX_FAULTS + 1
    assert faults[-1] == "The rest was not checked."


def test_ten_thousand_allowed_targets_are_looked_up_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from savepoint.trust import targets

    asked = []
    monkeypatch.setattr(
        policy, "refusal", lambda target, source: asked.append(target) or targets.refusal(target, source)
    )
    assert check_values({"a": [LINEAR] * 10_000}, source=SOURCE) == []
    assert asked == ["torch.nn.Linear"]


def test_inner_objects_are_built_first_and_plain_data_stays_plain() -> None:
    import torch

    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [LINEAR, {"_target_": "torch.nn.ReLU"}, {"_target_": "torch.nn.Flatten", "start_dim": 1}],
    }
    model = make(node, path="model", source=SOURCE)
    assert [type(each) for each in model] == [torch.nn.Linear, torch.nn.ReLU, torch.nn.Flatten]
    data = {"a": [1, {"b": None}], "c": {"_target_": None, "d": 1}, "e": LINEAR}
    built = make(data, path="x", source=SOURCE)
    assert built["a"] == [1, {"b": None}]
    assert built["a"] is not data["a"], "what a constructor keeps or changes is not the run's config"
    assert built["c"] is None
    assert isinstance(built["e"], torch.nn.Linear)


def test_partial_gives_a_partial_that_is_called_once_with_what_config_cannot_know() -> None:
    import torch

    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
    partial = make(node, path="optimizer", source=SOURCE)
    assert isinstance(partial, functools.partial)
    assert partial.func is torch.optim.SGD
    optimizer = call(partial, [torch.nn.Parameter(torch.zeros(1))], path="optimizer")
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**LINEAR, "biass": True}, "model.biass: Linear has no argument 'biass'. Did you mean bias? It takes: in_features, "
                                    "out_features, bias, device, dtype."),
        ({"_target_": "torch.nn.Linear", "in_features": 2}, "model: Linear: missing a required argument: 'out_features'. It "
                                                            "takes: in_features, out_features, bias, device, dtype."),
        ({**LINEAR, "_args_": [1]}, "model: Linear: multiple values for argument 'in_features'. It takes: in_features, "
                                    "out_features, bias, device, dtype."),
        ({"_target_": "torch.nn.Tanh", "_args_": [1]}, "model: Tanh: Tanh.__init__() takes 1 positional argument but 2 were given"),
        ({**LINEAR, "a": 1, "b": 2}, "model.a: Linear has no argument 'a'. It takes: in_features, out_features, bias, device, "
                                     "dtype.\nmodel.b: Linear has no argument 'b'. It takes: in_features, out_features, bias, "
                                     "device, dtype."),
        ({**LINEAR, "_partial_": True, "biass": 1}, "model.biass: Linear has no argument 'biass'. Did you mean bias? It takes: "
                                                    "in_features, out_features, bias, device, dtype."),
        ([{"x": {**LINEAR, "biass": 1}}], "model[0].x.biass: Linear has no argument 'biass'. Did you mean bias? It takes: "
                                          "in_features, out_features, bias, device, dtype."),
        ({"_target_": "torch.nn.LSTM", "_args_": [1, 1], "biass": 1},
         "model.biass=1: LSTM: RNNBase.__init__() got an unexpected keyword argument 'biass'"
         + (". Did you mean 'bias'?" if sys.version_info >= (3, 13) else "")),
        ({"_target_": "torch.nn.Dropout", "p": 2}, "model.p=2: Dropout: dropout probability has to be between 0 and 1, but got 2"),
        ({"_target_": "torch.nn.MultiheadAttention", "embed_dim": 5, "num_heads": 2},
         "model (embed_dim=5, num_heads=2): MultiheadAttention: embed_dim must be divisible by num_heads"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named_by_their_path(node: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make(node, path="model", source=SOURCE)
    assert str(raised.value) == message


def test_a_value_that_torch_refuses_is_named_by_its_path_also_when_called_later() -> None:
    import torch

    partial = make({"_target_": "torch.optim.SGD", "_partial_": True, "lr": -1}, path="optimizer", source=SOURCE)
    with pytest.raises(ConfigError, match=r"^optimizer\.lr=-1: SGD: Invalid learning rate: -1$"):
        call(partial, [torch.nn.Parameter(torch.zeros(1))], path="optimizer")


def test_an_error_inside_a_constructor_is_named_and_kept_as_the_cause(project: Path) -> None:
    with pytest.raises(BuildError, match=r"^model: TypeRaiser: TypeError: inside \(project\.net, line 2\)$") as raised:
        make({"_target_": "project.net.TypeRaiser"}, path="model", source=project)
    assert type(raised.value.__cause__) is TypeError and raised.value.__cause__.__traceback__ is not None


def test_a_wrong_value_for_a_project_class_is_named_by_path_and_line(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: ValueRaiser: inside \(project\.net, line \d+\)$"):
        make({"_target_": "project.net.ValueRaiser"}, path="model", source=project)


def test_a_project_class_gets_its_arguments_by_name(project: Path) -> None:
    built = make(
        {"_target_": "project.net.Net", "path": "/x", "source": [1], "node": LINEAR}, path="data", source=project
    )
    assert (built.path, built.source) == ("/x", [1])
    assert type(built.node).__name__ == "Linear"
    with pytest.raises(ConfigError, match=r"^data\.nodes: Net has no argument 'nodes'\. Did you mean node\?"):
        make({"_target_": "project.net.Net", "nodes": 1}, path="data", source=project)
    anything = make({"_target_": "project.net.Anything", "x": 1, "_args_": [2]}, path="data", source=project)
    assert (anything.args, anything.keywords) == ((2,), {"x": 1})


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    import importlib

    folder = tmp_path / "src" / "project"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "net.py").write_text(
        "class TypeRaiser:\n    def __init__(self): raise TypeError('inside')\n"
        "class ValueRaiser:\n    def __init__(self): raise ValueError('inside')\n"
        "class Net:\n    def __init__(self, path=None, source=None, node=None):\n"
        "        self.path, self.source, self.node = path, source, node\n"
        "class Anything:\n    def __init__(self, *args, **keywords): self.args, self.keywords = args, keywords\n"
    )
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "project"}
    sys.path.insert(0, str(folder.parent))
    importlib.invalidate_caches()
    yield folder.parent
    sys.path.remove(str(folder.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "project"]:
        del sys.modules[name]
    sys.modules.update(kept)
