"""What Windows and macOS do differently, as far as Linux can show it. docs/windows.md says what nobody has seen."""

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.processes import REPOSITORY
from tools.workshop import Workshop

from savepoint import checkpoint, runs, system
from savepoint.commands import diff, worktree
from savepoint.errors import UserError
from savepoint.runs import directory as directories
from savepoint.trackers.process import Worker
from savepoint.training import progress

SOURCES = [*(REPOSITORY / "src").rglob("*.py"), *REPOSITORY.glob("*.py"), *(REPOSITORY / "hooks").glob("*.py")]
# Modules and names of the standard library that Windows lacks; `os.set_blocking` until Python 3.12.
ABSENT_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
ABSENT = {
    "os": {"O_NOFOLLOW", "O_NONBLOCK", "POSIX_FADV_DONTNEED", "fchmod", "fork", "getpgid", "getuid", "killpg", "nice"}
    | {"posix_fadvise", "pread", "pwrite", "pwritev", "sched_getaffinity", "set_blocking", "setsid", "statvfs", "sync"}
    | {"uname", "wait", "writev"},
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "pause"},
}
# Where the engine uses some nevertheless. Each was read: the system is asked first.
ASKED_FIRST = {
    "data/workers.py": {"signal.SIGKILL"},
    "system/files.py": {"os.POSIX_FADV_DONTNEED", "os.posix_fadvise", "os.writev"},
    "system/signals.py": {"os.killpg", "signal.SIGKILL", "signal.SIGUSR1", "signal.SIGUSR2"},
    "trackers/process.py": {"os.set_blocking"},
    "trackers/worker.py": {"signal.SIGHUP"},
}
SPAWN = "import multiprocessing, runpy, sys\nmultiprocessing.set_start_method('spawn')\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_bytes()))


def test_what_windows_lacks_is_used_where_the_system_is_asked_first() -> None:
    used: dict[str, set[str]] = {}
    for path in (REPOSITORY / "src" / "savepoint").rglob("*.py"):
        for node in nodes(path):
            match node:
                case ast.Attribute(ast.Name(module), name) if name in ABSENT.get(module, ()):
                    used.setdefault(path.relative_to(REPOSITORY / "src/savepoint").as_posix(), set()).add(
                        f"{module}.{name}"
                    )
    assert used == ASKED_FIRST


def test_no_module_that_windows_lacks_is_imported_at_the_top() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_bytes()).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not ABSENT_MODULES & {*names}, path


def without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding that the machine happens to have: cp1252 on Windows."""
    given = {each.arg: each.value for each in call.keywords}
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    match call.func:
        case ast.Attribute(_, "read_text" | "write_text"):
            text = True
        case ast.Name("open"):
            text = not any("b" in mode for mode in modes)
        case ast.Attribute(_, "open"):
            text = bool(modes) and set(modes[0]) <= set("rwax+t")
        case _:
            text = isinstance(said := given.get("text"), ast.Constant) and said.value is True
    return text and "encoding" not in given


@pytest.mark.parametrize(
    "code", ["open(p)", "open(p, 'w')", "p.open('r')", "p.read_text()", "p.write_text('')", "run(c, text=True)"]
)
def test_a_missing_encoding_is_seen(code: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert without_encoding(call)


def test_text_is_read_and_written_in_an_encoding_that_is_named() -> None:
    calls = [(path, node) for path in SOURCES for node in nodes(path) if isinstance(node, ast.Call)]
    found = [f"{path.relative_to(REPOSITORY)}, line {call.lineno}" for path, call in calls if without_encoding(call)]
    assert found == []


def printed(*arguments: str, cwd: Path = REPOSITORY) -> str:
    """What a command prints into a pipe that knows ASCII alone, as one on Windows knows its code page alone."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_signs_that_a_pipe_lacks_are_printed_as_escapes(tmp_path: Path) -> None:
    assert "python -m savepoint plot <run> \\u2026" in printed("-m", "savepoint", "--help")
    assert "[key=value \\u2026]" in printed("resume.py", "--help")
    new = printed(str(REPOSITORY / "src/savepoint/template"), "new", "lab", "--name", "Labor → 物理", cwd=tmp_path)
    assert new.startswith("Labor \\u2192 \\u7269\\u7406: a project in lab")


class Busy:
    """A rename that is refused at first, as by Windows while a virus scanner has the file open."""

    def __init__(self, times: int) -> None:
        self.left, self.real = times, os.rename

    def __call__(self, source: Path, target: Path) -> None:
        self.left -= 1
        if self.left >= 0:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(source))
        self.real(source, target)


def save(root: Path) -> Path:
    documents = {checkpoint.CONFIG: "", checkpoint.PROVENANCE: "{}"}
    return checkpoint.save(root, model={}, state={"epoch": 0, "step": 0}, documents=documents, metadata={})


def test_what_is_open_elsewhere_is_renamed_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.files, "PATIENCE_SECONDS", 60)
    (tmp_path / "run.json").write_bytes(b"old")
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, Busy(times=2))
    system.files.replace(tmp_path / "run.json", b"new")
    assert (tmp_path / "run.json").read_bytes() == b"new"
    monkeypatch.setattr(os, "rename", Busy(times=2))
    assert checkpoint.verify(save(tmp_path / "checkpoints")) is None


def test_elsewhere_a_refused_rename_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", busy := Busy(times=2))
    with pytest.raises(PermissionError):
        save(tmp_path / "checkpoints")
    assert busy.left == 1 and list((tmp_path / "checkpoints").iterdir()) == []


def test_a_tracker_says_where_pipes_can_only_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "set_blocking")
    with pytest.raises(UserError, match=r"^A tracker needs Python 3\.12 or newer on Windows\. .* tracker=none\.$"):
        Worker({"do": "follow"}, log=tmp_path / "tracker.log", environment={})
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_windows_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, tree = tmp_path / "here", tmp_path / "tree"
    (here / "data").mkdir(parents=True)
    (here / "data" / "a.bin").touch()
    tree.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(UserError, match=r"a\.bin cannot be linked into .*tree: A required privilege is not held"):
        worktree._link_what_git_does_not_have(here, tree)


def test_a_reader_that_leaves_ends_no_training_on_windows(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = OSError(errno.EINVAL, "Invalid argument")
    kept = os.dup(sys.stdout.fileno())
    try:
        with monkeypatch.context() as windows:
            windows.setattr(os, "name", "nt")
            with progress._ignoring_closed_pipe():
                raise refused
    finally:
        os.dup2(kept, sys.stdout.fileno())
        os.close(kept)
    with pytest.raises(OSError, match="Invalid argument"), progress._ignoring_closed_pipe():
        raise refused


def test_a_path_to_type_is_quoted_as_windows_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("my runs/a")
    assert directories._typed(path) == "'my runs/a'"
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        assert directories._typed(path) == '"my runs/a"'


def test_the_engine_is_imported_where_signals_and_calls_are_fewer() -> None:
    """All of it, by a Python that lacks what Windows' lacks."""
    lines = ["import importlib, os, signal, sys, torch, mlflow.tracking, multiprocessing, asyncio"]
    lines += [f"{module}.__dict__.pop({name!r}, None)" for module, names in ABSENT.items() for name in sorted(names)]
    lines += [f"sys.modules[{name!r}] = None" for name in sorted(ABSENT_MODULES)]
    for path in sorted((REPOSITORY / "src" / "savepoint").rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY / "src").with_suffix("").parts).removesuffix(".__init__")
        lines += [f"importlib.import_module({name!r})"] if "__main__" not in name else []
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_spawned_loading_workers_give_the_same_bits(workshop: Workshop, tmp_path: Path) -> None:
    """As Windows and macOS start them: in an interpreter of their own, to which the data set is sent."""
    small = (
        "experiment=digits_cnn",
        "tracker=none",
        "trainer.threads=1",
        "data.limit_batches=2",
        "trainer.max_epochs=2",
    )
    (tmp_path / "spawn.py").write_text(
        f"if __name__ == '__main__':\n    {SPAWN.strip().replace(chr(10), chr(10) + '    ')}\n", encoding="utf-8"
    )
    train = [sys.executable, str(tmp_path / "spawn.py"), str(REPOSITORY / "train.py"), *small]
    done = subprocess.run(
        [*train, "data.num_workers=2", f"hydra.run.dir={tmp_path / 'spawned'}"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    ended = workshop.run("train.py", *small, f"hydra.run.dir={tmp_path / 'alone'}")
    assert ended.status == 0, ended.output
    assert diff.diff_runs(runs.read(tmp_path / "spawned"), runs.read(tmp_path / "alone")) == []
