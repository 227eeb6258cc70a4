"""The files and the commands that a page of documentation gives, so that a test can do what the page says."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """files: by the path in the comment that they begin with. commands: the lines of the blocks marked `sh`, without comments."""

    name: str
    files: dict[str, str]
    commands: list[list[str]]

    def write(self, root: Path) -> None:
        """Write the files below `root`. Raises: AssertionError if one exists: a page gives new files only."""
        for path, text in self.files.items():
            assert not (root / path).exists(), f"{self.name}: {path} exists"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|yaml|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    files = {}
    for _, block in blocks:
        # Hydra reads `@package` in the very first line alone.
        if found := re.match(r"(?:# @package .*\n)?# (\S+/\S+)\n", block):
            files[found[1]] = block
    lines = [line.partition("  #")[0] for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    return Page(path.stem, files, [shlex.split(line) for line in lines])
