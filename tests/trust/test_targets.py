"""Which names a config may use: exact ones, and nothing is imported to find out."""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import needs

from savepoint.errors import ConfigError
from savepoint.trust import targets
from savepoint.trust.package import package
from savepoint.trust.targets import refusal, resolve
from savepoint.trust.torch_classes import TORCH_TARGETS

FILES = {
    "__init__.py": "",
    "targets.py": 'TARGETS = {"tools.build": "project.models.mlp:build"}\n',
    "models/__init__.py": "class InPackage: ...\n",
    "models/mlp.py": (
        "import os, torch\nfrom os import system\nfrom subprocess import Popen as Borrowed\n"
        "class Mlp:\n    class Inner: ...\n    def method(self): ...\n"
        "def build(): ...\nasync def later(): ...\nalias = os.system\n"
        "class Swapped: ...\nSwapped = Borrowed\n"
        "if True:\n    class Hidden: ...\n"
    ),
    "models/broken.py": "class Mlp:\n  def\n",
    "models/__main__.py": "raise SystemExit('ran')\nclass Main: ...\n",
    "loose/net.py": "class Net: ...\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A fork's src, importable as `project` for the length of a test."""
    root = tmp_path / "src"
    for name, text in FILES.items():
        file = root / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    kept = {name: sys.modules.pop(name) for name in _projects()}
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    yield root
    sys.path.remove(str(root))
    for name in _projects():
        del sys.modules[name]
    sys.modules.update(kept)


def _projects() -> list[str]:
    return [name for name in sys.modules if name == "project" or name.startswith("project.")]


HOSTILE = [
    # code, files and sockets by their public names
    "os.system", "posix.system", "os.popen", "os.execv", "os.remove", "os.kill", "os.unlink", "nt.system",
    "subprocess.Popen", "subprocess.run", "subprocess.check_output", "builtins.eval", "builtins.exec", "builtins.open",
    "builtins.__import__", "builtins.getattr", "builtins.compile", "__builtins__.eval", "eval", "open", "exec",
    "importlib.import_module", "runpy.run_path", "runpy.run_module", "code.interact", "pty.spawn", "timeit.timeit",
    "pickle.loads", "pickle.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "cloudpickle.load",
    "numpy.load", "numpy.f2py.compile", "pandas.read_pickle", "pandas.eval", "yaml.unsafe_load", "asyncio.run",
    "urllib.request.urlopen", "socket.create_connection", "webbrowser.open", "shutil.rmtree", "tempfile.mkdtemp",
    "ctypes.CDLL", "ctypes.cdll.LoadLibrary", "multiprocessing.Process", "threading.Thread", "functools.partial",
    "functools.reduce", "operator.methodcaller", "logging.config.dictConfig", "http.server.test", "cProfile.run",
    "hydra.utils.instantiate", "hydra.utils.get_class", "hydra.utils.get_method", "omegaconf.OmegaConf.load",
    "mlflow.pytorch.load_model", "transformers.pipeline", "pip.main", "setuptools.setup",
    # torch's own doors
    "torch.load", "torch.save", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load",
    "torch.utils.collect_env.run", "torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline",
    "torch.ops.load_library", "torch.classes.load_library", "torch.package.PackageImporter", "torch.export.load",
    "torch.distributed.init_process_group", "torch.multiprocessing.spawn", "torch.compile", "torch._dynamo.optimize",
    "torch.nn.modules.module.torch.utils.collect_env.run", "torch.nn.modules.module.torch.load", "torch.nn.Module",
    "torch.nn.Module.__init_subclass__", "torch.nn.functional.torch.load", "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.warnings.sys.modules", "torch.optim.adamw.AdamW", "torch.nn.modules.linear.Linear",
    "torch.nn.Linear.forward", "torch.nn.Linear.__class__", "torch.nn.init.xavier_uniform_", "torch.nn", "torch",
    "torch.nn.DataParallel", "torch.nn.SyncBatchNorm", "torch.nn.TripletMarginWithDistanceLoss",
    # through this repository
    "project", "project.", "project.Mlp", "project..Mlp", ".project.models.mlp.Mlp", "project.models.mlp",
    "project.models.mlp.torch.load", "project.models.mlp.os.system", "project.models.mlp.system",
    "project.models.mlp.alias", "project.models.mlp.Borrowed", "project.models.mlp.build", "project.models.mlp.later",
    "project.models.mlp.Mlp.Inner", "project.models.mlp.Mlp.method", "project.models.mlp.Hidden",
    "project.models.mlp.__builtins__", "project.models.mlp.Mlp.__init__.__globals__", "project.models.__init__.InPackage",
    "project.models.__main__.Main", "project.models.mlp.py.Mlp", "project.models.MLP.Mlp", "project.Models.mlp.Mlp",
    "project/models/mlp.Mlp", "project.models.missing.Net", "project.models.broken.Mlp", "project.targets.TARGETS",
    "savepoint.system.files.replace", "savepoint.trust.parse_config", "savepoint.training.train", "projects.models.mlp.Mlp",
    # what only looks like an allowed name
    "torch.optim.Adam ", " torch.optim.Adam", "torch.optim.Adam\n", "torch.optim.Adam\0", "torch.optim .Adam",
    "torch.optim.\u0410dam", "torch.optim.\uff21dam", "torch\u3002optim.Adam", "torch.optim.Adam\u200b", "Torch.optim.Adam",
    "torch.optim.adam", "torch.optim:Adam", "torch.optim.adam:Adam", "torch/optim/Adam", "torch..optim.Adam",
    "torch.optim.Adam.", "torch.optim.Adam()", "torch.optim.Adam;os", "torch.optim.", "../torch.optim.Adam", "", ".", "..",
    "a" * 100_000, "torch.nn." * 5_000, "torch.nn." * 5_000 + "X", "project." * 24 + "X", "\x1b[31mtorch.optim.Adam", "tools", "tools.build.x",
]  # fmt: skip


def test_there_are_more_than_a_hundred_hostile_names() -> None:
    assert len(set(HOSTILE)) > 100


@pytest.mark.parametrize("target", HOSTILE, ids=[ascii(each[:50]) for each in HOSTILE])
def test_a_hostile_name_is_refused_and_nothing_is_imported(target: str, source: Path) -> None:
    before = set(sys.modules)
    fault = refusal(target, source)
    assert fault
    with pytest.raises(ConfigError) as raised:
        resolve(target, path="model._target_", source=source)
    assert str(raised.value) == f"model._target_: {fault}"
    assert str(raised.value).isascii(), "look-alikes and control characters must show"
    assert str(raised.value).isprintable()
    assert len(fault) < 800
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "target",
    [pytest.param(each, marks=[needs.muon] if "Muon" in each else []) for each in sorted(TORCH_TARGETS)],
)
def test_every_torch_name_is_the_class_that_its_public_name_gives(target: str) -> None:
    found = resolve(target, path="x", source=Path("/nowhere"))
    module, name = target.rsplit(".", 1)
    assert isinstance(found, type)
    assert found is getattr(importlib.import_module(module), name)
    assert f"{found.__module__}:{found.__qualname__}" == TORCH_TARGETS[target]


def test_a_class_that_the_installed_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delattr(torch.optim, "Adafactor")
    with pytest.raises(
        ConfigError, match=r"^x: torch\.optim\.Adafactor: the torch that is installed here does not have"
    ):
        resolve("torch.optim.Adafactor", path="x", source=Path("/nowhere"))


def test_every_optimizer_and_every_schedule_that_config_can_express_is_known() -> None:
    import torch

    optimizers = {
        f"torch.optim.{name}"
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
    }
    schedulers = {
        f"torch.optim.lr_scheduler.{name}"
        for name in torch.optim.lr_scheduler.__all__
        if name not in ("LRScheduler", "SequentialLR", "ChainedScheduler")
    }
    assert optimizers | schedulers <= set(TORCH_TARGETS)


def test_a_class_defined_in_project_is_allowed_without_registration(source: Path) -> None:
    for target in ("project.models.mlp.Mlp", "project.models.InPackage", "project.loose.net.Net"):
        assert refusal(target, source) is None
        assert "project.models.mlp" not in sys.modules or target != "project.models.mlp.Mlp", "looking imports nothing"
        assert resolve(target, path="model._target_", source=source).__qualname__ == target.rsplit(".", 1)[1]


def test_a_class_that_its_module_swaps_for_another_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="the object there is defined as subprocess:Popen"):
        resolve("project.models.mlp.Swapped", path="model._target_", source=source)


def test_a_name_of_the_forks_table_is_allowed_and_must_be_named_by_its_home(source: Path) -> None:
    assert resolve("tools.build", path="model._target_", source=source).__name__ == "build"
    (source / "project" / "targets.py").write_text('TARGETS: dict[str, str] = {"Path.home": "os.path:join"}')
    with pytest.raises(
        ConfigError, match=r"model: Path\.home leads to os\.path:join, and the object there is defined as posixpath"
    ):
        resolve("Path.home", path="model", source=source)


@pytest.mark.parametrize(
    "table",
    ["TARGETS = {**{}}", "TARGETS = open('x')", "TARGETS = {", "TARGETS = ['os.system']", "TARGETS = {'os.system': 3}",
     "TARGETS = {'os.system': 'posix.system'}", "TARGETS = {'os system': 'posix:system'}", "TARGETS: dict[str, str]"],
)  # fmt: skip
def test_the_forks_table_is_a_literal_or_an_error(table: str, source: Path) -> None:
    (source / "project" / "targets.py").write_text(table)
    with pytest.raises(ConfigError, match=r"^src/project/targets\.py: "):
        targets.fork_targets(source)


def test_reading_the_forks_table_does_not_run_it(source: Path) -> None:
    (source / "project" / "targets.py").write_text("raise SystemExit('ran')\nTARGETS = {'a.b': 'a:b'}\n")
    assert targets.fork_targets(source) == {"a.b": "a:b"}


def test_a_fork_without_a_table_has_an_empty_one(source: Path) -> None:
    (source / "project" / "targets.py").unlink()
    assert targets.fork_targets(source) == {}


def test_a_file_outside_project_is_not_reached_through_a_link(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "evil.py").write_text("class Evil: ...\n")
    (source / "project" / "linked").symlink_to(outside)
    (source / "project" / "single.py").symlink_to(outside / "evil.py")
    for target in ("project.linked.evil.Evil", "project.single.Evil"):
        assert "no file of src/project is" in (refusal(target, source) or "")


def test_a_project_from_another_place_is_an_error(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "src"
    (other / "project").mkdir(parents=True)
    (other / "project" / "__init__.py").write_text("")
    (other / "project" / "net.py").write_text("class Net: ...\n")
    with pytest.raises(ConfigError, match=r"the package 'project' comes from .*, and not from"):
        resolve("project.net.Net", path="model._target_", source=other)
    importlib.import_module("project")
    with pytest.raises(ConfigError, match=r"the package 'project' comes from .*, and not from"):
        resolve("project.net.Net", path="model._target_", source=other)
    assert "project.net" not in sys.modules


def test_compiled_code_in_the_place_of_a_checked_file_is_an_error(source: Path) -> None:
    resolve("project.models.mlp.Mlp", path="x", source=source)
    sys.modules["project.models.mlp"].__file__ = "/elsewhere/mlp.so"
    with pytest.raises(ConfigError, match=r"comes from /elsewhere/mlp\.so"):
        resolve("project.models.mlp.Mlp", path="x", source=source)


def test_the_line_to_add_is_found_without_asking_a_module_that_may_import(source: Path) -> None:
    lazy = types.ModuleType("lazy")
    asked: list[str] = []
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    sys.modules["lazy"] = lazy
    try:
        assert 'add "lazy.Model": "lazy:Model" to TARGETS' in str(refusal("lazy.Model", source))
    finally:
        del sys.modules["lazy"]
    assert asked == []


def test_the_error_says_what_is_allowed_and_which_line_to_add(source: Path) -> None:
    assert refusal("os.system", source) == (
        "'os.system' is not allowed. Allowed: classes defined in src/project, torch classes known to savepoint "
        "(src/savepoint/trust/torch_classes.py), and names in src/project/targets.py. If you know that it is harmless, "
        'add "os.system": "posix:system" to TARGETS in src/project/targets.py.'
    )
    assert "'torch.optim.Adamm' is not allowed. Did you mean torch.optim.Adam? " in str(
        refusal("torch.optim.Adamm", source)
    )
    assert refusal("project.models.mlp.Mpl", source) == (
        "'project.models.mlp.Mpl' is not allowed: src/project/models/mlp.py does not define Mpl; it defines Mlp, Swapped."
        " Did you mean Mlp?"
    )
    assert refusal("project.models.mpl.Mlp", source) == (
        "'project.models.mpl.Mlp' is not allowed: no file of src/project is project.models.mpl. "
        "Did you mean project.models.mlp?"
    )
    assert refusal("project.models.mlp.build", source) == (
        '\'project.models.mlp.build\' is a function: add "project.models.mlp.build": "project.models.mlp:build" to '
        "TARGETS in src/project/targets.py."
    )
    assert str(refusal("project.models.broken.Mlp", source)).startswith("src/project/models/broken.py cannot be read: ")


def renamed(tmp_path: Path, line: str) -> Path:
    """A src/ whose project has its own package name, with one model in it."""
    source = tmp_path / "src"
    (source / "my_lab" / "models").mkdir(parents=True)
    for folder in (source / "my_lab", source / "my_lab" / "models"):
        (folder / "__init__.py").touch()
    (source / "my_lab" / "models" / "dense.py").write_text("class Dense: ...\n\n\ndef tiny(): ...\n")
    (tmp_path / "pyproject.toml").write_text(f"[tool.savepoint]\n{line}\n")
    return source


def test_a_projects_package_has_the_name_that_pyproject_gives(tmp_path: Path) -> None:
    source = renamed(tmp_path, 'package = "my_lab"')
    assert package(source) == "my_lab"
    assert refusal("my_lab.models.dense.Dense", source) is None
    assert "no file of src/my_lab is my_lab.models.dence" in str(refusal("my_lab.models.dence.Dense", source))
    assert "to TARGETS in src/my_lab/targets.py" in str(refusal("my_lab.models.dense.tiny", source))
    assert "'project.models.dense.Dense' is not allowed" in str(refusal("project.models.dense.Dense", source))


def test_without_a_name_the_package_is_called_project(tmp_path: Path) -> None:
    assert package(renamed(tmp_path, "")) == "project"
    (tmp_path / "pyproject.toml").unlink()
    assert package(tmp_path / "src") == "project"


@pytest.mark.parametrize(
    "line", ['package = "my-lab"', 'package = "a.b"', "package = 3", 'package = "savepoint"', "package ="]
)
def test_a_name_that_no_package_can_have_is_refused(tmp_path: Path, line: str) -> None:
    source = renamed(tmp_path, line)
    with pytest.raises(ConfigError, match="the name of the project's package cannot be read"):
        package(source)
