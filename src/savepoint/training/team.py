"""What the ranks of a run tell each other while it trains: gradients, sums of metrics, requests to stop, states.

A run of one process has no team. Everything here gives every rank the same result, so all ranks take the same path.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from savepoint import checkpoint, parallel, system

# The option's name in torch 2.13 and newer, and in older ones.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)
# The signals that ask a training to stop, by their places in what the ranks add up.
_NUMBERS = system.signals.REQUESTS
BROADCAST = 250 * 2**20  # bytes that travel together, as in DistributedDataParallel
_DIGIT = 4096


class Stop(system.signals.Stop):
    """A request to stop that all ranks have agreed on, so that all stop after the same update.

    own: this rank's request, from its signals and stop files. A rank that was asked tells the others at once.
    """

    def __init__(self, own: system.signals.Stop) -> None:
        super().__init__()
        self._own, self._told = own, False

    @property  # type: ignore[misc]
    def signal(self) -> int | None:
        """Return what the ranks have agreed on."""
        return self._number

    @property
    def asked(self) -> int | None:
        """Return what this rank knows of a request, agreed on or not, so that it ends an evaluation early."""
        health = parallel.current()
        if self._own.signal is None:
            return health.asked if health else None
        if not self._told and health:
            self._told = True
            health.ask(self._own.signal)
        return self._own.signal

    def counts(self) -> list[int]:
        """Return a one at the place of the request that this rank knows of."""
        asked = self.asked
        return [int(number == asked) for number in _NUMBERS]

    def take(self, counts: list[int]) -> None:
        """Agree on a request that some rank knows of. counts: the sums over all ranks."""
        if self._number is None:
            self._number = next((number for number, there in zip(_NUMBERS, counts) if there), None)
            if self._number is not None:
                self.announce(f"{system.signals.name_of(self._number)}: all ranks finish this step, then save.")

    def agree(self) -> int | None:
        """Ask all ranks whether one of them was asked to stop. Every rank has to call this."""
        self.take(parallel.Summing(self.counts()).sums())
        return self._number


class Team:
    """The other ranks, as an update of this one meets them.

    model: a wrapper of the model whose backward pass averages gradients over the ranks.
    stop: what the ranks agreed on. clock: whether a checkpoint is due by the clock. Both are set before training.
    due: what rank 0's clock said at the last update. unit: the number of samples that gradients are divided by.
    together: whether every call of the model involves all ranks.
    """

    together = False

    def __init__(self, model: nn.Module, forward: Any, *, batch_size: int, every_parameter: bool) -> None:
        """Wrap a model that has been restored. All ranks take over rank 0's parameters and buffers.

        forward: the model or its compiled wrapper; None for a task that makes its updates itself.
        batch_size: samples of a whole batch, as the config has it. every_parameter: whether each update reaches every
        parameter.
        """
        self.stop = Stop(system.signals.Stop())
        self.clock: Callable[[], bool] = lambda: False
        self.due = False
        # All ranks divide by the same number, because gradients are on their way before the others' samples are known.
        self.unit = batch_size / parallel.count()
        self._divisor: float = batch_size  # of the average that the backward pass leaves
        self._leads = parallel.leads()  # kept, because to look into the environment takes long
        self._module = model
        # Modules that have buffers: to look through a large model at every update takes a millisecond.
        self._buffered = [module for module in model.modules() if module._buffers]
        self._trained = [name for name, each in model.named_parameters() if each.requires_grad]
        self._forward, self._every = forward, every_parameter
        self._carrying: _Carrying | None = None
        self._sums: Callable[[], list[int]] | None = None  # what the ranks are adding up
        self._samples = 0  # of all ranks in this update; 0 until they are known
        self.model: Any = self._wrapped() if forward is not None else None

    def _wrapped(self) -> DistributedDataParallel:
        # Between CPUs the numbers of an update travel among the gradients, because another exchange takes 0.2 ms. A
        # GPU would have to be waited for to read them there.
        carried = self._every and next(self._module.parameters()).device.type == "cpu"
        self._carrying = _Carrying(self._forward) if carried else None
        # Buffers are sent after each update instead of before each forward pass, so that ranks always agree.
        model = DistributedDataParallel(
            self._carrying or self._forward,
            find_unused_parameters=not self._every,
            gradient_as_bucket_view=True,
            **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
        )
        if self._every:
            self._lay_out(model)
        return model

    def _lay_out(self, model: DistributedDataParallel) -> None:
        """Fix which gradients travel together.

        DistributedDataParallel decides that anew after its first backward pass. The order of additions between three
        or more ranks depends on it, so the first update of a resumed run would differ from the same update of a run
        that was not interrupted. A backward pass through all parameters, in the usual order, settles it beforehand.
        """
        parameters = [each for each in model.parameters() if each.requires_grad]
        model.reducer.prepare_for_forward()
        model.reducer.prepare_for_backward([])
        # The last operation of a forward pass comes first in the backward pass.
        sum_of_all = torch.zeros((), device=parameters[0].device)
        for each in parameters:
            sum_of_all = sum_of_all + each.sum().real.float() * 0
        sum_of_all.backward()  # type: ignore[no-untyped-call]
        model.reducer._rebuild_buckets()
        model.zero_grad()

    def begin_epoch(self) -> None:
        """Wrap the model again if it has frozen or unfrozen parameters."""
        trained = [name for name, each in self._module.named_parameters() if each.requires_grad]
        if trained != self._trained and self.model is not None:
            self._trained, self.model = trained, self._wrapped()

    def collect(self, *, last: bool) -> None:
        """Before a batch's forward pass: say whether it is the window's last, whose backward pass reaches the ranks."""
        if self.model.require_backward_grad_sync is not last:  # to set an attribute of a module takes long
            self.model.require_backward_grad_sync = last

    def weigh(self, samples: int, loss: Tensor) -> Tensor:
        """Before the last backward pass: tell the others how many samples this rank's gradient is of.

        Returns: the loss to differentiate, of the same value.
        """
        numbers = self._told(samples)
        if self._carrying is None:
            self._sums = parallel.Summing(numbers).sums
            return loss
        self._sums = self._carrying.sums
        return self._carrying.load(loss, numbers)

    def _told(self, samples: int) -> list[int]:
        self._samples = 0
        due = self._leads and self.clock()
        # Two numbers for the samples: one that travels among gradients is exact up to 2**24.
        return [*divmod(samples, _DIGIT), int(due), *self.stop.counts()]

    def samples(self) -> int:
        """Return the number of samples of this update, in all ranks together. Waits until it is known."""
        if self._sums is not None:
            high, low, due, *stops = self._sums()
            self._sums, self._samples, self.due = None, max(high * _DIGIT + low, 1), due > 0
            self.stop.take(stops)
        return self._samples

    def scale(self) -> float:
        """After the last backward pass: return the factor that makes its gradient the mean over all samples."""
        return self._divisor / self.samples()

    def reduce(self, gradients: list[Tensor], samples: int, unit: float) -> None:
        """Average gradients over the ranks in place, weighted by their samples, after a backward pass of a task's own.

        Every rank has to give gradients of the same parameters.
        samples: how many samples this rank's gradient is of. unit: the number that it was divided by.
        """
        self._sums = parallel.Summing(self._told(samples)).sums
        torch._foreach_mul_(gradients, unit / self.samples())
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for each in gradients:
            kinds.setdefault(each.dtype, []).append(each)
        for same in kinds.values():
            flat = torch.cat([each.flatten() for each in same])
            dist.all_reduce(flat)
            for each, part in zip(same, torch.split(flat, [each.numel() for each in same])):
                each.copy_(part.view_as(each))

    def end_update(self) -> None:
        """After the optimizers have stepped: agree on requests to stop, and give every rank the buffers of rank 0."""
        if not self._samples:  # an update of a task's own, without a step of an optimizer
            self._sums = parallel.Summing(self._told(0)).sums
            self.samples()
        self._samples = 0
        if buffers := [each for module in self._buffered for each in module._buffers.values() if each is not None]:
            dist._broadcast_coalesced(dist.group.WORLD, buffers, BROADCAST, 0)  # type: ignore[attr-defined, arg-type]


class _Carrying(nn.Module):
    """A model beside a parameter whose gradient is a few numbers, which a backward pass averages over the ranks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self._ranks = model, parallel.count()
        self.numbers = nn.Parameter(torch.zeros(3 + len(_NUMBERS)))

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the model."""
        return self.model(*arguments, **keywords)

    def load(self, loss: Tensor, numbers: list[int]) -> Tensor:
        """Return a loss of the same value whose backward pass takes the numbers along."""
        self.numbers.grad = None
        values = torch.tensor(numbers, dtype=torch.float32)
        return _Carry.apply(loss, self.numbers, values)  # type: ignore[no-any-return, no-untyped-call]

    def sums(self) -> list[int]:
        """Return the sums of the numbers over the ranks, after the backward pass."""
        assert self.numbers.grad is not None
        return [round(each * self._ranks) for each in self.numbers.grad.tolist()]


class _Carry(torch.autograd.Function):
    """Pass a loss through, and give a parameter chosen numbers as its gradient."""

    @staticmethod
    def forward(context: Any, loss: Tensor, carrier: Tensor, numbers: Tensor) -> Tensor:
        context.numbers = numbers
        return loss.view_as(loss)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0], context.numbers, None


def total(sums: Mapping[str, Tensor], samples: int) -> tuple[dict[str, Tensor], int]:
    """Add up sums, and numbers of samples, over all ranks, in the order of the ranks. Waits for the device."""
    if parallel.count() == 1:
        return dict(sums), samples
    return added_up(gather({"sums": dict(sums), "samples": samples}))


def agreed(values: Any) -> Any:
    """Return the values that rank 0 has, on every rank."""
    return values if parallel.count() == 1 else gather({"values": values})[0]["values"]


def added_up(ranks: list[Any]) -> tuple[dict[str, Tensor], int]:
    """Add up the `sums` and the `samples` of each rank, in the order of the ranks."""
    found: dict[str, Tensor] = {}
    for each in ranks:
        for name, value in each["sums"].items():
            found[name] = found[name] + value if name in found else value
    return found, sum(each["samples"] for each in ranks)


def gather(tree: Mapping[str, Any]) -> list[Any]:
    """Give every rank the tree of every rank, by rank. A tree is what `checkpoint.split` takes."""
    return [unpack(each) for each in parallel.exchange(pack(tree))]


def pack(tree: Mapping[str, Any]) -> bytes:
    """Turn a tree into the bytes of a safetensors file, with all that is no tensor in its metadata."""
    tensors, values = checkpoint.split(tree)
    plan = checkpoint.Plan(tensors, {"values": json.dumps(values)})
    return b"".join(plan.chunks())


def unpack(data: bytes) -> Any:
    """Turn the bytes that `pack` made into a tree again."""
    memory = bytearray(data)
    header = checkpoint.read_header(memory, name="a rank's message")
    tensors = checkpoint.read_tensors(memory, header, name="a rank's message")
    return checkpoint.join(tensors, json.loads(header.metadata["values"]))
