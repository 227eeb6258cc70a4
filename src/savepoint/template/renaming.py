"""Give files of the template the project's names."""

import json
import re

from savepoint.template.answers import Answers

# `project` where it means the package: the beginning of a module's name, or a folder of src/.
_MODULE = re.compile(
    r"\bproject(?=\.(?:models|data|tasks|schedulers|targets)\b)|(?<=\bfrom )project(?= import)|(?<=src/)project\b"
)
# Targets of the Makefile that run programs of tests/ and benchmarks/, which a project has among the originals alone.
_TEMPLATE_TARGETS = ("chaos", "test-node", "test-servers", "test-versions", "test-accelerator", "bench", "new")
_EXCLUDED = ["src/savepoint", "tests/engine"]  # from the project's lint: the engine has its own


def rename_path(path: str, answers: Answers) -> str:
    """Return where a file of the template lies in a project.

    >>> rename_path("src/project/models/mlp.py", Answers("Lab", "lab", "", "MIT", "mlflow", "all"))
    'src/lab/models/mlp.py'
    """
    return re.sub(r"^src/project/", f"src/{answers.package}/", path)


def rename_text(path: str, text: str, answers: Answers) -> str:
    """Return the text of a file as the project has it. path: where the file lies in the template."""
    text = _MODULE.sub(answers.package, text)
    if path == "conf/config.yaml":
        text = _option(text, "tracker", answers.tracker)
        if answers.examples != "all":
            text = text.replace("# a preset: experiment=digits_cnn", "# a preset")
        if answers.examples == "none":
            for group in ("model", "data", "task"):
                text = _option(text, group, "???")
    if path in ("conf/tracker/mlflow.yaml", "conf/tracker/aim.yaml", "conf/tracker/clearml.yaml"):
        text = re.sub(r"^experiment: savepoint\b", lambda _: f"experiment: {_yaml(answers.name)}", text, flags=re.M)
    if path == "tests/project/test_yours.py" and answers.examples != "all":
        text = re.sub(r'^(EXPERIMENTS.* = )\[".*"\]', r"\1[]", text, flags=re.M)
    if path == "Makefile":
        for target in _TEMPLATE_TARGETS:
            text = re.sub(rf"^{target}:.*\n(?:\t.*\n)+\n", "", text, flags=re.M)
            text = re.sub(rf"^(\.PHONY:.*) {target}\b(?!-)", r"\1", text, flags=re.M)
    if path == "pyproject.toml":
        text = _pyproject(text, answers)
    return text


def _option(text: str, group: str, option: str) -> str:
    """Choose another default option of a group in conf/config.yaml."""
    return re.sub(rf"^(  - {group}: )\S+", lambda found: found[1] + option, text, flags=re.M)


def _yaml(text: str) -> str:
    """Write a text as a YAML scalar: plain where that is certain to be read as a text.

    >>> _yaml("lab"), _yaml("Lab: 2"), _yaml("no")
    ('lab', '"Lab: 2"', '"no"')
    """
    words = {"null", "true", "false", "no", "yes", "on", "off"}
    plain = re.fullmatch(r"[A-Za-z][A-Za-z _-]*[A-Za-z]", text) and text.lower() not in words
    return text if plain else json.dumps(text, ensure_ascii=False)


def _pyproject(text: str, answers: Answers) -> str:
    """Give pyproject.toml the project's name, author, licence and package; its tests are the project's own."""
    people = f"authors = [{{ name = {json.dumps(answers.author, ensure_ascii=False)} }}]\n" if answers.author else ""
    licence = f'license = "{answers.licence}"\n' if answers.licence != "none" else ""
    changes = (
        (r'^name = "savepoint"$', f'name = "{answers.distribution}"'),
        (r'^description = ".*"$', f"description = {json.dumps(answers.name, ensure_ascii=False)}"),
        (r'^license = "MIT"\n', people + licence),
        (r'^dynamic = \["version"\]$', 'version = "0.1.0"'),
        (r"^\[tool\.setuptools\.dynamic\]\n.*\n\n", ""),
        (r'^    "copier.*\n    "cookiecutter.*\n', ""),
        (r'"savepoint\[(?=[a-z,]+\]")', f'"{answers.distribution}['),
        (r"^testpaths = .*$", f'testpaths = ["tests/project", "src/{answers.package}"]'),
        (r"^pythonpath = .*$", 'pythonpath = ["src", "."]'),
        (r"^norecursedirs = \[", 'norecursedirs = ["tests/engine", '),
        (r'^files = \["src", ', f'files = ["src/{answers.package}", '),
        (r'^package = "project"', f'package = "{answers.package}"'),
        (r"^line-length = 120$", f"line-length = 120\nextend-exclude = {json.dumps(_EXCLUDED)}"),
    )
    for pattern, replacement in changes:
        text, count = re.subn(pattern, lambda _, new=replacement: new, text, count=1, flags=re.M)  # type: ignore[misc]
        assert count == 1, f"pyproject.toml: nothing is {pattern}"
    return text
