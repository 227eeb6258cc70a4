"""Write docs/reference.md and docs/configs.md anew, from what the programs say and from conf/: `make docs`."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "src")]

import resume  # noqa: E402
import train  # noqa: E402
from savepoint import __main__ as program  # noqa: E402
from savepoint.config import summary  # noqa: E402

NOTE = "This page is written by `make docs` (`python docs/generate.py`): do not edit it."
REFERENCE = """\
# Reference: commands

{note}

A run can be named everywhere by its id, the id's beginning, its directory or `latest`, and a checkpoint of it after `@`
([resume.md](resume.md#which-run-which-checkpoint)). The exit code is 0 after success, 2 after a mistake in the command.

## python train.py

```text
{train}
```

[configs.md](configs.md) has every option with all of its values.

## python resume.py

```text
{resume}
```

## python -m savepoint

```text
{program}
```

## make

What each target runs works without make too. `python` is that of `.venv`, after `. .venv/bin/activate`; on Windows
`.venv\\Scripts\\python`, after `.venv\\Scripts\\activate`.

| target | what it does | without make |
|---|---|---|
{make}
"""
CONFIGS = """\
# Reference: configs

{note}

A group is a folder of `conf/`, an option a file in it. `optimizer=sgd` on the command line chooses an option,
`optimizer.lr=0.01` changes a value. [first_steps.md](first_steps.md) adds options of one's own.

{index}

## Every run

```yaml
{config}
```
{groups}"""


def pages(repository: Path = REPOSITORY) -> dict[Path, str]:
    """Return the text of each generated page, by its path."""
    docs, conf = repository / "docs", repository / "conf"
    return {docs / "reference.md": _reference(repository), docs / "configs.md": _configs(conf)}


def _reference(repository: Path) -> str:
    # Groups and values have a page of their own.
    introduction, groups, rest = _said(train.main).partition("\nGroups")
    assert groups, "the help of train.py lists groups"
    return REFERENCE.format(
        note=NOTE,
        train=introduction + "\n" + rest[rest.rindex("\n--cfg") :].strip(),
        resume=_said(resume.main).strip(),
        program=_said(lambda: program.main(["--help"])).strip(),
        make="\n".join(_targets((repository / "Makefile").read_text(encoding="utf-8"))),
    )


def _said(main: Callable[[], int]) -> str:
    """Return what a program prints when it is asked for help."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), patch("sys.argv", ["", "--help"]):
        assert main() == 0
    return output.getvalue()


def _targets(makefile: str) -> list[str]:
    """Return a row for each target that `make help` lists: its name, what it does, the commands that it runs."""
    variables = dict(re.findall(r"^(\w+) \?= ?(.*)$", makefile, re.M))
    recipes = dict(re.findall(r"^([\w./-]+):.*\n((?:\t.*\n)*)", makefile, re.M))
    rows = []
    for target, needs, text in re.findall(r"^([a-z-]+):(.*?)## (.*)$", makefile, re.M):
        recipe = recipes[target] or "".join(recipes.get(need, "") for need in needs.split())
        lines = [_without_make(line, variables) for line in recipe.splitlines() if not line.startswith("\t@")]
        if lines:
            rows.append(f"| `make {target}` | {text} | {'<br>'.join(f'`{line}`' for line in lines)} |")
    return rows


def _without_make(line: str, variables: dict[str, str]) -> str:
    """Return a line of a recipe as one types it, in an environment that is active once it is there."""
    line = re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[1].lower()), line)
    line = re.sub(r"\$\(or [^,]*,(\w+)\)", r"\1", line)
    return (line if "pip install" in line else line.replace(".venv/bin/python", "python")).strip()


def _configs(conf: Path) -> str:
    config = (conf / "config.yaml").read_text(encoding="utf-8")
    defaults = {}
    for each in yaml.safe_load(config)["defaults"]:
        defaults |= each if isinstance(each, dict) else {}
    found = sorted({path.parent.name for path in conf.glob("*/*.yaml")})
    groups = [group for group in defaults if group in found]
    groups += [group for group in found if group not in groups]
    return CONFIGS.format(
        note=NOTE,
        index="Groups: " + ", ".join(f"[{group}](#{group})" for group in groups) + ".",
        config=config.partition("\nhydra:")[0].strip(),
        groups="".join(_group(conf / group, defaults.get(group)) for group in groups),
    )


def _group(folder: Path, default: str | None) -> str:
    """Return the section of a group: a table of its options, and each option's file."""
    options = sorted(folder.glob("*.yaml"))
    text = f"\n## {folder.name}\n\n| option | |\n|---|---|\n"
    for option in options:
        is_default = " The default." * (option.stem == default)
        text += f"| [`{folder.name}={option.stem}`](#{folder.name}{option.stem}) | {summary(option)}{is_default} |\n"
    for option in options:
        lines = option.read_text(encoding="utf-8").strip()
        text += f"\n### {folder.name}={option.stem}\n\n```yaml\n{lines}\n```\n"
    return text


if __name__ == "__main__":
    for page, written in pages().items():
        page.write_text(written, encoding="utf-8", newline="\n")
        print(page.relative_to(REPOSITORY))
