"""Files that are on the disk whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from savepoint.system import files


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls that make a file durable, in the order in which they were made."""
    made: list[str] = []
    paths: dict[int, Path] = {}
    opened, fsync, rename, replace = os.open, os.fsync, os.rename, os.replace

    def noted_open(path: Path, *flags: int) -> int:
        descriptor = opened(path, *flags)
        paths[descriptor] = Path(path)
        return descriptor

    def noted_fsync(descriptor: int) -> None:
        path = paths[descriptor]
        made.append(f"fsync {path.name} ({path.stat().st_size if path.is_file() else 'directory'})")
        fsync(descriptor)

    def noted(function: object) -> object:
        def call(source: Path, target: Path) -> None:
            made.append(f"rename to {Path(target).name}")
            function(source, target)  # type: ignore[operator]

        return call

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted(rename))
    monkeypatch.setattr(os, "replace", noted(replace))
    return made


def test_write_syncs_all_bytes_of_the_file(tmp_path: Path, calls: list[str]) -> None:
    files.write(tmp_path / "a", b"12345")
    assert calls == ["fsync a (5)"]
    assert (tmp_path / "a").read_bytes() == b"12345"


def test_files_of_one_save_are_all_written_before_the_first_of_them_is_synced(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, sizes = os.fsync, []

    def fsync(descriptor: int) -> None:
        sizes.append({path.name: path.stat().st_size for path in tmp_path.iterdir()})
        noted(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    written = files.write_together({tmp_path / "a": b"12345", tmp_path / "b": [b"1", b"2"], tmp_path / "c": b""})
    assert written == {tmp_path / "a": 5, tmp_path / "b": 2, tmp_path / "c": 0}
    assert sizes == [{"a": 5, "b": 2, "c": 0}] * 3
    assert calls == ["fsync a (5)", "fsync b (2)", "fsync c (0)"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_the_disk_is_asked_to_begin_before_all_is_written_and_before_the_sync(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "_WINDOW", 10)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _, offset, count, __: asked.append((offset, count)) if not calls else None
    )
    data = bytes(range(37))
    assert files.write(tmp_path / "a", [data[:4], data[4:15], data[15:36], data[36:]]) == 37
    assert asked == [(0, 10), (10, 10), (20, 10), (30, 7)]
    assert (tmp_path / "a").read_bytes() == data and calls == ["fsync a (37)"]


def test_small_chunks_are_written_together_and_large_ones_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[int]] = []
    real = os.writev

    def noted(descriptor: int, parts: list[memoryview]) -> int:
        written.append([len(part) for part in parts])
        return real(descriptor, parts)

    monkeypatch.setattr(os, "writev", noted)
    monkeypatch.setattr(files, "_WINDOW", 10)
    monkeypatch.setattr(files, "_MOST_PARTS", 3)
    chunks = [b"", b"1", b"22", b"", b"333", b"4444", bytes(21), b"5"]
    assert files.write(tmp_path / "a", chunks) == 32
    assert written == [[1, 2, 3], [4, 6], [10], [5, 1]]
    assert (tmp_path / "a").read_bytes() == b"".join(chunks)


@pytest.mark.parametrize("together", [True, False], ids=["writev", "write"])
def test_a_system_that_takes_less_than_it_is_given_is_given_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    real = os.write
    taken = iter([1, 2, 5, 1, 4, 3, 8, 1, *[2] * 99])
    monkeypatch.setattr(os, "write", lambda descriptor, part: real(descriptor, part[: next(taken)]))
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: os.write(descriptor, b"".join(parts)))
    if not together:
        monkeypatch.delattr(os, "writev")
    data = bytes(range(50))
    assert files.write(tmp_path / "a", [data[:3], data[3:4], data[4:30], data[30:]]) == 50
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_a_disk_that_takes_no_advice_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(files, "_WINDOW", 10)
    monkeypatch.setattr(os, "posix_fadvise", refused)
    files.write(tmp_path / "a", bytes(25))
    monkeypatch.delattr(os, "posix_fadvise")
    files.write(tmp_path / "b", bytes(25))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == bytes(25)


def test_write_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("umask, mode", [(0o002, 0o664), (0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write(tmp_path / "written", b"")
        files.replace(tmp_path / "replaced", b"")
    finally:
        os.umask(before)
    for name in ("written", "replaced"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_replace_syncs_the_bytes_then_renames_then_syncs_the_directory(tmp_path: Path, calls: list[str]) -> None:
    files.replace(tmp_path / "a", b"12345")
    assert len(calls) == 3
    assert calls[0].startswith("fsync .a.") and calls[0].endswith("(5)")
    assert calls[1:] == ["rename to a", f"fsync {tmp_path.name} (directory)"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_replace_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_replace_that_fails_says_so_where_nothing_can_be_removed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        monkeypatch.setattr(Path, "unlink", read_only)
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "a", b"new")


def test_only_what_a_killed_replace_of_this_file_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.1.tmp", ".a.22.tmp", ".b.1.tmp", "a", "a.1.tmp"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.1.tmp", "a", "a.1.tmp"]


def test_what_a_killed_replace_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".a.{os.getpid()}.tmp").write_bytes(b"torn")
    files.replace(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_replace_gives_the_name_to_a_new_file(tmp_path: Path) -> None:
    """Whoever has the old one open goes on reading the old contents."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        files.replace(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


OTHER = """
import sys
from pathlib import Path
from savepoint.system.files import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


def other(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])},
    )


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    with other(tmp_path / "lock") as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        lock = files.Lock(tmp_path / "lock")
        assert lock.acquire() is False
        holder.kill()
        holder.wait()
        assert lock.acquire() is True
        lock.release()


def test_a_released_lock_can_be_taken_by_another_process(tmp_path: Path) -> None:
    lock = files.Lock(tmp_path / "lock")
    assert lock.acquire() is True
    with other(tmp_path / "lock") as refused:
        assert refused.communicate("")[0] == "False\n"
    lock.release()
    with other(tmp_path / "lock") as taken:
        assert taken.communicate("")[0] == "True\n"


def test_a_lock_for_a_block_waits_for_the_other_process_and_is_freed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    path.parent.mkdir()
    with other(path) as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            holder.kill()

        threading.Timer(0.3, kill).start()
        with files.locked(path):
            assert killed.is_set()
            with other(path) as refused:
                assert refused.communicate("")[0] == "False\n"
        with other(path) as taken:
            assert taken.communicate("")[0] == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    """A data loading worker lives on for seconds after its parent was killed."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom savepoint.system.files import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\nassert lock.acquire()\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(30)\n    os._exit(0)\n"
        "print(child, flush=True)\nos._exit(0)\n"
    )
    output = tmp_path / "child"
    with open(output, "w") as file:
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "lock")],
            stdout=file,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])},
        )
    child = int(output.read_text())
    try:
        os.kill(child, 0)
        lock = files.Lock(tmp_path / "lock")
        assert lock.acquire() is True
        lock.release()
    finally:
        os.kill(child, 9)


def test_a_file_system_without_locks_keeps_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    closed, release = [], files.Lock.release
    monkeypatch.setattr(files.Lock, "acquire", refuse)
    monkeypatch.setattr(files.Lock, "release", lambda lock: closed.append(release(lock)))
    with pytest.raises(OSError, match="No locks"), files.locked(tmp_path / "lock"):
        raise AssertionError("the block runs without the lock")
    assert len(closed) == 1


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", without)
    lock = files.Lock(tmp_path / "lock")
    with pytest.raises(OSError, match="No locks available") as caught:
        lock.acquire()
    assert caught.value.filename == str(tmp_path / "lock")
    lock.release()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN, errno.EDEADLK])
def test_whatever_a_system_calls_a_lock_that_is_held_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import fcntl

    def held(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", held)
    lock = files.Lock(tmp_path / "lock")
    assert lock.acquire() is False
    lock.release()


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.fsync` names none, and by its name a file of the run is told from others."""

    def ill(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", ill)
    for call, path in ((lambda: files.write(tmp_path / "a", b""), tmp_path / "a"), (lambda: files.sync_directory(tmp_path), tmp_path)):  # fmt: skip
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.filename == str(path)


def test_an_error_names_the_one_of_several_files_that_the_disk_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def ill(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", ill)
    with pytest.raises(OSError, match="Input/output error") as caught:
        files.write_together({tmp_path / "a": b"1", tmp_path / "b": b"12", tmp_path / "c": b"1"})
    assert caught.value.filename == str(tmp_path / "b")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = os.listdir("/proc/self/fd")
    files.write(tmp_path / "a", b"")
    files.sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", ill)
    two = {tmp_path / "c": b"", tmp_path / "d": b""}
    for call in (lambda: files.write_together(two), lambda: files.sync_directory(tmp_path)):
        with pytest.raises(OSError, match="Input/output error"):
            call()
    assert os.listdir("/proc/self/fd") == before


def test_what_the_disk_does_not_let_go_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "directory").mkdir()
    monkeypatch.setattr(os, "rmdir", ill)
    files.remove(tmp_path / "directory")
    assert (tmp_path / "directory").is_dir()


def test_remove_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "missing"):
        files.remove(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "a"]
    files.remove(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
