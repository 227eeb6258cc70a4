"""Resolve `_target_` names: torch classes known to savepoint, classes of the project, names in its targets.py.

A name is looked up in a table or in a file of this repository, never searched for, and nothing is imported before it is
allowed. A prefix proves nothing: `torch.nn.modules.module.torch.utils.collect_env.run` is a shell.
"""

import ast
import functools
import importlib
import importlib.util
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

from savepoint.config import closest
from savepoint.errors import ConfigError
from savepoint.trust.package import package
from savepoint.trust.text import shown
from savepoint.trust.torch_classes import TORCH_TARGETS

_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*(\.(?!__)[A-Za-z_][A-Za-z0-9_]*)+")
_HOME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)


def refusal(target: str, source: Path) -> str | None:
    """Return why a target is not allowed and what to do, or None if it is allowed. Imports nothing."""
    if len(target) > 200 or not target.isascii() or not _NAME.fullmatch(target):
        example = f"torch.optim.Adam or {package(source)}.models.mlp.Mlp"
        return f"{shown(target)} is not the dotted name of a class, such as {example}."
    fork = fork_targets(source)
    if target in TORCH_TARGETS or target in fork:
        return None
    if target.startswith(f"{package(source)}."):
        return _project_refusal(target, source)
    folder = f"{source.name}/{package(source)}"
    return (
        f"'{target}' is not allowed.{closest(target, [*TORCH_TARGETS, *fork], likeness=0.8)} "
        f"Allowed: classes defined in {folder}, torch classes known to savepoint "
        f"(src/savepoint/trust/torch_classes.py), and names in {folder}/targets.py. If you know that it is harmless, "
        f'add "{target}": "{_guess_home(target)}" to TARGETS in {folder}/targets.py.'
    )


def resolve(target: str, *, path: str, source: Path) -> Any:
    """Import the object that an allowed `_target_` names.

    path: the place of the target in the config, for the error.
    Raises: ConfigError for a target that is not allowed, before anything is imported, and for one that leads elsewhere.
    """
    fault = refusal(target, source)
    if fault:
        raise ConfigError(f"{path}: {fault}")
    home = TORCH_TARGETS.get(target) or fork_targets(source).get(target)
    module_name, name = home.split(":") if home else target.rsplit(".", 1)
    if module_name.partition(".")[0] == package(source):
        _check_project(path, source)
    module = importlib.import_module(module_name)
    if home is None:
        file = _project_file(module_name, source)
        assert file is not None  # refusal has seen it
        if not module.__file__ or Path(module.__file__).resolve() != file.resolve():
            raise ConfigError(f"{path}: {target} comes from {module.__file__}, and not from {file}.")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ConfigError(
            f"{path}: {target}: the {module_name.partition('.')[0]} that is installed here does not have it."
        )
    own = f"{getattr(found, '__module__', None)}:{getattr(found, '__qualname__', None)}"
    if own != f"{module_name}:{name}" or (home is None and not isinstance(found, type)):
        raise ConfigError(
            f"{path}: {target} leads to {module_name}:{name}, and the object there is defined as {own}. "
            "A target must be named by the place where it is defined."
        )
    return found


def fork_targets(source: Path) -> dict[str, str]:
    """Read TARGETS of the project's targets.py as a literal: checking a config must not import the fork's code."""
    file = source / package(source) / "targets.py"
    if not file.is_file():
        return {}
    place = f"{source.name}/{package(source)}/targets.py"
    try:
        for statement in ast.parse(file.read_bytes()).body:
            names = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(name, ast.Name) and name.id == "TARGETS" for name in names):
                table = ast.literal_eval(getattr(statement, "value", None) or "None")
                break
        else:
            return {}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{place}: TARGETS must be a literal dict of texts: {error}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{place}: TARGETS must be a literal dict of texts.")
    for name, home in table.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not _HOME.fullmatch(str(home)):
            raise ConfigError(f'{place}: {shown(name)}: {shown(home)} must read "package.name": "package.module:name".')
    return table


def _project_refusal(target: str, source: Path) -> str | None:
    module_name, _, name = target.rpartition(".")
    folder = f"{source.name}/{package(source)}"
    file = _project_file(module_name, source)
    if file is None:
        files = (source / package(source)).glob("**/*.py")
        modules = [".".join(each.relative_to(source).with_suffix("").parts) for each in files]
        return f"'{target}' is not allowed: no file of {folder} is {module_name}.{closest(module_name, modules)}"
    shown_file = file.relative_to(source.parent).as_posix()
    try:
        defined = _definitions(file, file.stat().st_mtime_ns)
    except (SyntaxError, ValueError) as error:
        return f"{shown_file} cannot be read: {error}."
    if defined.get(name) == "class":
        return None
    if name in defined:
        return f'\'{target}\' is a function: add "{target}": "{module_name}:{name}" to TARGETS in {folder}/targets.py.'
    classes = sorted(each for each, kind in defined.items() if kind == "class")
    there = f"it defines {', '.join(classes)}" if classes else "it defines no class"
    return f"'{target}' is not allowed: {shown_file} does not define {name}; {there}.{closest(name, classes)}"


def _project_file(module_name: str, source: Path) -> Path | None:
    """Return the file of a module of the project, as an import would find it; None if its package has no such file."""
    root = source / package(source)
    *parents, last = module_name.split(".")
    place = source.joinpath(*parents)
    folder, module = place / last / "__init__.py", place / f"{last}.py"
    file = folder if folder.is_file() else module
    # Each name is looked up as it is spelled: a file system that ignores case would find MLP.py where mlp.py is.
    parts = file.relative_to(source).parts
    spelled = all(part in _names(source.joinpath(*parts[:i])) for i, part in enumerate(parts))
    if not spelled or not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
        return None
    return file


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []


@functools.lru_cache(maxsize=256)
def _definitions(file: Path, _changed: int) -> dict[str, str]:
    """Return what a file defines at its top level, "class" or "function" by name. Imported names are not among them."""
    kinds = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    return {
        node.name: kinds[type(node)]
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _check_project(path: str, source: Path) -> None:
    """Refuse a project's package that comes from another copy of this repository, for example an installed one."""
    name = package(source)
    loaded = sys.modules.get(name)
    spec = None if loaded else importlib.util.find_spec(name)
    origin = loaded.__file__ if loaded else spec.origin if spec else None
    expected = source / name / "__init__.py"
    if origin is None or Path(origin).resolve() != expected.resolve():
        raise ConfigError(
            f"{path}: the package '{name}' comes from {origin or 'nowhere'}, and not from {expected}. "
            "Use this repository's own environment: make setup."
        )


def _guess_home(target: str) -> str:
    """Guess where a target is defined: exactly if its module is loaded already, otherwise from its name."""
    module_name, _, name = target.rpartition(".")
    module = sys.modules.get(module_name)
    found = vars(module).get(name) if module else None  # not getattr, which may import
    if isinstance(found, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{found.__module__}:{found.__qualname__}"
    return f"{module_name}:{name}"
