"""Copy a state to host memory between two updates, so that it can be written while training goes on."""

import torch
from torch import Tensor

from savepoint.checkpoint.tensorfile import Plan


class Snapshot:
    """Host memory for the tensors of a planned file, reused by each copy. It is pinned if any tensor is on CUDA."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._header = b""
        self._views: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    # A module may give tensors that require a gradient: without this, a graph would grow with each copy into the views.
    @torch.no_grad()
    def copy(self, plan: Plan) -> Plan:
        """Return a plan of the same file whose bytes are in this memory. The plan of the last call becomes invalid.

        On CUDA the copy may still be in progress: call `wait` before reading it.
        """
        # The header states every dtype, shape and offset. If it is the same, the views still fit.
        if plan.header != self._header:
            self._make_room(plan)
        devices = {tensor.device for tensor in plan.tensors if tensor.is_cuda}
        self._copied = []
        if len(devices) == 1:
            self._copy_beside(devices.pop(), plan.tensors)
        elif plan.tensors:
            torch._foreach_copy_(self._views, plan.tensors)
        return plan.with_tensors([self._memory[: plan.bytes]] if plan.bytes else [])

    def wait(self) -> None:
        """Wait until the copy is in host memory. Any thread may call this."""
        for event in self._copied:
            event.synchronize()

    def _make_room(self, plan: Plan) -> None:
        pinned = any(tensor.is_cuda for tensor in plan.tensors)
        if plan.bytes > len(self._memory) or pinned != self._memory.is_pinned():
            self._views = []
            # Freed before the new memory is allocated: both together would be twice the state.
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = torch.empty(plan.bytes, dtype=torch.uint8, pin_memory=pinned)
        self._views, end = [], 0
        for tensor in plan.tensors:
            start, end = end, end + tensor.numel() * tensor.element_size()
            self._views.append(self._memory[start:end].view(tensor.dtype).view(tensor.shape))
        self._header = plan.header

    def _copy_beside(self, device: torch.device, tensors: list[Tensor]) -> None:
        """Copy on a separate stream. The device runs the next update after the copy; this thread waits for neither."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._streams[device]
        training = torch.cuda.current_stream(device)
        side.wait_stream(training)
        with torch.cuda.stream(side):
            for view, tensor in zip(self._views, tensors):
                # Resolved on the device: `copy_` would resolve on the host, before the bytes arrive (pytorch#146286).
                view.copy_(tensor.resolve_conj().resolve_neg(), non_blocking=True)
            # With a blocking event, the thread that waits sleeps instead of keeping a core busy.
            self._copied = [side.record_event(torch.cuda.Event(blocking=True))]  # type: ignore[no-untyped-call]
        training.wait_stream(side)
