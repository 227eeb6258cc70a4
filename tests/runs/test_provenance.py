"""Provenance: from a checkpoint back to the code, against real git repositories."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from savepoint.runs import provenance


def git(repository: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=")
    done = subprocess.run(["git", *identity, *arguments], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit: model.py, and runs/ ignored."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "model.py").write_text("width = 1\n")
    (root / ".gitignore").write_text("runs/\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_commit_branch_and_dirt_are_known(repository: Path) -> None:
    found = provenance.gather_provenance(repository)
    assert found["git"] == {"commit": git(repository, "rev-parse", "HEAD"), "branch": "main", "dirty": False}
    (repository / "model.py").write_text("width = 2\n")
    assert provenance.gather_provenance(repository)["git"]["dirty"] is True


def test_record_is_json_and_names_versions_hardware_threads_host_and_command(repository: Path) -> None:
    found = json.loads(json.dumps(provenance.gather_provenance(repository)))
    assert set(found) == {"git", "versions", "hardware", "threads", "ranks", "host", "command", "time"}
    assert found["versions"]["python"] == sys.version.split()[0] and found["versions"]["torch"]
    assert found["threads"] >= 1 and found["hardware"]["cores"] >= 1


def test_without_git_or_a_commit_there_is_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    nothing = {"commit": None, "branch": None, "dirty": None}
    assert provenance.gather_provenance(tmp_path)["git"] == nothing and provenance.uncommitted_changes(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert provenance.gather_provenance(tmp_path)["git"] == nothing and provenance.uncommitted_changes(tmp_path) is None


def test_clean_tree_has_no_patch(repository: Path) -> None:
    assert provenance.uncommitted_changes(repository) is None


def test_patch_on_a_clean_checkout_gives_the_code_that_ran(repository: Path, tmp_path: Path) -> None:
    (repository / "model.py").write_bytes("width = 3  # größer\n".encode("latin-1"))
    (repository / "new dir").mkdir()
    (repository / "new dir" / "loss.py").write_text("scale = 2\n")
    git(repository, "add", "new dir")
    (repository / "untracked.yaml").write_text("lr: 1\n")
    patch = provenance.uncommitted_changes(repository)
    assert patch is not None
    (tmp_path / "changes.patch").write_bytes(patch.encode(errors="surrogateescape"))
    git(tmp_path, "clone", "-q", str(repository), "clone")
    git(tmp_path / "clone", "apply", str(tmp_path / "changes.patch"))
    for name in ("model.py", "new dir/loss.py", "untracked.yaml"):
        assert (tmp_path / "clone" / name).read_bytes() == (repository / name).read_bytes()


def test_patch_holds_no_data_no_runs_and_no_secrets(repository: Path) -> None:
    (repository / "big.py").write_text("#" * (provenance.MAX_UNTRACKED + 1))
    (repository / "weights.bin").write_bytes(b"data")
    (repository / "runs").mkdir()
    (repository / "runs" / "config.yaml").write_text("ignored: true\n")
    run = repository / "my_run" / "checkpoints"
    run.mkdir(parents=True)
    (run.parent / "run.json").write_text("{}")
    (run / "config.yaml").write_text("seed: 0\n")
    assert provenance.uncommitted_changes(repository) is None
    (repository / "model.py").write_text('password = "hunter2"\n')
    patch = provenance.uncommitted_changes(repository)
    assert patch and "hunter2" not in patch and "my_run" not in patch


def test_command_line_has_no_secret_and_no_directory_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["/somewhere/train.py", "seed=1", "name=two words", "+a.password=hunter2", "hydra.run.dir=/runs/x"]
    monkeypatch.setattr(sys, "argv", [*typed, "run=/runs/x", "uri=ftp://me:hunter2@host"])
    assert (
        provenance._command()
        == "train.py seed=1 'name=two words' '+a.password=[redacted]' 'uri=ftp://me:[redacted]@host'"
    )


def test_differences_name_what_may_change_bits_and_nothing_else(repository: Path) -> None:
    then = provenance.gather_provenance(repository) | {"device": "cpu", "compile": False}
    assert provenance.provenance_differences(then, then | {"time": "later", "host": "other", "command": "other"}) == []
    now = json.loads(json.dumps(then)) | {"threads": then["threads"] + 1, "device": "cuda", "compile": True}
    now["versions"]["torch"], now["git"]["commit"], now["hardware"]["processor"] = "9.9", None, "other"
    told = "; ".join(provenance.provenance_differences(then, now))
    assert told == (
        f"git commit {then['git']['commit'][:10]} → none; torch {then['versions']['torch']} → 9.9; "
        f"processor {then['hardware']['processor']} → other; threads {then['threads']} → {now['threads']}; "
        "device cpu → cuda; compile False → True"
    )
