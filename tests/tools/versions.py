"""Run the tests with other versions of Python, torch and the rest, each in an environment of its own.

    python tests/tools/versions.py                                every row of the table in docs/versions.md
    python tests/tools/versions.py --only torch-2.14              one row; can be given again
    python tests/tools/versions.py --across torch-2.8 torch-2.14  train half under one, resume under the other, compare

Environments are made with pip in a temporary directory and removed when they are done with. One takes 2 to 8 GB.
Exit code: 0 if every test passes, 1 if one fails or an environment cannot be made. Standard library only.
"""

import argparse
import contextlib
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What depends on versions: torch's optimizers and schedules, the bits of a resume, formats, configs and trackers.
SUBSET = (
    *("tests/test_resume.py", "tests/test_format_doc.py", "tests/test_frozen.py", "tests/training", "tests/config"),
    *("tests/checkpoint", "tests/trust", "tests/trackers", "tests/parallel"),
)
SHOWN = ("python", "torch", "numpy", "hydra-core", "mlflow")
TABLE = "| environment | python | torch | numpy | hydra-core | mlflow | tests | date |"


@dataclass(frozen=True)
class Environment:
    """One row. pins: versions in place of those in constraints.txt. pinned: whether constraints.txt holds for the rest."""

    python: str = "3.11"
    pins: tuple[str, ...] = ()
    pinned: bool = True


def lower_bounds() -> tuple[str, ...]:
    """Return pins at the oldest version of everything that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(each.partition(",")[0].replace(">=", "==") for each in project["dependencies"])


ENVIRONMENTS = {
    "pinned": Environment(),
    "torch-2.14": Environment(pins=("torch==2.14.1",)),
    "torch-2.8": Environment(pins=("torch==2.8.0",)),
    "python-3.12": Environment(python="3.12"),
    "python-3.13": Environment(python="3.13"),
    "numpy-2.5": Environment(python="3.12", pins=("numpy==2.5.5",)),
    # Older versions of MLflow allow SQLAlchemy 2.1, and fail with it.
    "oldest": Environment(pins=(*lower_bounds(), "sqlalchemy<2.1"), pinned=False),
}
# What each trains in --across: an optimizer whose state is tensors, one with a scaler, one that searches, one with text.
TRAININGS = {
    "mlp adamw": (),
    "cnn sgd cosine augment": ("model=cnn", "optimizer=sgd", "scheduler=cosine", "data.dataset.augment=true"),
    "mlp adam fp16 plateau": ("amp=fp16", "optimizer=adam", "scheduler=plateau"),
    "mlp lbfgs": ("optimizer=lbfgs", "data.batch_size=512"),
    "transformer nadam": ("experiment=characters", "model.width=16", "optimizer=nadam", "data.limit_batches=20"),
}
DECISIVE = ("history", "tensors", "state")  # the sections of `savepoint diff` in which nothing may differ
SHORT = ("tracker=none", "trainer.threads=1", "trainer.max_epochs=4", "trainer.log_every_n_steps=1")


class Failed(Exception):
    """An environment cannot be made, or a training in it fails. Its text says why in a few lines."""


def constraints(environment: Environment) -> str:
    """Return the lines that pip is held to."""
    names = {re.split("[=<]", pin)[0] for pin in environment.pins}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if environment.pinned else []
    kept = [line for line in lines if line.partition("==")[0].lower() not in names]
    return "\n".join([*kept, *environment.pins, ""])


def interpreter(version: str) -> str:
    """Find a Python of a version: this one, one on the path, or one of pyenv's."""
    for candidate in (sys.executable, f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        with contextlib.suppress(FileNotFoundError):
            done = subprocess.run([candidate, "--version"], capture_output=True, text=True)
            if done.stdout.startswith(f"Python {version}."):
                return str(candidate)
    raise Failed(f"There is no Python {version} here. Install it, or leave its row out with --only.")


@contextlib.contextmanager
def made(name: str, keep: Path | None) -> Iterator[Path]:
    """Make an environment, and remove it afterwards. keep: a directory where it may lie already, and then stays.

    Yields: its Python.
    """
    with contextlib.ExitStack() as stack:
        root = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="savepoint-versions-")))
        python = root / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if not python.exists():
            print(f"{name}: installing …", file=sys.stderr, flush=True)
            try:
                _install(ENVIRONMENTS[name], python, root / name)
            except BaseException:
                shutil.rmtree(root / name, ignore_errors=True)
                raise
        yield python


def _install(environment: Environment, python: Path, directory: Path) -> None:
    _run([interpreter(environment.python), "-m", "venv", str(directory)])
    held = directory / "constraints.txt"
    held.write_text(constraints(environment), encoding="utf-8")
    # Without its cache, pip would have every version of torch on the disk twice.
    options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "--constraint", str(held)]
    _run([str(python), "-m", "pip", "install", *options, "--editable", f"{ROOT}[dev]"])


def _run(command: list[str]) -> str:
    """Run a command and return what it prints. Raises: Failed with its last lines."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise Failed(f"{' '.join(command)}\n{last}")
    return done.stdout


def versions(python: Path) -> list[str]:
    """Return the version of each thing in SHOWN."""
    code = (
        "import importlib.metadata as m, platform, sys; print(platform.python_version(), *map(m.version, sys.argv[1:]))"
    )
    return _run([str(python), "-c", code, *SHOWN[1:]]).split()


def row(name: str, keep: Path | None, selection: list[str]) -> tuple[str, bool]:
    """Run the tests in an environment. Returns: its row of the table, and whether all passed."""
    with made(name, keep) as python:
        found = versions(python)
        with tempfile.TemporaryDirectory(prefix="savepoint-versions-") as scratch:
            log = Path(scratch) / "log"
            options = [
                "-q",
                "-n",
                "2",
                "--dist",
                "loadfile",
                "-m",
                "not long",
                "-p",
                "no:cacheprovider",
                f"--basetemp={scratch}/tests",
            ]
            with log.open("w") as file:
                command = [str(python), "-m", "pytest", *options, *selection]
                status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("FAILED ", "ERROR ")) or (status > 1 and line.startswith("E "))]
    print("\n".join(told), file=sys.stderr)
    counts = re.findall(r"(\d+ (?:passed|failed|errors?))", lines[-1] if lines else "")
    ended = ", ".join(counts) or f"pytest ended with {status}"
    return f"| {' | '.join([name, *found, ended, str(datetime.date.today())])} |", status == 0


def across(before: str, after: str, keep: Path | None) -> None:
    """Train half under one environment, resume under another, and print what differs from the first alone.

    Raises: Failed if a training cannot go on. Other bits are no failure: torch does not promise them.
    """
    with made(before, keep) as one, made(after, keep) as other, tempfile.TemporaryDirectory() as scratch:
        for name, config in TRAININGS.items():
            root = Path(scratch) / name.replace(" ", "_")
            whole, wholly, half = root / "before", root / "after", root / "half"
            _train(one, config, whole)
            _train(other, config, wholly)
            _kill(one, config, half)
            _run([str(other), "resume.py", f"run={half}"])
            print(f"{name}: trained half under {before}, resumed under {after}: {compared(other, whole, half)}")
            print(
                f"  the whole under {before} and the whole under {after}: {compared(other, whole, wholly)}", flush=True
            )


def _train(python: Path, config: tuple[str, ...], directory: Path) -> None:
    _run([str(python), "train.py", *SHORT, *config, f"hydra.run.dir={directory}"])


def _kill(python: Path, config: tuple[str, ...], directory: Path) -> None:
    """Start a training and kill it as soon as two of its four epochs are on the disk."""
    command = [str(python), "train.py", *SHORT, *config, "checkpoint.keep_last=9", f"hydra.run.dir={directory}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(directory.glob("checkpoints/epoch_0002_*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    if not list(directory.glob("checkpoints/epoch_0002_*")):
        raise Failed(f"{' '.join(command)}\nended before its second epoch.")
    # Faster than the kill: what came after the second epoch is taken away, as if the kill had come in time.
    for path in directory.glob("checkpoints/epoch_000[34]_*"):
        shutil.rmtree(path)


def compared(python: Path, one: Path, other: Path) -> str:
    """Say whether two runs ended in the same bits, or name the first values that differ."""
    command = [str(python), "-m", "savepoint", "diff", str(one), str(other), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return "same bits"
    if not done.stdout.startswith("{"):
        raise Failed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    sections = json.loads(done.stdout)
    found = [f"{len(sections[name])} of {name}, first {sections[name][0]}" for name in DECISIVE if sections[name]]
    return f"not the same bits: {'; '.join(found)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=ENVIRONMENTS, default=[], help="a row")
    parser.add_argument("--across", nargs=2, choices=ENVIRONMENTS, metavar=("BEFORE", "AFTER"), help="two environments")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="take environments from DIR, make others there")
    parser.add_argument("tests", nargs="*", default=SUBSET, help="what pytest runs instead of its subset")
    options = parser.parse_args()
    keep = options.keep.resolve() if options.keep else None
    try:
        if options.across:
            across(*options.across, keep)
            return 0
        passed = True
        print(f"{TABLE}\n{'|---' * TABLE.count(' | ')}|---|", flush=True)
        for name in options.only or ENVIRONMENTS:
            line, good = row(name, keep, list(options.tests))
            print(line, flush=True)
            passed = passed and good
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
