"""`python -m savepoint reproduce`: a run is trained again with its own code, whatever the repository holds by now."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools import pages, ranked
from tools.processes import REPOSITORY, Zygote
from tools.sealed import seal
from tools.share import some
from tools.warm import Warm
from tools.workshop import copy_repository

from savepoint import checkpoint, runs
from savepoint.commands import compare, worktree
from savepoint.commands.reproduce import reproduce_run
from savepoint.errors import UserError

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=2", "checkpoint.keep_last=9")
# Its weights depend on a tracked binary file, and its outputs on a file that git ignores.
MODEL = """
import torch
from pathlib import Path
from project.models.mlp import Mlp


class Scaled(Mlp):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        torch.nn.init.constant_(next(self.parameters()), Path("table.bin").read_bytes()[0] / 1000)

    def forward(self, inputs):
        return super().forward(inputs) * len(Path("kept/data.bin").read_bytes())
"""


@dataclass(frozen=True)
class Home:
    """A repository with runs of several kinds, whose newest commit has another model and whose tree is dirty."""

    root: Path
    runs: dict[str, Path]
    first: str
    zygote: Zygote

    def copy(self, name: str) -> Path:
        """Copy a run to a place beside it, for a test to change. Its new id makes it a run of its own."""
        place = self.runs[name].parent / f"999999-{name}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.runs[name], place)
        runs.read(place).update(id="copy0001")
        return place


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def training_in_a_warm_interpreter(warm: Warm) -> Iterator[None]:
    """As it imports nothing of the engine's before the training, this comes from the tree of the run."""
    with warm.used("savepoint.commands.reproduce"):
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("home")
    copy_repository(root)
    shutil.copy(REPOSITORY / ".gitignore", root)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + "/kept/\n/output-*.txt\n")
    (root / "table.bin").write_bytes(bytes(range(256)))
    (root / "kept").mkdir()
    (root / "kept" / "data.bin").write_bytes(b"\0\1\2")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    first, made = git(root, "rev-parse", "HEAD"), {}
    zygote = Zygote(root, root)

    def train(name: str, *commands: tuple[str, ...]) -> None:
        for script, *arguments in commands:
            ended = zygote.run(script, *arguments)
            assert ended.status == 0, ended.output
        made[name] = max(runs.all_runs(root), key=lambda run: run.record["started"]).directory

    three = (*SMALL, "trainer.max_epochs=3")
    train("clean", ("train.py", *three, "model.dropout=0.1"))
    again = ("resume.py", "run=latest", "trainer.max_steps=null")
    train("resumed", ("train.py", *three, "trainer.max_steps=3"), again)
    train("fork", ("resume.py", f"run={made['clean']}@4", "optimizer.lr=0.01", "trainer.max_epochs=4"))
    train("tuned", ("train.py", *SMALL, "trainer.max_epochs=1", f"init_from={runs.read(made['clean']).id}@2"))
    two = ranked.run(
        zygote, root / "kept", 2, "train.py", *SMALL, "trainer.max_epochs=1", f"hydra.run.dir={root / 'runs' / 'two'}"
    )
    assert [each.status for each in two] == [0, 0], two[0].output
    made["two ranks"] = root / "runs" / "two"
    # As for a run of several machines, whose config holds no number of processes.
    seal(newest(made["two ranks"]) / "config.yaml", lambda data: data.replace(b"processes: 2", b"processes: null"))
    (root / "table.bin").write_bytes(b"\x07" + bytes(range(255)))
    (root / "src" / "project" / "models" / "scaled.py").write_text(MODEL)
    (root / "conf" / "model" / "scaled.yaml").write_text("_target_: project.models.scaled.Scaled\nin_features: 64\n")
    arguments = ("+model.hidden=[8]", "+model.out_features=10", *(each for each in three if "hidden" not in each))
    train("dirty", ("train.py", "model=scaled", *arguments))
    git(root, "stash", "-q", "--include-untracked")
    model = root / "src" / "project" / "models" / "mlp.py"
    model.write_text(model.read_text().replace("nn.ReLU", "nn.Tanh"))
    git(root, "commit", "-q", "-a", "-m", "another model")
    (root / "train.py").write_text("raise SystemExit(3)\n")
    assert sorted(checkpoint.names(made["resumed"] / "checkpoints")) == [
        *("epoch_0001_step_00000002", "epoch_0001_step_00000003"),
        *("epoch_0002_step_00000004", "epoch_0003_step_00000006"),
    ]
    yield Home(root, made, first, zygote)
    zygote.close()


def state_of(root: Path) -> list[str]:
    """What must not change: the branch, the index, the files, the worktrees."""
    asked = ("rev-parse HEAD", "rev-parse --abbrev-ref HEAD", "status --porcelain", "stash list", "worktree list")
    return [git(root, *each.split()) for each in asked]


def reproduced(home: Home, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code and what was printed. The repository must be as before."""
    before = state_of(home.root)
    capsys.readouterr()
    code = reproduce_run(home.root, [*arguments])
    assert state_of(home.root) == before
    return code, capsys.readouterr().out


def newest(directory: Path) -> Path:
    root = directory / "checkpoints"
    return root / checkpoint.names(root)[-1]


MADE_AGAIN = [("resumed", 4, 3), ("fork", 3, 2), ("dirty", 3, 3), ("tuned", 1, 1), ("two ranks", 1, 1)]


@pytest.mark.parametrize("name, count, lines", some(MADE_AGAIN, lambda case: case[0] in ("dirty", "two ranks")))
def test_a_run_is_made_again_bit_by_bit_although_the_repository_has_moved_on(
    home: Home, capsys: pytest.CaptureFixture[str], name: str, count: int, lines: int
) -> None:
    code, out = reproduced(home, capsys, str(home.runs[name]))
    assert code == 0, out
    *_, last, receipt = out.splitlines()
    assert last.startswith(f"identical: {count} checkpoints, ") and last.endswith(f", {lines} logged lines")
    assert receipt.startswith(f"receipt: commit {home.first[:12]}{'+' * (name == 'dirty')}  config ")
    assert (" with its uncommitted changes" in out) == (name == "dirty")
    assert "ranks" not in out, "no warning that their number is another"
    weights = newest(home.runs[name]) / "model.safetensors"
    assert receipt.endswith(f"  weights {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}")


def test_the_first_epochs_can_be_enough_and_the_directory_can_be_kept(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    capsys.readouterr()
    assert reproduce_run(home.root, [str(home.runs["clean"]), "--epochs", "2", "--keep", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["identical"] and found["lines"] == 2 and found["run"] == runs.read(home.runs["clean"]).id
    assert found["compared"] == ["epoch_0001_step_00000002", "epoch_0002_step_00000004"]
    assert set(found["receipt"]) == {"commit", "config", "data", "weights"}
    (place,) = tmp_path.iterdir()
    assert f"kept: {place}; remove it with: git worktree remove" in err
    assert (place / "tree" / "kept").is_symlink() and git(place / "tree", "rev-parse", "HEAD") == home.first
    git(home.root, "worktree", "remove", "--force", str(place / "tree"))
    assert (home.root / "kept" / "data.bin").exists(), "links are removed, and not what they point to"


def test_what_differs_first_is_named(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    copy = home.copy("clean")
    second = copy / "checkpoints" / "epoch_0002_step_00000004"
    seal(second / "model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    seal(second / "provenance.json", lambda data: data.replace(b'"torch": "', b'"torch": "0.'))
    code, out = reproduced(home, capsys, str(copy))
    assert code == 1
    assert "epoch_0001_step_00000002  identical\nepoch_0002_step_00000004  differs\ndifferent, first in " in out
    assert "different, first in epoch_0002_step_00000004: " in out and " values differ\n" in out
    (reason,) = [line for line in out.splitlines() if line.startswith("likely because of: ")]
    assert reason.startswith("likely because of: torch 0.") and " → " in reason


def test_other_code_gives_other_logged_values_and_other_versions_are_told_before(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, head = home.copy("clean"), git(home.root, "rev-parse", "HEAD")
    for path in (copy / "checkpoints").glob("*/provenance.json"):
        seal(path, lambda data: data.replace(home.first.encode(), head.encode()).replace(b'"2.', b'"1.', 1))
    code, out = reproduced(home, capsys, str(copy))
    assert code == 1 and "different, first in metrics.jsonl line 1/" in out, out
    before = out.partition("epoch_0001")[0]
    assert " → " in before and "; --env installs the recorded versions" in before


def test_a_training_that_fails_is_no_difference(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    copy = home.copy("clean")
    # A module of the name of one that the engine imports.
    patch = b"--- /dev/null\n+++ b/src/safetensors.py\n@@ -0,0 +1 @@\n+import nowhere_to_be_found\n"
    seal(newest(copy) / "changes.patch", lambda _: patch)
    with pytest.raises(UserError, match=r"(?s)The training failed\. Its last lines:.*nowhere_to_be_found"):
        reproduced(home, capsys, str(copy))


# What is refused before anything is trained


def refused(home: Home, *arguments: str) -> str:
    before, temporary = (
        state_of(home.root),
        sorted(Path(os.environ.get("TMPDIR", "/tmp")).glob("savepoint-reproduce-*")),
    )
    with pytest.raises(UserError) as caught:
        reproduce_run(home.root, [*arguments])
    assert state_of(home.root) == before
    assert temporary == sorted(Path(os.environ.get("TMPDIR", "/tmp")).glob("savepoint-reproduce-*"))
    return str(caught.value)


def test_a_patch_that_does_not_apply_is_told_in_one_line(home: Home) -> None:
    copy = home.copy("dirty")
    seal(newest(copy) / "changes.patch", lambda data: data.replace(b"index ", b"index 0", 1))
    told = refused(home, str(copy))
    assert told.startswith("The run's changes.patch does not apply to its commit: ") and "\n" not in told
    assert "redacted" not in told
    seal(newest(copy) / "changes.patch", lambda data: data + b"[redacted]\n")
    assert refused(home, str(copy)).endswith(" It was redacted of a secret, which may be why.")


def test_a_patch_cannot_write_outside_of_its_tree(home: Home) -> None:
    copy = home.copy("clean")
    added = b"--- /dev/null\n+++ b/../outside.py\n@@ -0,0 +1 @@\n+x = 1\n"
    seal(newest(copy) / "changes.patch", lambda _: b"diff --git a/../outside.py b/../outside.py\n" + added)
    assert "does not apply" in refused(home, str(copy))


@pytest.mark.parametrize(
    "commit, told",
    [
        ('"' + "0" * 40 + '"', "Commit " + "0" * 40 + " is not in this repository."),
        ("null", "records no git commit, so its code is not known."),
        ('"--force"', "records the git commit '--force', which is none."),
    ],
    ids=["unknown", "none", "no-commit"],
)
def test_a_commit_that_is_not_there_is_told(home: Home, commit: str, told: str) -> None:
    copy = home.copy("clean")
    seal(newest(copy) / "provenance.json", lambda data: data.replace(f'"{home.first}"'.encode(), commit.encode()))
    assert told in refused(home, str(copy))


def test_without_git_there_is_no_code(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    place = tmp_path / "copy" / "runs" / "2026-01-01" / "000001-a"
    shutil.copytree(home.runs["clean"], place)
    with pytest.raises(UserError, match=r"copy is no git repository, so the run's commit \w+ cannot be checked out"):
        reproduce_run(tmp_path / "copy", [str(place)])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not installed"):
        reproduce_run(tmp_path / "copy", [str(place)])


def test_code_from_elsewhere_is_not_run_unasked(home: Home, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(home.runs["clean"], tmp_path / "run"))
    seal(newest(copy) / "changes.patch", lambda _: b"no patch\n")
    for query in (copy, newest(copy), copy / "checkpoints"):
        told = refused(home, str(query))
        assert "runs the code in its changes.patch" in told and told.endswith("then add --trust-code.")
    assert "does not apply" in refused(home, str(copy), "--trust-code")


def test_a_fork_without_its_parent_says_so(home: Home) -> None:
    copy = home.copy("fork")
    seal(
        newest(copy) / "provenance.json",
        lambda data: data.replace(runs.read(home.runs["clean"]).id.encode(), b"gone1234"),
    )
    told = refused(home, str(copy))
    assert "The run is a fork, and the checkpoint that it began from cannot be loaded: No run gone1234." in told


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "Which run? usage: "),
        (["a", "b"], "Which run? usage: "),
        (["a", "--fast"], "reproduce has no option --fast. usage: "),
        (["a", "--epochs", "none"], "--epochs none: give a number of epochs, at least 1."),
        (["a", "--epochs=0"], "--epochs 0: give a number of epochs, at least 1."),
        (["nowhere"], "No run nowhere."),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(home: Home, arguments: list[str], told: str) -> None:
    found = refused(home, *arguments)
    assert told in found and "\n" not in found


# The recorded versions


def test_an_environment_has_exactly_the_recorded_versions_and_what_else_the_tree_needs(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    versions = {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "mlflow": None}
    found = worktree.requirements(tmp_path, versions)
    assert found[:2] == ["torch==2.13.0+cpu", "numpy==2.4.6"]
    rest = [each.partition(">")[0] for each in found[2:]]
    assert {"hydra-core", "safetensors", "mlflow", "rich"} <= {*rest} and not {"torch", "numpy", "python"} & {*rest}


@pytest.mark.parametrize("versions", [None, {"--index-url=x": "1"}, {"torch": "1 --index-url=x"}, {"torch": 2}])
def test_a_record_that_is_no_list_of_versions_installs_nothing(tmp_path: Path, versions: Any) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with pytest.raises(UserError, match=r"records no versions|which is none"):
        worktree.requirements(tmp_path, versions)


@pytest.mark.long
def test_versions_that_pip_does_not_find_are_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    told = refused(home, str(home.runs["clean"]), "--env")
    assert told.startswith("The recorded versions cannot be installed.") and "No matching distribution" in told


# The page


def test_the_commands_of_the_page_run(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    git(home.root, "checkout", "-q", "--", "train.py")
    page = pages.read(REPOSITORY / "docs" / "reproduce.md")
    said = []
    for _, *line in page.commands:
        if line[0] == "train.py":
            ended = home.zygote.run(*line, "tracker=none", "data.limit_batches=2", "trainer.threads=1")
            assert ended.status == 0, ended.output
            continue
        verb, run = {"reproduce": reproduced, "diff": compared}[line[2]], line[3:]
        said.append(verb(home, capsys, *run))
    assert [code for code, _ in said] == [0, 0, 1]
    assert "\nidentical: 3 checkpoints, " in said[0][1] and json.loads(said[1][1])["identical"]
    shown = re.findall(r"^```text\n(.*?)^```", (REPOSITORY / "docs" / "reproduce.md").read_text(), re.DOTALL | re.M)
    pair = [
        [re.sub(r"[0-9a-f.]{5,}|\d+|\s+", " ", each) for each in text.splitlines()] for text in (shown[0], said[0][1])
    ]
    assert pair[0] == pair[1], "the page shows what is printed"


def compared(home: Home, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    return compare(home.root, [*arguments]), capsys.readouterr().out
