"""Tell an error of the disk from other errors, and put it into words."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from savepoint.errors import UserError

# Error numbers of a disk that is full, and of one that cannot be written for another reason.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_ERRORS = FULL | {errno.EROFS, errno.EIO}


def is_disk_error(error: OSError, directory: Path | None = None) -> bool:
    """Whether an error comes from the disk, rather than from code that opened a file of its own.

    directory: the run's. An error about a file in it always comes from the disk; any other one counts by its number.
    """
    if directory is not None and isinstance(error.filename, str | os.PathLike):
        return Path(error.filename).absolute().is_relative_to(directory.absolute())
    return error.errno in _DISK_ERRORS


@contextlib.contextmanager
def explaining_disk_errors(directory: Path) -> Iterator[None]:
    """Turn disk errors inside this block into a message for people. directory: the run's.

    Raises: UserError for an error of the disk. Every other OSError passes through.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_error(error, directory):
            raise
        raise UserError(f"The run directory cannot be written: {error.strerror}.") from error
