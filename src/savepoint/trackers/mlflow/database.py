"""Check whether a local database can be used, before MLflow is imported, which would retry for minutes."""

import contextlib
import errno
import sqlite3
import tempfile
from pathlib import Path

from savepoint.errors import UserError

# Errors that waiting does not cure, by the beginnings of their names. A locked database or a full disk is not one.
HOPELESS = (
    *("SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_PERM", "SQLITE_READONLY"),
    *("EACCES", "EEXIST", "EISDIR", "ENOTDIR", "EPERM", "EROFS"),
)


def check_database(path: Path) -> None:
    """Check whether a local database can be used. MLflow itself would retry for minutes, whatever is wrong.

    Raises: UserError for a fault that only a person can mend, so that waiting is pointless.
    """
    try:
        if path.exists():
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")  # asks for the right to write, and writes nothing
                connection.execute("SELECT * FROM sqlite_master").fetchone()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except (sqlite3.Error, OSError) as error:
        name = error.sqlite_errorname if isinstance(error, sqlite3.Error) else errno.errorcode.get(error.errno or 0, "")
        if name.startswith(HOPELESS):
            found = "is a directory, not a database" if path.is_dir() else f"cannot be used as a database ({error})"
            use = "Move it away, or set tracker.uri or MLFLOW_TRACKING_URI to another store"
            raise UserError(f"{path} {found}. {use}") from error
