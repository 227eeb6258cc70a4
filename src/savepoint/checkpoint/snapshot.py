"""One copy of a state in host memory, taken between two updates, so that it can be written while training goes on."""

import torch
from torch import Tensor

from savepoint.checkpoint.tensorfile import Plan


class Snapshot:
    """Host memory that holds a planned file's tensors, and is used again by the next copy. Pinned if any is on CUDA."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._header = b""
        self._views: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @torch.no_grad()  # a module may give its parameters undetached: a graph would grow with each copy into these views
    def copy(self, plan: Plan) -> Plan:
        """The same file from memory of its own. On CUDA the copy may still be under way: `wait` before it is read.

        The plan that the last call gave is no longer good.
        """
        if plan.header != self._header:  # it says every dtype, shape and place: without a change the views still fit
            self._make_room(plan)
        devices = {tensor.device for tensor in plan.tensors if tensor.is_cuda}
        self._copied = []
        if len(devices) == 1:
            self._copy_beside(devices.pop(), plan.tensors)
        elif plan.tensors:
            torch._foreach_copy_(self._views, plan.tensors)
        return plan.of([self._memory[: plan.bytes]] if plan.bytes else [])

    def wait(self) -> None:
        """Wait until the copy is in host memory. From any thread."""
        for event in self._copied:
            event.synchronize()

    def _make_room(self, plan: Plan) -> None:
        pinned = any(tensor.is_cuda for tensor in plan.tensors)
        if plan.bytes > len(self._memory) or pinned != self._memory.is_pinned():
            self._views = []
            self._memory = torch.empty(0, dtype=torch.uint8)  # freed first: two of them would be twice the state
            self._memory = torch.empty(plan.bytes, dtype=torch.uint8, pin_memory=pinned)
        self._views, end = [], 0
        for tensor in plan.tensors:
            start, end = end, end + tensor.numel() * tensor.element_size()
            self._views.append(self._memory[start:end].view(tensor.dtype).view(tensor.shape))
        self._header = plan.header

    def _copy_beside(self, device: torch.device, tensors: list[Tensor]) -> None:
        """On a stream of its own: this thread does not wait, and the next update does, on the device, for the copy."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._streams[device]
        training = torch.cuda.current_stream(device)
        side.wait_stream(training)
        with torch.cuda.stream(side):
            for view, tensor in zip(self._views, tensors):
                # Resolved on the device: `copy_` would do it on the host, before the bytes are there (pytorch#146286).
                view.copy_(tensor.resolve_conj().resolve_neg(), non_blocking=True)
            # Blocking: the thread that waits for it sleeps, rather than keeping a core busy.
            self._copied = [side.record_event(torch.cuda.Event(blocking=True))]  # type: ignore[no-untyped-call]
        training.wait_stream(side)
