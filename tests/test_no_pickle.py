"""Nothing is pickled or unpickled by training, saving, resuming or logging: with pickle made to raise, all of it works."""

import ast
import os
from pathlib import Path

import pytest
from tools.processes import REPOSITORY, Zygote, command

from savepoint import runs

# Read by every Python process at its start: by the one that is forked for each run, and by MLflow's.
FORBIDDEN = """
import _pickle, pickle

def raising(*arguments, **settings):
    raise RuntimeError("pickle was used")

# Classes stay classes: libraries derive from them as they are imported.
for module in (pickle, _pickle):
    for name in ("load", "loads", "dump", "dumps"):
        setattr(module, name, raising)
    for name in ("Unpickler", "Pickler"):
        setattr(module, name, type(name, (getattr(module, name),), {"__init__": raising}))
pickle._Unpickler.__init__ = pickle._Pickler.__init__ = raising
pickle._loads = pickle._load = pickle._dumps = pickle._dump = raising
"""


@pytest.fixture
def without_pickle(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which pickle raises."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FORBIDDEN)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_the_prohibition_works(without_pickle: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "pickles.py"
    script.write_text("import pickle; pickle.loads(pickle.dumps(1))")
    ended = command(str(script), **without_pickle)
    assert ended.status == 1 and "pickle was used" in ended.output


def test_train_and_resume_use_no_pickle(without_pickle: dict[str, str], tmp_path: Path) -> None:
    store = f"tracker.uri=sqlite:///{tmp_path}/mlflow.db"
    directory = tmp_path / "run"
    config = ("trainer.max_epochs=1", "data.limit_batches=4", "optimizer=adam", "amp=fp16", "scheduler=multistep")
    warm = Zygote(tmp_path, **without_pickle)
    ended = warm.run("train.py", *config, store, f"hydra.run.dir={directory}")
    assert ended.status == 0 and "pickle was used" not in ended.output, ended.output
    ended = warm.run("resume.py", f"run={directory}", store, "trainer.max_epochs=2")
    assert ended.status == 0 and "pickle was used" not in ended.output, ended.output
    warm.close()
    assert runs.read(directory).tracker_id, "MLflow's process logged the run"
    assert not (directory / "tracker.log").exists() or "pickle" not in (directory / "tracker.log").read_text()


def test_the_source_names_no_pickle() -> None:
    """Neither the module nor the functions of torch and NumPy that use it, in the engine, the scripts and the project."""
    modules = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    calls = {("torch", "save"), ("torch", "load"), ("np", "load"), ("numpy", "load")}
    for path in [*REPOSITORY.glob("src/**/*.py"), REPOSITORY / "train.py", REPOSITORY / "resume.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.partition(".")[0] for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in calls, path
