"""The README is true: each of its commands runs, what it shows is what one sees, and the files that it gives work."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tools.processes import REPOSITORY, Ended, Zygote

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.runs import history

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What is no part of a fresh clone, anywhere in the tree and at its top.
LEFT_OUT = (".*", "__pycache__", "*.egg-info")
LEFT_OUT_AT_THE_TOP = (
    "runs",
    "sweeps",
    "mlruns",
    "mlartifacts",
    "mlflow.db*",
    ".aim*",
    "aimartifacts",
    "clearml_offline",
    "build",
    "dist",
)
# A run as the README shows it: the commands below mean the one that its first `python train.py` has made.
SHOWN = re.findall(r"runs/[\d-]+/\d+-([a-z][0-9a-f]{7})", README)[0]
# Lines of code blocks that the story below does not run, and where they are run instead.
ELSEWHERE = {
    "make train": "minutes of installing: test_make_target_runs_the_line_beside_it",
    "make test": "minutes of installing: test_make_target_runs_the_line_beside_it",
    "make demo": "minutes of installing: test_make_target_runs_the_line_beside_it",
    "python3 -m venv .venv": "minutes of installing: test_make_setup_runs_the_two_lines_of_the_readme",
    ".venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'": "the same",
    f"python -m savepoint reproduce {SHOWN}": "it needs a git repository: tests/commands/test_reproduce.py",
    ". .venv/bin/activate": "the story's python is the one that runs this test",
    'python -m pytest -n 3 --dist loadfile -m "not long"': "it is what runs this test",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> dict[str, str]:
    """Each command line of the README, without its comment, and the comment."""
    lines = [line.partition("  #") for block in blocks("sh") for line in block.splitlines()]
    return {command.strip(): comment.strip() for command, _, comment in lines}


@dataclass
class Story:
    """A clone in which everything that the README says was done, in its order. first: the run that it shows."""

    clone: Path
    zygote: Zygote
    ended: dict[str, Ended] = field(default_factory=dict)
    first: runs.Run | None = None

    def meant(self, text: str) -> str:
        """`text` with the names of the run that it is about, in place of those of the one that the README shows."""
        assert self.first is not None
        text = re.sub(rf"runs/[\d-]+/\d+-{SHOWN}", self.first.directory.relative_to(self.clone).as_posix(), text)
        return re.sub(rf"\b{SHOWN[:4]}(?:{SHOWN[4:]})?\b", lambda found: self.first_id(len(found.group())), text)

    def first_id(self, length: int) -> str:
        assert self.first is not None
        return self.first.id[:length]


def left_out(folder: str, names: list[str]) -> set[str]:
    """Choose what `shutil.copytree` leaves out of a folder."""
    patterns = (*LEFT_OUT, *(LEFT_OUT_AT_THE_TOP if Path(folder) == REPOSITORY else ()))
    return set(shutil.ignore_patterns(*patterns)(folder, names))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    clone = tmp_path_factory.mktemp("readme") / "clone"
    shutil.copytree(REPOSITORY, clone, ignore=left_out)
    for path, text in own_files().items():
        assert not (clone / path).exists(), "the README calls it a new file"
        (clone / path).write_text(text, encoding="utf-8")
    with Background(clone, "-m", "savepoint", "demo") as demo:
        # As it stands in the README, tracked by MLflow, in an interpreter of its own.
        first = Background(clone, "train.py")
        zygote = Zygote(clone, clone)
        told = Story(clone, zygote, {"python train.py": first.end()})
        told.first = runs.find("latest", clone).run
        port = free_port()
        with Background(clone, "-m", "savepoint", "ui", "--port", str(port)) as ui:
            for line in commands():
                if line not in ELSEWHERE and line not in told.ended and not line.startswith("python -m savepoint"):
                    told.ended[line] = run_small(told, line)
            for line in commands():
                if line.startswith(
                    tuple(f"python -m savepoint {name}" for name in ("ls", "diff", "verify", "evaluate", "export"))
                ):
                    told.ended[line] = run_command(told, line)
            told.ended["python -m savepoint ui"] = ui.page(port)
        told.ended["python -m savepoint demo"] = demo.end()
    yield told
    zygote.close()


def run_small(told: Story, line: str) -> Ended:
    """A line of train.py or resume.py, with little data and no tracker."""
    _, script, *arguments = shlex.split(told.meant(line))
    if script == "src/savepoint/template":
        return Background(told.clone, script, *arguments).end()
    if "--help" in arguments:  # it leaves by sys.exit, which is not for a forked child
        return Background(told.clone, script, *arguments).end()
    small = ["tracker=none"]
    if script == "train.py" and "data=spirals" not in arguments:
        less = "data.dataset.limit=128"
        small += ["trainer.max_epochs=2"] if "init_from" in line else ["trainer.max_epochs=2", less]
    return told.zygote.run(script, *arguments, *small)


def run_command(told: Story, line: str) -> Ended:
    """A line of `python -m savepoint` that ends by itself. The trainings of --exact are in interpreters of their own."""
    _, *arguments = shlex.split(told.meant(line))
    return told.zygote.run("savepoint", *arguments[2:])


class Background:
    """A command in an interpreter of its own, as a person would start it in the clone."""

    def __init__(self, clone: Path, *arguments: str) -> None:
        left_out = ("MLFLOW_", "HYDRA_", "PYTHONPATH")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        self._started = time.monotonic()
        self._output = clone.parent / f"output-{time.monotonic_ns()}.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=clone,
                # The clone's own code, whatever the environment has installed; and a small server.
                env=environment
                | {
                    "PYTHONPATH": str(clone / "src"),
                    "MLFLOW_WORKERS": "1",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> Ended:
        status = self._process.wait(timeout=240)
        return Ended(status, time.monotonic() - self._started, self._output.read_text())

    def page(self, port: int) -> Ended:
        """What a browser gets, once the server is there; then Ctrl-C."""
        page = ""
        while not page and self._process.poll() is None and time.monotonic() - self._started < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                    page = answer.read().decode()
            except urllib.error.URLError:
                time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGINT)
        ended = self.end()
        return Ended(ended.status, ended.seconds, ended.output + page)

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:  # only where something before it has failed
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def own_files() -> dict[str, str]:
    """The files that "Make it yours" gives, by the path in their first line."""
    written = [
        block for language in ("python", "yaml") for block in blocks(language) if re.match(r"# \S+/\S+\n", block)
    ]
    return {block.partition("\n")[0].removeprefix("# "): block for block in written}


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("line", commands())
def test_command_runs(story: Story, line: str) -> None:
    if line in ELSEWHERE:
        return
    ended = story.ended[line]
    differ = 1 if " diff " in line else 0
    assert ended.status == differ and "Traceback" not in ended.output, ended.output


def test_every_line_that_is_run_elsewhere_is_in_the_readme() -> None:
    assert ELSEWHERE.keys() <= commands().keys()


def test_demo_prints_what_the_page_on_exactness_shows(story: Story) -> None:
    page = (REPOSITORY / "docs" / "exactness.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(1\. train.*?)^```", page, re.DOTALL | re.MULTILINE)
    real = story.ended["python -m savepoint demo"].output
    # How long it took and where it was killed is different each time.
    varies = re.compile(r"\d+(?=\.\d s| lines)|(?<=\.)\d(?= s)|epoch_000[1-4]_step_\d{8}$", re.MULTILINE)
    assert varies.sub("…", real) == varies.sub("…", shown)


def test_first_run_is_the_one_that_the_readme_describes(story: Story) -> None:
    assert story.first is not None
    names = re.findall(r"epoch_\d+_step_\d+(?=/)", README)
    assert set(names) == {"epoch_0020_step_00000460"}
    assert f"{names[0]}\n" in story.ended["python train.py"].output
    tree = next(block for block in blocks("text") if block.startswith("runs/"))
    listed = re.findall(r"^  (\S+)", tree, re.MULTILINE)
    newest = story.first.checkpoints / checkpoint.names(story.first.checkpoints)[-1]
    # A clone without a git of its own has no changes.
    assert {path.name for path in newest.iterdir()} == set(listed) - {"changes.patch"}


def test_first_run_ends_with_the_address_of_its_own_page(story: Story) -> None:
    assert story.first is not None
    place = f"http://127.0.0.1:5000/#/experiments/1/runs/{story.first.tracker_id}?workflowType=machine_learning"
    told = f"to look at it: make ui (or python -m savepoint ui), then {place}\n"
    assert told in story.ended["python train.py"].output


def test_resume_commands_continue_the_run_that_they_name(story: Story) -> None:
    assert story.first is not None
    resumed = [ended for line, ended in story.ended.items() if line.startswith(f"python resume.py run={SHOWN[:4]} ")]
    assert len(resumed) == 1
    assert all(f"run {story.first.id} " in ended.output and "resumed from" in ended.output for ended in resumed)
    epochs = [line["epoch"] for line in history.read_history(story.first.metrics) if "val/loss" in line]
    assert epochs == list(range(1, 41))


def test_the_fork_names_the_run_that_it_began_from(story: Story) -> None:
    assert story.first is not None
    (forked,) = [ended for line, ended in story.ended.items() if line.startswith(f"python resume.py run={SHOWN[:4]}@")]
    assert f"forked from {story.first.id}@epoch_" in forked.output, forked.output


def test_new_makes_a_project(story: Story) -> None:
    assert "first commit made" in next(ended.output for line, ended in story.ended.items() if " new " in line)
    assert (story.clone.parent / "my-project" / "train.py").is_file()


def test_sweep_has_six_runs_and_a_table_with_the_best_first(story: Story) -> None:
    (table,) = story.clone.glob("sweeps/*/*/results.csv")
    rows = [row.split(",") for row in table.read_text().splitlines()]
    scores = [float(row[rows[0].index("best val/loss")]) for row in rows[1:]]
    assert len(scores) == 6 and scores == sorted(scores)


def test_fine_tuned_run_begins_with_the_other_runs_weights(story: Story) -> None:
    (line,) = [line for line in story.ended if "init_from" in line]
    assert story.first is not None
    output = story.ended[line].output
    assert f"weights from run {story.first.id}" in output
    started = runs.read(story.clone / re.findall(r"^run \S+  (\S+)", output, re.MULTILINE)[0])
    fresh, tuned = (history.read_history(one.metrics)[0]["val/accuracy"] for one in (story.first, started))
    assert float(str(tuned)) > 0.95 > float(str(fresh))


def test_evaluate_measures_the_best_checkpoint(story: Story) -> None:
    (line,) = [line for line in story.ended if "evaluate" in line]
    assert story.first is not None
    best = checkpoint.best(story.first.checkpoints, monitor="val/loss", mode="min")[0]
    head, *measured = story.ended[line].output.splitlines()
    assert head == f"run {story.first.id}  {best}  val" and [each.split()[0] for each in measured] == [
        "loss",
        "accuracy",
    ]


def test_verify_names_every_checkpoint_of_the_run(story: Story) -> None:
    line, _ = [line for line in story.ended if "verify" in line]
    assert story.first is not None
    told = story.ended[line].output.splitlines()
    names = checkpoint.names(story.first.checkpoints)
    assert [row.split()[0] for row in told[1:-1]] == names and all(row.endswith("sound") for row in told[1:-1])
    assert told[-1] == f"{len(names)} checkpoints: {len(names)} sound; resume would begin from {names[-1]}"


def test_verify_exact_tries_the_config_of_the_run(story: Story) -> None:
    (line,) = [line for line in story.ended if "--exact" in line]
    assert story.ended[line].status == 0
    assert story.ended[line].output.splitlines()[-1].startswith("exact: 8 updates in 2 epochs")


def test_ui_serves_mlflows_page(story: Story) -> None:
    output = story.ended["python -m savepoint ui"].output
    assert re.match(
        r"http://127\.0\.0\.1:\d+/#/experiments/1/runs\?workflowType=machine_learning   \(Ctrl-C ends it\)\n", output
    )
    assert "<title>MLflow</title>" in output


def test_weights_are_read_without_savepoint(story: Story) -> None:
    (code,) = [block for block in blocks("python") if "load_file" in block]
    assert "savepoint" not in code
    assert story.first is not None
    newest, _ = checkpoint.latest(story.first.checkpoints)
    assert newest is not None
    # By now it was trained for longer, and has another newest checkpoint.
    code = re.sub(r"epoch_\d+_step_\d+", newest.path.name, story.meant(code))
    names: dict[str, dict] = {}
    before = Path.cwd()
    try:
        os.chdir(story.clone)
        exec(code, names)
    finally:
        os.chdir(before)
    assert names["weights"].keys() == newest.model.keys()
    assert all(tensor.equal(newest.model[name]) for name, tensor in names["weights"].items())


def test_own_model_and_data_learn_and_resume_to_the_same_bits(story: Story) -> None:
    (line,) = [line for line in story.ended if "data=spirals" in line]
    arguments = [*shlex.split(line)[2:], "tracker=none"]
    whole = runs.read(story.clone / re.findall(r"^run \S+  (\S+)", story.ended[line].output, re.MULTILINE)[0])
    assert history.read_history(whole.metrics)[-1]["val/accuracy"] > 0.95  # type: ignore[operator]
    killed = story.clone.parent / "killed"
    ended = story.zygote.run("train.py", *arguments, f"hydra.run.dir={killed}", once=killed / "metrics.jsonl")
    assert ended.status == -signal.SIGKILL, ended.output
    ended = story.zygote.run("resume.py", f"run={killed}")
    assert ended.status == 0, ended.output
    assert diff.diff_runs(whole, runs.read(killed)) == []


def test_own_files_are_four_and_keep_the_repositorys_style(story: Story) -> None:
    files = own_files()
    assert len(files) == 4
    code = [str(story.clone / path) for path in files if path.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", *code], cwd=story.clone, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_everything_that_the_map_names_is_there(story: Story) -> None:
    (places,) = [block for block in blocks("text") if block.startswith("src/project/")]
    named = re.findall(r"(?:^|(?<= ))[\w/]+(?:/|\.py|\.db)(?= )", places, re.MULTILINE)
    assert len(named) == 8
    assert [name for name in named if not (story.clone / name).exists()] == []


def test_every_link_and_every_file_in_the_text_is_there() -> None:
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"\]\((?!http)(.+?)\)|`((?:src|conf|tests|docs)/[\w./]+)`", prose)
    assert len(named) > 6
    assert [path for pair in named for path in pair if path and not (REPOSITORY / path).exists()] == []


def make(folder: Path, *arguments: str) -> str:
    program = shutil.which("make")
    assert program is not None, "the README's first two commands need make"
    # Under `make test` another make's settings are in the environment.
    left_out = ("MAKE", "MFLAGS", "PYTHON", "RUN", "ARGS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment | {"LC_ALL": "C"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """What `make setup` looks at, before it has ever run."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(REPOSITORY / name, tmp_path)
    return tmp_path


BESIDE = {found[1]: line for line, comment in commands().items() if (found := re.match(r"make (\w+)", comment))}


@pytest.mark.parametrize("target", BESIDE)
def test_make_target_runs_the_line_beside_it(fresh: Path, target: str) -> None:
    last = make(fresh, "-n", target).splitlines()[-1]
    assert shlex.split(last.replace(".venv/bin/python", "python")) == shlex.split(BESIDE[target])


def test_every_make_target_of_the_readme_has_its_line() -> None:
    assert set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)) <= BESIDE.keys()


def test_make_setup_runs_the_two_lines_of_the_readme(fresh: Path) -> None:
    lines = list(commands())
    begin = lines.index("python3 -m venv .venv")
    told = make(fresh, "-n", "setup").splitlines()
    assert [line for line in told if not line.startswith("echo ")][:2] == lines[begin : begin + 2]


def test_second_make_setup_does_nothing_until_the_requirements_change(fresh: Path) -> None:
    (fresh / ".venv").mkdir()
    (fresh / ".venv" / "ready").touch()
    assert "Nothing to be done" in make(fresh, "setup")
    later = time.time() + 10
    os.utime(fresh / "constraints.txt", (later, later))
    assert "pip install" in make(fresh, "-n", "setup")
