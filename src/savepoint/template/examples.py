"""Tell which files of the template belong to a worked example. A project keeps all of them, one, or none."""

# The one example that shows all parts: handwritten digits, classified by a small network.
ONE = (
    "conf/model/mlp.yaml",
    "conf/data/digits.yaml",
    "conf/task/classification.yaml",
    "src/project/models/mlp.py",
    "src/project/data/digits.py",
    "src/project/tasks/classification.py",
    "src/project/tasks/plots.py",
)
# Folders whose files all belong to an example, except those that a project keeps in any case.
FOLDERS = (
    *("conf/model/", "conf/data/", "conf/task/", "conf/experiment/"),
    *("src/project/models/", "src/project/data/", "src/project/tasks/", "tests/project/"),
)
ALWAYS = ("conf/data/none.yaml", "src/project/data/balanced.py", "tests/project/test_yours.py")


def kept(path: str, examples: str) -> bool:
    """Whether a project with these worked examples has this file of the template. examples: all, one or none."""
    if examples == "all" or path in ALWAYS or not path.startswith(FOLDERS) or path.endswith("__init__.py"):
        return True
    return examples == "one" and path in ONE
