"""An error of the disk, told from others and put into words."""

import errno
from pathlib import Path

import pytest

from savepoint import runs
from savepoint.errors import UserError


def test_only_the_disks_own_errors_are_the_disks() -> None:
    assert runs.is_disk_error(OSError(errno.ENOSPC, "full")) and runs.is_disk_error(OSError(errno.EDQUOT, "quota"))
    assert not runs.is_disk_error(FileNotFoundError(errno.ENOENT, "gone")) and not runs.is_disk_error(OSError("odd"))


def test_whatever_is_wrong_with_a_file_of_the_run_is_the_disks(tmp_path: Path) -> None:
    inside, outside = str(tmp_path / "run" / "checkpoints"), str(tmp_path / "data" / "cat.png")
    for code in (errno.ENOENT, errno.EACCES, errno.ESTALE, errno.ENOSPC):
        assert runs.is_disk_error(OSError(code, "odd", inside), tmp_path / "run")
        assert not runs.is_disk_error(OSError(code, "odd", outside), tmp_path / "run")
    with pytest.raises(UserError, match="cannot be written: odd"), runs.explaining_disk_errors(tmp_path / "run"):
        raise OSError(errno.EACCES, "odd", inside)
    with pytest.raises(OSError, match="odd"), runs.explaining_disk_errors(tmp_path / "run"):
        raise OSError(errno.EACCES, "odd", outside)
