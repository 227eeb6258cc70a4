"""The files and the commands that a page of documentation gives, so that a test can do what the page says."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """snippets: the Python blocks that are no file. files: by the path in the comment that they begin with. commands: the lines of the blocks marked `sh`, without comments."""

    name: str
    files: dict[str, str]
    commands: list[list[str]]
    snippets: list[str]

    @property
    def trainings(self) -> list[list[str]]:
        """The commands that train one run each, in a directory of the engine's choice."""
        return [line for line in self.commands if "-m" not in line and line not in self.sources]

    @property
    def sources(self) -> list[list[str]]:
        """The commands that train a run whose weights the others need. They say where: hydra.run.dir=runs/…"""
        return [line for line in self.commands if any(each.startswith("hydra.run.dir=") for each in line)]

    def write(self, root: Path) -> None:
        """Write the files below `root`. Raises: AssertionError if one exists: a page gives new files only."""
        for path, text in self.files.items():
            assert not (root / path).exists(), f"{self.name}: {path} exists"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|yaml|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    files, snippets = {}, []
    for kind, block in blocks:
        # Hydra reads `@package` in the very first line alone.
        if found := re.match(r"(?:# @package .*\n)?# (\S+/\S+)\n", block):
            files[found[1]] = block
        elif kind == "python":
            snippets.append(block)
    lines = [line.partition("  #")[0] for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    return Page(path.stem, files, [shlex.split(line) for line in lines], snippets)


def placed(line: list[str], root: Path) -> list[str]:
    """Return a command's arguments with `runs/` as it lies in a repository, wherever the command runs."""
    return [re.sub("=runs/", f"={root.as_posix()}/runs/", argument) for argument in line[2:]]
