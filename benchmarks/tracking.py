"""What logging costs a training step: four values a step, to a database, to a server, and to a server that is gone.

`python benchmarks/tracking.py`

The step is that of an MLP on digits, batch 64, one thread. The contenders are no logging; Savepoint without a tracker,
which is a line of metrics.jsonl that no kill can take back; Savepoint, the same and now and then a sign to the process
that stores the lines in MLflow; `mlflow.log_metrics`; and the same with `synchronous=False`. Each is a process of its
own, and they take turns. Two figures are measured for each: the time within the calls that log, and the time of the
whole loop against the loop without logging, which also sees what other threads take away from it. A server is gone when
it is killed before the first step.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

STORES = ("database", "server", "gone")
CONTENDERS = ("nothing", "Savepoint, untracked", "Savepoint", "log_metrics", "asynchronous")
PATIENCE_SECONDS = 20  # with a contender that waits for a server that is gone


def training() -> Callable[[], float]:
    """Return a function that makes one update and returns its loss."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    inputs, targets = torch.randn(64, 64), torch.randint(10, (64,))

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@contextlib.contextmanager
def logging(contender: str, uri: str, folder: Path, begun: Path) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Provide the function that logs the values of a step. Its run is in the store once the file `begun` is there."""
    if contender == "nothing":
        begun.touch()
        yield lambda step, values: None
    elif contender.startswith("Savepoint"):
        from savepoint import trackers
        from savepoint.config import TrackerSettings
        from savepoint.runs import History

        history = History(folder / "metrics.jsonl")
        where = {"run_dir": folder, "run_id": "ab12cd34", "repository": folder}
        kind = "none" if contender.endswith("untracked") else "mlflow"
        tracker = trackers.open(
            TrackerSettings(kind=kind, uri=uri), **where, announce=lambda _: begun.touch(), warn=lambda _: None
        )
        tracker.start(name="tracked", params={}, tags={})
        while kind != "none" and not begun.exists():
            tracker.wake()
            time.sleep(0.05)

        def log(step: int, values: dict[str, float]) -> None:
            history.append(step=step, epoch=0, values=values)
            tracker.wake()

        yield log
        tracker.close("finished", 1)
    else:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.start_run()
        begun.touch()
        yield (
            lambda step, values: mlflow.log_metrics(values, step=step, synchronous=contender == "log_metrics") and None
        )


def one(contender: str, uri: str, steps: int, ready: Path) -> None:
    """Measure one contender in this process, and print the seconds of the loop and of the calls. ready: to wait for."""
    step, folder = training(), Path(tempfile.mkdtemp())
    begun = folder / "begun"
    with logging(contender, uri, folder, begun) as log:
        print("begun", flush=True)
        while not ready.exists():
            time.sleep(0.01)
        for _ in range(100):
            step()
        started, within = time.perf_counter(), 0.0
        for number in range(1, steps + 1):
            loss = step()
            values = {"train/loss": loss, "train/accuracy": 0.5, "train/grad_norm": 1.5, "lr": 0.005}
            before = time.perf_counter()
            log(number, values)
            within += time.perf_counter() - before
        print(json.dumps({"loop": (time.perf_counter() - started) / steps, "calls": within / steps}), flush=True)
    shutil.rmtree(folder)
    os._exit(0)  # MLflow's threads would go on trying


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Start an MLflow server on the loopback address. Yields: its address, and its process group's leader."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    options += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "mlflow", "server", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while True:
            assert server.poll() is None, "the server has ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


def measured(contender: str, store: str, steps: int, folder: Path) -> dict[str, float] | None:
    """Return the seconds a step of the loop and of the calls; None if the contender waits in vain."""
    ready = folder / f"ready-{time.monotonic_ns()}"
    with contextlib.ExitStack() as stack:
        uri, server = f"sqlite:///{folder / 'mlflow.db'}", None
        if store != "database":
            uri, server = stack.enter_context(served(folder))
        fewer = max(1, steps // 10) if contender in ("log_metrics", "asynchronous") else steps
        command = [sys.executable, __file__, "--one", contender, uri, str(fewer), str(ready)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, **pipes)  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == b"begun\n", f"{contender} has not begun"
            if store == "gone" and server is not None:
                os.killpg(server.pid, 9)
            ready.touch()
            out, _ = process.communicate(timeout=PATIENCE_SECONDS if store == "gone" else 600)
            return dict(json.loads(out))
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.communicate()


def table(store: str, turns: list[dict[str, dict[str, float] | None]]) -> list[str]:
    lines = [f"{store:<22}{'µs within the calls (least … most)':>38}{'loop / no logging':>26}"]
    for name in CONTENDERS:
        pairs = [(one[name], one["nothing"]) for one in turns]
        found = [(each["calls"] * 1e6, each["loop"] / base["loop"]) for each, base in pairs if each and base]
        if len(found) < len(turns):
            lines.append(f"{name:<22}{f'still waiting after {PATIENCE_SECONDS} s':>38}")
            continue
        shown = [
            f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"
            for values, digits in zip(zip(*found, strict=True), (1, 2), strict=True)
        ]
        lines.append(f"{name:<22}{shown[0]:>38}{shown[1]:>26}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="of MLflow's own calls a tenth")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        contender, uri, steps, ready = arguments.one
        one(contender, uri, int(steps), Path(ready))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.steps} steps, {arguments.turns} turns; median")
    for store in STORES:
        folder = Path(tempfile.mkdtemp())
        try:
            if store == "database":
                measured("log_metrics", store, 1, folder)  # makes it
            turns = [
                {name: measured(name, store, arguments.steps, folder) for name in CONTENDERS}
                for _ in range(arguments.turns)
            ]
        finally:
            shutil.rmtree(folder)
        print("\n".join(table(store, turns)), flush=True)


if __name__ == "__main__":
    main()
