"""Runs train.py and resume.py many times for the price of one import of torch.

A process that has only imported them, and forks a child for each command. The child is a new process for everything
that a run keeps in memory: generators, modules, optimizers. Kept out of the test process itself, whose threads a fork
would not survive.

One JSON object a line in: {"script", "arguments", "output", "kill_after": seconds or null, "once": a file that has to
hold something first, or null, "again_after": seconds to a second signal, or null, "signal", "disk": a directory whose
disk is watched, or null, "fault": what happens there (disk.Fault), "umask": number or null, "temporary": what
everything takes for the system's temporary directory, or null, "strike": what happens at which moment of the training
(moments.Strike), or null, "nursery": the socket of a warm.Nursery that the run's tracker has its process from, or
null, "errors": where standard error goes if not to the output, or null, "cwd": its directory, or null, "environment":
variables}. A script is train.py, resume.py or a module beside this one with a `main`.
One out: {"status": exit status, negative for a signal, "seconds"}.
If "background" is true, the answer comes at once and is {"pid"}; the line {"pid"} then waits for that child.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

# All that a run imports; nothing that starts a thread. The collector would search all of it, again and again.
gc.disable()

import hydra._internal.hydra  # noqa: E402
import hydra.types  # noqa: E402
import torch._dynamo  # noqa: E402, F401  # by the first optimizer of a process, and it takes seconds

import resume  # noqa: E402, F401
import train  # noqa: E402, F401
from savepoint import __main__ as program  # noqa: E402
from savepoint import training  # noqa: E402, F401
from tools import composed, disk, moments, warm  # noqa: E402


def child(order: dict) -> int:
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(os.open(order["errors"], os.O_WRONLY) if order["errors"] else output, 2)
    os.close(output)
    os.environ.update(order["environment"])
    os.chdir(order["cwd"] or ".")
    sys.argv = [order["script"], *order["arguments"]]
    if order["umask"] is not None:
        os.umask(order["umask"])
    if order["temporary"] is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = order["temporary"]
    if order["disk"]:
        disk.Disk(Path(order["disk"]), disk.Fault(**order["fault"])).install()
    if order["strike"]:
        moments.Moments(moments.Strike(**order["strike"])).install()
    if order["nursery"]:
        warm.stand_in(order["nursery"]).start()
    if order["script"] == "train.py" and not {"-m", "--multirun"} & set(order["arguments"]):
        # Hydra composes every config twice, once only to learn its mode: a third of the time of a short run.
        hydra._internal.hydra.Hydra.get_mode = lambda *_, **__: hydra.types.RunMode.RUN
    if order["script"] == "savepoint":
        code = program.main(order["arguments"])
    else:
        code = importlib.import_module(order["script"].removesuffix(".py")).main()
    sys.stdout.flush()
    return code


def run(order: dict) -> dict:
    started = time.monotonic()
    if "pid" in order:
        return {"status": os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])}
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(order)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if order["background"]:
        return {"pid": pid}
    status = None
    while status is None:
        done, raw = os.waitpid(pid, os.WNOHANG if order["kill_after"] is not None else 0)
        if done:
            status = os.waitstatus_to_exitcode(raw)
        elif order["kill_after"] is not None and time.monotonic() - started > order["kill_after"] and _begun(order):
            os.kill(pid, order["signal"])
            again, order["again_after"] = order["again_after"], None
            order["kill_after"] = None if again is None else time.monotonic() - started + again
        time.sleep(0.0005)
    return {"status": status, "seconds": time.monotonic() - started}


def _begun(order: dict) -> bool:
    try:
        return order["once"] is None or Path(order["once"]).stat().st_size > 0
    except FileNotFoundError:
        return False


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    composed.warm_up(REPOSITORY / "conf")
    gc.collect()  # or each child would
    gc.enable()
    print(json.dumps({"ready": True}), flush=True)
    # An empty line, and not the end of the pipe, which processes may hold that were forked beside this one.
    for line in iter(sys.stdin.readline, "\n"):
        if not line:
            break
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
