"""Each module of the engine imports only from those below it; who may import what from outside is fixed too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import REPOSITORY

ENGINE = REPOSITORY / "src" / "savepoint"
# From the bottom up. A module imports from lines above its own, never from its own line or below.
LAYERS = """
    errors exact.explain files fingerprint memory registry task torch_classes exact.traps redaction settings workers
    strict rng history signals plain loading trackers.points trackers.plot
    tensorfile targets order
    encoding snapshot layout
    tree trust compose overrides progress provenance
    trackers config optimizers schedules
    run trackers.none trackers.mlflow_process trackers.mlflow_store batches stream checkpoint combinations
    trackers.mlflow trackers.mlflow_mirror sweep compare lookup state exact.workplace
    trackers.mlflow_worker step saves build demo verify exact.outside
    loop exact
    account
    ready
    job
    exact.trace
    __main__
"""
RANK = {name: rank for rank, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}


def modules() -> dict[str, Path]:
    found = {}
    for path in ENGINE.rglob("*.py"):
        name = ".".join(path.relative_to(ENGINE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def engine_imports(path: Path) -> set[str]:
    """The engine's modules among them: the longest name that is one."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "savepoint":
            inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found |= {next(each for each in inner if each in RANK)}
    return found


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set(RANK)


def test_each_module_imports_only_from_those_below_it() -> None:
    upward = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in engine_imports(path)
        if RANK[other] >= RANK[name] and not (name == "trackers" and other.startswith("trackers."))
    ]
    assert upward == []


def importers(package: str) -> set[str]:
    return {name for name, path in modules().items() for each in imports(path) if each.partition(".")[0] == package}


def test_no_engine_module_imports_project() -> None:
    assert importers("project") == set()


def test_hydra_stays_where_configs_are_composed() -> None:
    assert importers("hydra") | importers("omegaconf") <= {"compose", "overrides"}


def test_mlflow_stays_in_the_process_of_its_own() -> None:
    assert importers("mlflow") <= {"trackers.mlflow_mirror", "trackers.mlflow_store", "trackers.mlflow_worker"}


def test_the_checkpoint_never_sees_a_model() -> None:
    reached, todo = set(), ["checkpoint"]
    while todo:
        name = todo.pop()
        reached |= {name}
        todo += engine_imports(modules()[name]) - reached
    outside = {each for name in reached for each in imports(modules()[name])}
    assert not [each for each in outside if re.match(r"torch\.(nn|optim)\b|hydra|mlflow", each)]


def test_a_config_is_checked_before_torch_is_imported() -> None:
    """What train.py imports at its top must not reach torch: --help and a typo answer at once."""
    reached, todo = set(), [name for name in engine_imports(REPOSITORY / "train.py") if name != "job"]
    while todo:
        name = todo.pop()
        reached |= {name}
        for node in ast.parse(modules()[name].read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = ast.Module([node], [])
                assert "torch" not in {each.partition(".")[0] for each in _names(source)}, name
                todo += [each for each in _engine(_names(source)) if each not in reached]


def _names(tree: ast.Module) -> list[str]:
    node = tree.body[0]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _engine(names: list[str]) -> list[str]:
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "savepoint":
            inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found += [next(each for each in inner if each in RANK)]
    return found
