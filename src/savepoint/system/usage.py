"""Measure what the machine is doing: its processors, memory, disk and accelerator."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EVERY_SECONDS = 10.0
_START_SECONDS = 1.0  # a shorter run never loads the library that measures


class Meter:
    """Measures the machine from time to time, about once every ten seconds: one reading takes a millisecond.

    directory: on the disk whose free space is measured. device: the one that is trained on.
    """

    def __init__(self, directory: Path, device: "torch.device") -> None:
        self._directory, self._device = directory, device
        self._before: _Counters | None = None
        self._due_at = time.perf_counter() + _START_SECONDS

    def due(self) -> bool:
        """Whether it is time for the next reading. Cheap enough to be asked at every step."""
        return time.perf_counter() >= self._due_at

    def read(self) -> dict[str, float]:
        """Measure the machine. Rates are averages since the last reading.

        `system/cpu_percent` is that of all cores together, 0 to 100. `system/process_cpu_percent` is that of this
        process, where 100 is one core. `_gb` counts 10^9 bytes, `_mb_s` 10^6 bytes a second.
        Returns: values by name, without those that the system does not tell; {} the first time.
        """
        before, self._before = self._before, _Counters()
        self._due_at = self._before.time + EVERY_SECONDS
        return {} if before is None else self._before.since(before) | self._memory() | self._accelerator()

    def _memory(self) -> dict[str, float]:
        import psutil

        found = {
            "system/memory_percent": psutil.virtual_memory().percent,
            "system/process_memory_gb": psutil.Process().memory_info().rss / 1e9,
        }
        with contextlib.suppress(OSError):  # the directory is gone
            found["system/disk_free_gb"] = shutil.disk_usage(self._directory).free / 1e9
        return found

    def _accelerator(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        found = {"system/gpu_used_gb": (total - free) / 1e9}
        # These need the package nvidia-ml-py, and a driver that answers.
        with contextlib.suppress(Exception):
            found["system/gpu_percent"] = float(torch.cuda.utilization(self._device))
            found["system/gpu_celsius"] = float(torch.cuda.temperature(self._device))
            found["system/gpu_watts"] = torch.cuda.power_draw(self._device) / 1000
        return found


class _Counters:
    """The system's counters at one moment: seconds that the processors worked, bytes that the disks moved."""

    def __init__(self) -> None:
        import psutil

        self.time = time.perf_counter()
        cpu, own, disk = psutil.cpu_times(), psutil.Process().cpu_times(), psutil.disk_io_counters()
        # Linux counts the time of virtual machines as the time of their processes, too.
        self.all = sum(cpu) - getattr(cpu, "guest", 0) - getattr(cpu, "guest_nice", 0)
        self.busy = self.all - cpu.idle - getattr(cpu, "iowait", 0)
        self.own = own.user + own.system
        self.disk = (disk.read_bytes, disk.write_bytes) if disk else None  # a container may have no disk to count

    def since(self, before: "_Counters") -> dict[str, float]:
        seconds = self.time - before.time
        found = {"system/process_cpu_percent": 100 * (self.own - before.own) / seconds}
        if self.all > before.all:
            found["system/cpu_percent"] = 100 * (self.busy - before.busy) / (self.all - before.all)
        if self.disk and before.disk:
            read, written = (now - then for now, then in zip(self.disk, before.disk))
            found |= {"system/disk_read_mb_s": read / 1e6 / seconds, "system/disk_write_mb_s": written / 1e6 / seconds}
        return found
