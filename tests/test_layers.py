"""The engine's house: wings point down, others enter a wing by its face, and no circle runs inside a wing."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.processes import REPOSITORY

ENGINE = REPOSITORY / "src" / "savepoint"
# From the top down. A wing imports from wings below it, and from nothing else of the engine.
WINGS = (
    *(
        "__main__",
        "testing",
        "launch",
        "commands",
        "exact",
        "training",
        "weights",
        "data",
        "runs",
        "checkpoint",
        "trackers",
        "trust",
    ),
    *("config", "parallel", "system", "template", "registry", "errors"),
)
RANK = {wing: rank for rank, wing in enumerate(reversed(WINGS))}


def modules(engine: Path = ENGINE) -> dict[str, Path]:
    """Every module of the engine: `training.loop`, `training` for its face, `` for the engine's own face."""
    found = {}
    for path in engine.rglob("*.py"):
        name = ".".join(path.relative_to(engine).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path
    return found


def imports(path: Path) -> tuple[str, ...]:
    """Full names of what a module imports, anywhere in it."""
    return imported(path.read_text())


@functools.cache
def imported(text: str) -> tuple[str, ...]:
    return tuple(_imported(ast.parse(text)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def engine_imports(path: Path, engine: Path = ENGINE) -> set[str]:
    """The engine's modules among them: the longest name that is one."""
    known, found = modules(engine), set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "savepoint":
            inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found.add(next((each for each in inner if each in known), ""))
    return found


def wing(module: str) -> str:
    return module.partition(".")[0]


def upward(engine: Path = ENGINE) -> list[str]:
    """Imports of a wing that is not below one's own. The engine's own face may look into every wing."""
    return [
        f"{name} imports {other or 'savepoint'}"
        for name, path in modules(engine).items()
        for other in engine_imports(path, engine)
        if name and wing(other) != wing(name) and not (other and RANK[wing(other)] < RANK[wing(name)])
    ]


def entered_by_a_room(engine: Path = ENGINE) -> list[str]:
    """Imports of a room of another wing."""
    return [
        f"{name} imports {other}"
        for name, path in modules(engine).items()
        for other in engine_imports(path, engine)
        if wing(other) != wing(name) and "." in other
    ]


def circles(engine: Path = ENGINE) -> list[str]:
    """Rooms that import each other, directly or by way of others. A wing's face is no room: it looks into all."""
    graph = {
        name: {other for other in engine_imports(path, engine) if wing(other) == wing(name) and "." in other}
        for name, path in modules(engine).items()
        if "." in name
    }
    return [name for name in graph if name in reached(graph, name)]


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    todo = [*graph[start]]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph.get(name, ())
    return found


def test_every_module_belongs_to_a_wing() -> None:
    assert {wing(name) for name in modules() if name} == set(WINGS)


def test_wings_point_down() -> None:
    assert upward() == []


def test_others_enter_a_wing_by_its_face() -> None:
    assert entered_by_a_room() == []


def test_scripts_and_the_project_enter_by_a_face_too() -> None:
    scripts = [REPOSITORY / "train.py", REPOSITORY / "resume.py", *(REPOSITORY / "src" / "project").rglob("*.py")]
    assert [f"{path}: {name}" for path in scripts for name in engine_imports(path) if "." in name] == []


def test_no_circle_runs_inside_a_wing() -> None:
    assert circles() == []


def test_no_room_imports_its_own_face() -> None:
    """The face imports the rooms: the other way round would be a circle, too."""
    assert [name for name, path in modules().items() if "." in name and wing(name) in engine_imports(path)] == []


@pytest.mark.parametrize(
    "rule, room, line, fault",
    [
        (upward, "system/files.py", "from savepoint import trust", "system.files imports trust"),
        (upward, "errors.py", "import savepoint", "errors imports savepoint"),
        (
            entered_by_a_room,
            "runs/sweep.py",
            "from savepoint.system.files import Lock",
            "runs.sweep imports system.files",
        ),
        (circles, "trust/text.py", "from savepoint.trust import targets", "trust.targets"),
    ],
)
def test_a_broken_rule_is_seen(rule, room: str, line: str, fault: str, tmp_path: Path) -> None:
    engine = tmp_path / "savepoint"
    for path in modules().values():
        copy = engine / path.relative_to(ENGINE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n{line}\n" if copy == engine / room else ""))
    assert fault in rule(engine)


def test_each_face_lists_its_rooms() -> None:
    """A wing's docstring names every room in it, so that a newcomer finds the right one from the tree alone."""
    for name, path in modules().items():
        if name and path.name == "__init__.py":
            listed = set(
                re.findall(r"^    (\w+)  +\S", ast.get_docstring(ast.parse(path.read_text()), clean=False) or "", re.M)
            )
            rooms = {other.rpartition(".")[2] for other in modules() if other.rpartition(".")[0] == name}
            assert listed == rooms, name


def importers(package: str) -> set[str]:
    return {name for name, path in modules().items() for each in imports(path) if each.partition(".")[0] == package}


def test_no_engine_module_imports_project() -> None:
    assert importers("project") == set()


def test_hydra_stays_where_configs_are_composed() -> None:
    composing = {
        "config.changes",
        "config.composition",
        "config.explanation",
        "config.overrides",
        "config.quoting",
        "launch.application",
        "launch.completion",
        "launch.jobs",
        "launch.search",
        "launch.start",
        "launch.sweep",
        "testing",
    }
    assert importers("hydra") | importers("omegaconf") == composing


def test_mlflow_stays_in_the_process_of_its_own() -> None:
    assert {wing(name) for name in importers("mlflow")} == {"trackers"}


def test_aim_is_imported_by_its_own_kind_alone() -> None:
    assert importers("aim") == {"trackers.aim", "trackers.aim.store"}


def test_clearml_is_imported_by_its_own_kind_alone() -> None:
    assert importers("clearml") == {f"trackers.clearml.{room}" for room in ("address", "session", "store")}


def test_the_checkpoint_never_sees_a_model() -> None:
    graph = {name: engine_imports(path) for name, path in modules().items()}
    below = reached(graph, "checkpoint")
    outside = {each for name in below for each in imports(modules()[name])}
    # What trust's settings lie beside.
    allowed = {f"config.{room}" for room in ("changes", "composition", "explanation", "overrides", "quoting")}
    hydra = {name for name in below for each in imports(modules()[name]) if each.startswith(("hydra", "omegaconf"))}
    assert hydra <= allowed
    assert not [each for each in outside if re.match(r"torch\.(nn|optim)\b|mlflow", each)]


def test_a_config_is_checked_before_torch_is_imported() -> None:
    """What train.py imports at its top must not reach torch: --help and a typo answer at once."""
    done: set[str] = set()
    todo = [name for script in ("train.py", "resume.py") for name in at_the_top(REPOSITORY / script)]
    while todo:
        name = todo.pop()
        if name.partition(".")[0] == "savepoint":
            parts = name.split(".")
            inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            module = next((each for each in inner if each in modules()), "")
            if module not in done:
                done.add(module)
                todo += at_the_top(modules()[module])
                # Importing a room imports its wing's face first.
                todo += [f"savepoint.{wing(module)}"] if module else []
        assert name.partition(".")[0] not in ("torch", "mlflow"), name
    assert {"launch", "trust.targets", "runs.directory"} <= done


def at_the_top(path: Path) -> list[str]:
    """What a module imports as soon as it is imported itself."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
