"""A copy of the repository whose default directories a test may use, with faulty models and odd data sets in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.processes import REPOSITORY, Ended, Started, Zygote

NAMES = [f"epoch_{epoch:04d}_step_{2 * epoch:08d}" for epoch in range(1, 4)]  # checkpoints of the fixture `directory`
FAULTY = {
    "raising": "{error: bug, at: 3",
    "filling": "{at: null, limit: 8000",
    "slow": "{seconds: 0.3",
    "swallowing": "{_partial_: false",
    "thawing": "{epoch: 1",
    "remembering": "{registered: true, name: count",
    "unfreezing": "{_partial_: false",
    "drawing": "{_partial_: false",
    "double": "{_partial_: false",
    "lazy": "{_partial_: false",
}
SOURCES = {
    "drawing": "samples: 50, ",
    "stream": "samples: 50, buffer: 0, ",
    "sized": "samples: 50, buffer: 0, length: null, ",
    "plain": "",
    "guarded": "",
    "untestable": "",
    "prepared": "folder: null, ",
    "unready": "",
    "images": "",
}


@dataclass(frozen=True)
class Workshop:
    """A repository of its own, so that default directories can be used: this one's code, and faulty.py, sources.py."""

    root: Path
    zygote: Zygote

    def run(self, script: str, *arguments: str, **signals: Any) -> Ended:
        return self.zygote.run(script, *arguments, **signals)

    def start(self, script: str, *arguments: str, **outputs: Any) -> Started:
        return self.zygote.start(script, *arguments, **outputs)

    def left(self) -> list[str]:
        """What lies under runs/ and sweeps/, these included."""
        found = [path for name in ("runs", "sweeps") for path in self.root.glob(f"{name}/**")]
        return [str(path.relative_to(self.root)) for path in found]

    def clear(self) -> None:
        for name in ("runs", "sweeps"):
            shutil.rmtree(self.root / name, ignore_errors=True)


@contextmanager
def open_workshop(root: Path, outputs: Path) -> Iterator[Workshop]:
    """Make a workshop in `root`. outputs: where its zygote writes what the commands print."""
    copy_repository(root)
    tools = REPOSITORY / "tests" / "tools"
    for source, group, package, options in (
        ("faulty", "model", "models", {name: f"{text}, " for name, text in FAULTY.items()}),
        ("sources", "data", "data", {name: f"dataset: {{{text}" for name, text in SOURCES.items()}),
    ):
        shutil.copy(tools / f"{source}.py", root / "src" / "project" / package)
        for name, arguments in options.items():
            target = f"_target_: project.{package}.{source}.{name.capitalize()}"
            (root / "conf" / group / f"{name}.yaml").write_text(f"{arguments}{target}}}")
    zygote = Zygote(outputs, root)
    yield Workshop(root, zygote)
    zygote.close()


def copy_repository(root: Path) -> None:
    for name in ("train.py", "resume.py"):
        shutil.copy(REPOSITORY / name, root)
    for name in ("conf", "src", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("*.egg-info"))
