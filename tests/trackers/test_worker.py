"""What a store says that can never work, and what one says that may work later."""

import contextlib
import http.server
import socket
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from savepoint.errors import UserError
from savepoint.trackers.mlflow import KIND
from savepoint.trackers.mlflow.database import check_database


def make_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (run_uuid)")


def change_byte(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))


def read_only(path: Path) -> None:
    """Works for root too: SQLite refuses to write where the file's write version is newer than its own."""
    make_database(path)
    change_byte(path, 18, 3)


def corrupt(path: Path) -> None:
    make_database(path)
    change_byte(path, 100, 0x99)


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


NEVER = {
    "a directory": (Path.mkdir, "is a directory, not a database"),
    "no database": (lambda path: path.write_text("no database " * 99), "(file is not a database)"),
    "corrupt": (corrupt, "(database disk image is malformed)"),
    "read-only": (read_only, "(attempt to write a readonly database)"),
    "below a file": (below_a_file, "cannot be used as a database ([Errno "),
}


@pytest.mark.parametrize("kind", NEVER)
def test_database_that_can_never_work_is_refused(kind: str, tmp_path: Path) -> None:
    spoil, words = NEVER[kind]
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(UserError) as refusal:
        check_database(path)
    text = str(refusal.value)
    assert text.startswith(str(path)) and words in text
    assert text.endswith(". Move it away, or set tracker.uri or MLFLOW_TRACKING_URI to another store")


@contextlib.contextmanager
def held(path: Path, lock: str) -> Iterator[None]:
    make_database(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"BEGIN {lock}")
        yield


@contextlib.contextmanager
def prepared(path: Path, prepare: Callable[[Path], object]) -> Iterator[None]:
    prepare(path)
    yield


NOT_YET = {
    "sound": lambda path: prepared(path, make_database),
    "absent": lambda path: prepared(path, str),
    "empty": lambda path: prepared(path, Path.touch),
    "in a directory that is absent": lambda path: prepared(path, lambda path: path.parent.rmdir()),
    "being written": lambda path: held(path, "IMMEDIATE"),
    "locked": lambda path: held(path, "EXCLUSIVE"),
}


@pytest.mark.parametrize("kind", NOT_YET)
def test_database_that_may_work_later_is_not_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    with NOT_YET[kind](path):
        files = set(path.parent.glob("*"))
        check_database(path)
        assert set(path.parent.glob("*")) == files  # the check leaves nothing behind


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    """A server that answers everything with this status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Connects to a store as the worker does, in this process."""
    for name, value in KIND.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's and SQLAlchemy's own, which no user of the worker sees
        from savepoint.trackers.mlflow import client

        yield lambda uri: client.connect({"uri": uri, "database": None})


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("htps://host:5000", "MLflow has no store at an address like htps://host:5000. Use sqlite:///<path>.db, or"),
        ("http://host:port", "MLflow has no store at an address like http://host:port."),
        (
            "postgresql://host/mlflow",
            "the database at postgresql://host/mlflow has no driver here (import of psycopg",
        ),
    ],
)
def test_address_that_can_never_work_is_refused(uri: str, words: str, connect: Callable[[str], object]) -> None:
    with pytest.raises(UserError) as refusal:
        connect(uri)
    assert str(refusal.value).startswith(words)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the user"), (403, "forbids"), (404, "is no MLflow server")]
)
def test_server_that_refuses_can_never_work(status: int, words: str, connect: Callable[[str], object]) -> None:
    with server(status) as uri, pytest.raises(UserError) as refusal:
        connect(uri)
    assert str(refusal.value).startswith(f"{uri} {words}") and "Check tracker.uri" in str(refusal.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_server_in_trouble_may_work_later(status: int, connect: Callable[[str], object]) -> None:
    with server(status) as uri, pytest.raises(Exception, match=r"Max retries|failed with error code") as failure:
        connect(uri)
    assert not isinstance(failure.value, UserError)


def test_server_that_is_down_may_work_later(connect: Callable[[str], object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Exception, match="Max retries") as failure:
        connect(f"http://127.0.0.1:{port}")
    assert not isinstance(failure.value, UserError)
