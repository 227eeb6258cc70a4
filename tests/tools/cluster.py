"""A SLURM cluster of one node, on this machine alone: Debian's packages slurm-wlm and munge, run as root."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
POSSIBLE = all(map(shutil.which, PROGRAMS)) and os.geteuid() == 0

# No cgroups, no accounting, and no address but the loopback one. Jobs share the processors: there are few.
CONFIG = """
ClusterName=savepoint
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
MpiDefault=none
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """environment: what a process needs in its environment to use this cluster."""

    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands. Returns: what it prints."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def send(self, number: str, job: str) -> None:
        """Send a signal to a job's processes, as when its time is up. scancel would wait for a job that is queued again."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            command = ["scancel", f"--signal={number}", job]
            subprocess.run(command, env=os.environ | self.environment, capture_output=True, timeout=2)

    def jobs(self, state: str) -> list[str]:
        """Return the ids of the jobs in a state, `RUNNING` or `PENDING`: `<array>_<task>`."""
        return self.run("squeue", "-h", "-r", "-o", "%i", "-t", state).split()

    def clear(self) -> None:
        """End all jobs, and wait until the queue is empty."""
        self.run("scancel", "--user=root")
        for _ in range(300):
            if not self.run("squeue", "-h"):
                break
            time.sleep(0.1)


@contextlib.contextmanager
def started() -> Iterator[Cluster]:
    """Start a cluster, and stop it with all of its jobs at the end."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, contextlib.ExitStack() as ends:
        root, host = Path(place), socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (root / name).mkdir()
        (root / "munge.key").write_bytes(os.urandom(1024))
        (root / "munge.key").chmod(0o400)
        config = root / "slurm.conf"
        config.write_text(CONFIG.format(root=root, host=host, ports=_free_ports()))
        cluster = Cluster({"SLURM_CONF": str(config)})
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={root}/munge.{suffix}" for option, suffix in files.items()]
        for command in (["munged", "-F", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemon = subprocess.Popen(
                command, env=os.environ | cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            ends.callback(daemon.wait)
            ends.callback(daemon.terminate)
            while command[0] == "munged" and not (root / "munge.socket").exists():
                assert daemon.poll() is None, "munged has ended"
                time.sleep(0.05)
        for _ in range(200):
            with contextlib.suppress(subprocess.CalledProcessError):
                if "IDLE" in cluster.run("scontrol", "show", "node", host):
                    break
            time.sleep(0.1)
        ends.callback(cluster.clear)
        yield cluster


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]
