"""A stand-in for SLURM: runs a job script as sbatch does, tells or kills it at random moments, and requeues it.

`srun` and `scontrol` are small scripts in a directory that comes first on the path. What SLURM does with
`--signal=USR1@120` (to the processes that srun started), on preemption (SIGTERM, to all of the job) and when a node is
lost (SIGKILL, to all of it) is what this does.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SRUN = """#!/bin/bash
"$@" &
echo $! > "$SLURM_TOOLS/step"
wait $!
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "requeue $SLURM_JOB_ID" ] && touch "$SLURM_TOOLS/requeued"
"""
LOST, TIME_IS_UP, PREEMPTED = "the node is lost", "the time is up", "preempted"


@dataclass
class Job:
    """A job in the queue. script: what sbatch would be given. ends: how each of its starts ended."""

    script: Path
    cwd: Path
    tools: Path
    environment: dict[str, str]
    ends: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tools.mkdir()
        # The job's python is the one that runs the tests.
        python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        self.environment = os.environ | self.environment
        self.environment |= {
            "PATH": f"{self.tools}{os.pathsep}{self.environment['PATH']}",
            "SLURM_TOOLS": str(self.tools),
            "SLURM_JOB_ID": "1234",
            "SLURM_JOB_NAME": "baseline",
        }

    def start(self, *, seconds: float | None = None, how: str = LOST) -> bool:
        """Run the script once, and let something happen to it after some seconds. Returns: whether it is requeued."""
        for name in ("step", "requeued"):
            (self.tools / name).unlink(missing_ok=True)
        with open(self.tools / "log", "ab") as log:
            process = subprocess.Popen(
                ["bash", str(self.script)],
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
                self.ends.append(f"exit {code}")
                return (self.tools / "requeued").exists()
            except subprocess.TimeoutExpired:
                pass
            self.ends.append(how)
            step = self._step()
            if how == TIME_IS_UP:
                os.kill(step, signal.SIGUSR1)
            else:
                os.killpg(process.pid, signal.SIGKILL if how == LOST else signal.SIGTERM)
            process.wait(60)
            while _alive(step):  # SLURM requeues a job when all of its processes are gone
                time.sleep(0.02)
            return how != TIME_IS_UP or (self.tools / "requeued").exists()

    def _step(self) -> int:
        """Return the process id of what srun has started, once it has."""
        path = self.tools / "step"
        while not path.exists() or not path.read_text().endswith("\n"):
            time.sleep(0.02)
        return int(path.read_text())

    @property
    def log(self) -> str:
        """What all starts have printed."""
        return (self.tools / "log").read_text(errors="replace")


def _alive(process: int) -> bool:
    """Whether a process still runs. One that has ended may stay listed until its parent asks for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(job: Job, *, times: int, seed: int, span: tuple[float, float]) -> None:
    """Let something happen to a job at so many random moments, then let it end.

    span: the seconds after a start between which it happens.
    """
    draw = random.Random(seed)
    for _ in range(times):
        how = draw.choice((LOST, TIME_IS_UP, PREEMPTED))
        if not job.start(seconds=draw.uniform(*span), how=how):
            break
        time.sleep(0.05)
    while job.start():
        pass
