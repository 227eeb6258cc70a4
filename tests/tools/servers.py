"""Real servers for tests: PostgreSQL, S3 as moto plays it, and MLflow's own in front of them. All listen on 127.0.0.1."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tools.stores import wait_for

# The newest of Debian's, which are not in PATH.
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("none"), key=lambda path: float(path.parent.name))
KEYS = {"AWS_ACCESS_KEY_ID": "savepoint", "AWS_SECRET_ACCESS_KEY": "not-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "runs"


def need(*, program: Path | None = None, packages: Sequence[str] = ()) -> None:
    """Skip this test, in one line, where something is missing. With CI=true that is an error: green means it ran."""
    missing = [f"the Python package {each}" for each in packages if importlib.util.find_spec(each) is None]
    if program is not None and not program.exists():
        missing.append(f"PostgreSQL ({program.name})")
    if missing:
        line = f"missing: {', '.join(missing)}. make test-servers says how to install it"
        assert os.environ.get("CI") != "true", line
        pytest.skip(line)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A server process. It can be killed as by a crash, and started again with the same data, on the same port.

    command: `PORT` in it stands for the port. user: whom the process belongs to; None for this process's own user.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] = os.environ, user: str | None = None
    ) -> None:
        self.port = free_port()
        self.log = log
        self._command = [each.replace("PORT", str(self.port)) for each in command]
        self._environment, self._user = dict(environment), user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start the process. wait: until it takes connections."""
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
        if wait:
            wait_for(self.listens, seconds=90)

    def listens(self) -> bool:
        """Whether the server takes connections."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(self.log.read_text(errors="replace")[-2000:])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
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
        server = Server(command, log=place / "log", user=user)
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


@contextlib.contextmanager
def mlflow(folder: Path, *, database: str, artifacts: str, **variables: str) -> Iterator[Server]:
    """MLflow's server. folder: an existing one, for its log. variables: of its environment."""
    options = [f"--backend-store-uri={database}", f"--artifacts-destination={artifacts}", "--workers=1"]
    options += ["--app-name=basic-auth"] if "MLFLOW_AUTH_ADMIN_PASSWORD" in variables else []
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host=127.0.0.1", "--port=PORT", *options]
    # As `make server` does: MLflow's job workers would outlive it.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_"))}
    server = Server(command, log=folder / "mlflow.log", environment={**inherited, **quiet, **variables})
    server.start()
    try:
        yield server
    finally:
        server.kill()
