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
from savepoint.trackers.service import describe


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
def server(status: int, body: str = "") -> Iterator[str]:
    """A server that answers everything with this status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

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

        yield lambda uri: client.connect(order(uri))


def order(uri: str) -> dict[str, object]:
    return {"kind": "mlflow", "uri": uri, "experiment": "mine", "database": None}


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


WHO = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ANSWERS = [
    (401, "", f"refuses the user or the password (401). Set {WHO}"),
    (
        403,
        "",
        f"forbids this to the user (403). Ask for the permission to edit the experiment 'mine', or set tracker.experiment to another, or {WHO}",
    ),
    (404, "", "is no MLflow server (404). Check tracker.uri and MLFLOW_TRACKING_URI"),
    *((status, "", f"answers with an error ({status}). The server's log says why") for status in (429, 500, 502, 503)),
    (
        200,
        "<title>Sign in</title>",
        "does not answer like an MLflow server. It may be a login page. Check tracker.uri and MLFLOW_TRACKING_URI",
    ),
]


@pytest.mark.parametrize(("status", "body", "words"), ANSWERS)
def test_what_a_server_answers_is_told_in_words(
    status: int, body: str, words: str, connect: Callable[[str], object]
) -> None:
    with server(status, body) as uri, pytest.raises(Exception, match=r"API request|Max retries") as failure:
        connect(uri)
    with_password = uri.replace("://", "://me:secret@")
    assert describe(failure.value, order(with_password)) == f"{uri} {words}"


def test_a_server_that_refuses_its_own_name_is_told_so(connect: Callable[[str], object]) -> None:
    said = "Invalid Host header - possible DNS rebinding attack detected"
    with server(403, said) as uri, pytest.raises(Exception, match="Invalid Host header") as failure:
        connect(uri)
    name = uri.removeprefix("http://")
    words = f"refuses the name in its address (403). Add {name} to the server's --allowed-hosts"
    assert describe(failure.value, order(uri)) == f"{uri} {words}"


def test_a_server_that_is_not_mlflows_is_refused(connect: Callable[[str], object]) -> None:
    from savepoint.trackers.mlflow.client import experiment

    with server(200, "{}") as uri, pytest.raises(UserError, match="the server answers, but is no MLflow server"):
        experiment(connect(uri), "mine", artifacts=None)


def test_a_server_that_hangs_up_is_told_so(connect: Callable[[str], object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            asking, _ = listening.accept()
            asking.recv(65536)
            asking.close()

        threading.Thread(target=hang_up, daemon=True).start()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(Exception, match="Connection aborted") as failure:
            connect(uri)
    assert describe(failure.value, order(uri)) == f"{uri} broke the connection off. The server's log may say why"


def test_server_that_is_down_may_work_later(connect: Callable[[str], object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(Exception, match="Max retries") as failure:
        connect(uri)
    assert describe(failure.value, order(uri)) == f"{uri} does not answer"
