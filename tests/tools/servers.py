"""Real servers for tests: PostgreSQL, S3 as moto plays it, and MLflow's own in front of them. All listen on 127.0.0.1."""

import contextlib
import http.client
import http.server
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from savepoint import trackers
from savepoint.config import TrackerSettings
from tools.processes import REPOSITORY
from tools.stores import wait_for

# The newest of Debian's, which are not in PATH.
PROGRAMS = max(
    Path("/usr/lib/postgresql").glob("*/bin"), default=Path("none"), key=lambda path: float(path.parent.name)
)
KEYS = {"AWS_ACCESS_KEY_ID": "savepoint", "AWS_SECRET_ACCESS_KEY": "not-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "runs"
Filler = Callable[[], Path]


def needing(*, program: Path | None = None, packages: Sequence[str] = ()) -> list[Any]:
    """Return the params of a module's fixture, which skip its tests where a program or a package of Python's is missing.

    With CI=true they do not, and the tests fail: there, green means that they ran.
    """
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if program is not None and not program.exists():
        missing.append(program.name)
    skip = pytest.mark.skip(
        reason=f"missing: {', '.join(missing)}. `make test-servers` and `apt install postgresql` bring it"
    )
    # One line for a module: `skipif` would give one for each of its tests.
    return [
        pytest.param(None, id=pytest.HIDDEN_PARAM, marks=skip if missing and os.environ.get("CI") != "true" else ())
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A server process. It can be killed as by a crash, and started again with the same data, on the same port.

    command: `PORT` in it stands for the port. user: whom the process belongs to; None for this process's own user.
    ready: a command that fails until the server works, for one that takes connections earlier.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] = os.environ,
        user: str | None = None,
        ready: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.log = log
        self._command, self._ready = (
            [each.replace("PORT", str(self.port)) for each in one] for one in (command, ready)
        )
        self._environment, self._user = dict(environment), user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and wait until it works."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.log.parent,
                user=self._user,
                group=self._user,
                start_new_session=True,  # so that its workers end with it
            )
        wait_for(self._works, seconds=90)

    def _works(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(self.log.read_text(errors="replace")[-2000:])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return not self._ready or subprocess.run(self._ready, check=False).returncode == 0
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process and those that it started, at once and unprepared."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A PostgreSQL server without a password for its administrator, `postgres`."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    # Not in pytest's directory, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="savepoint-postgres-") as folder:
        place = Path(folder)
        # A network address always asks for a password, but for the administrator.
        rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        if user:
            shutil.chown(place, user, user)
        init = [PROGRAMS / "initdb", "-D", place / "data", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(init, user=user, group=user, cwd=place, capture_output=True, check=False)
        assert made.returncode == 0, made.stderr
        (place / "data" / "pg_hba.conf").write_text(rules)
        command = [str(PROGRAMS / "postgres"), "-D", str(place / "data"), "-h", "127.0.0.1", "-p", "PORT", "-k", folder]
        ready = [str(PROGRAMS / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", "PORT"]
        server = Server(command, log=place / "log", user=user, ready=ready)
        server.start()
        try:
            yield server
        finally:
            server.kill(signal.SIGQUIT)  # it ends without a shutdown


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Server]:
    """An S3 server with one bucket. folder: an existing one, for its log."""
    code = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
    server = Server([sys.executable, "-P", "-c", code, "PORT"], log=folder / "s3.log")
    server.start()
    try:
        bucket_of(server).create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.kill()


def bucket_of(server: Server):
    """Return a client of an S3 server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )


def documented(option: str, **values: object) -> str:
    """The ARGS of `make server` in docs/tracking.md that have this option. values: in place of <names>."""
    page = (REPOSITORY / "docs" / "tracking.md").read_text(encoding="utf-8")
    (found,) = [each for each in re.findall(r'make server ARGS="(.*)"', page) if option in each]
    return re.sub(r"<(\w+)>", lambda name: str(values[name[1]]), found)


@contextlib.contextmanager
def mlflow(folder: Path, arguments: str = "", **variables: str) -> Iterator[Server]:
    """MLflow's server, as `make server ARGS=…` starts it in a folder. variables: of its environment."""
    (recipe,) = re.findall(
        r"^server: setup.*\n\t\S+/python (.*) \$\(ARGS\)$", (REPOSITORY / "Makefile").read_text(), re.M
    )
    options = ["--host=127.0.0.1", "--port=PORT", "--workers=1"]
    command = [sys.executable, *shlex.split(recipe), *shlex.split(arguments), *options]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_"))}
    fixed = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}  # as in the Makefile
    server = Server(command, log=folder / "mlflow.log", environment={**inherited, **fixed, **variables})
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Filler]:
    """A disk of 4 MB, mounted at an empty folder. Gives a function that fills it, and returns the file to delete."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        assert os.environ.get("CI") != "true", mounted.stderr
        pytest.skip("root alone can mount a small disk")

    def fill() -> Path:
        filler = place / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1024)):
                pass
        return filler

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def opener(root: Path) -> Iterator[Callable[..., trackers.Tracker]]:
    """Opens trackers of one run, `root`/run, in an experiment of its own, and leaves no process behind."""
    (root / "run" / "checkpoints").mkdir(parents=True)
    (root / "run" / "metrics.jsonl").touch()
    with contextlib.ExitStack() as stack:

        def open_one(uri: str | None, experiment: str = root.name, **arguments: object) -> trackers.Tracker:
            settings = TrackerSettings(kind="mlflow", uri=uri, experiment=experiment)
            run = {"run_dir": root / "run", "run_id": "ab12cd34", "repository": root}
            tracker = trackers.open(settings, **run, **arguments)
            stack.callback(tracker.abandon)
            tracker.start(name=None, params={"lr": "0.1"}, tags={})
            return tracker

        yield open_one


class Gate:
    """Stands in front of a server, and lets requests through or does something else to them.

    manner: "open"; "slow", after `seconds`; "silent", never an answer; "error", each answer is 500; "login", each is a
    web page; "away", each is a redirect to one; "lost", the server does what it is asked and its answer is lost.
    only: what a request's path ends with that is not let through. seen: the paths of all requests.
    """

    def __init__(self, port: int) -> None:
        self.manner, self.only, self.seconds = "open", "", 10.0
        self.seen: list[str] = []
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.seen.append(self.path)
                manner = gate.manner if self.path.partition("?")[0].endswith(gate.only) else "open"
                if manner in ("silent", "slow"):
                    gate.closed.wait(600 if manner == "silent" else gate.seconds)
                if manner == "silent":
                    return
                if manner in ANSWERS:
                    status, headers, page = ANSWERS[manner]
                else:
                    status, headers, page = gate.forward(self.command, self.path, body, dict(self.headers), port)
                if manner == "lost":
                    gate.manner = "open"
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                pass

        self.closed = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # who asked may be gone
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def forward(method: str, path: str, body: bytes, headers: dict[str, str], port: int) -> tuple[int, dict, bytes]:
        headers.pop("Transfer-Encoding", None)  # as requests sends an empty file
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() == "content-type"}
            return answer.status, kept, answer.read()

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


PAGE = b"<!doctype html><title>Sign in</title>" + b"<p>Please sign in.</p>" * 40
ANSWERS = {
    "error": (500, {"Content-Type": "text/plain"}, b"Internal Server Error"),
    "login": (200, {"Content-Type": "text/html"}, PAGE),
    "away": (302, {"Location": "/login"}, b""),
}
