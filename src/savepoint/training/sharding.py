"""Cut a model among the ranks with FSDP2, for `trainer.parallel=fsdp`: each rank keeps some rows of every parameter.

A unit is a part of the model whose parameters are made whole together, just before they are needed.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from savepoint import parallel
from savepoint.config import FsdpSettings, Settings
from savepoint.errors import ConfigError, short_list
from savepoint.training.optimizers import sparse
from savepoint.training.team import Team

FSDP = "trainer.parallel=fsdp"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # they are never called


def wanted(settings: Settings) -> bool:
    """Whether several ranks train a model that is cut among them."""
    return settings.trainer.parallel == "fsdp" and parallel.count() > 1


def words(settings: Settings) -> str | None:
    """Say how the model is cut, for the record; None if each process holds all of it."""
    if not wanted(settings):
        return None
    changed = [
        f"{each.name}={getattr(settings.fsdp, each.name)}"
        for each in dataclasses.fields(FsdpSettings)
        if getattr(settings.fsdp, each.name) != each.default
    ]
    return ", ".join(["fsdp", *changed])


def class_of(part: Any) -> type:
    """Return the class that was written for a part of a run. FSDP gives a module that it cuts another class."""
    kind = type(part)
    return kind.__mro__[2] if issubclass(kind, FSDPModule) else kind


def check(model: nn.Module, task: Any, settings: Settings, device: torch.device) -> None:
    """Check that a model can be cut. Raises: ConfigError with one line for each reason why it cannot."""
    named, faults = dict(model.named_parameters()), []
    if hasattr(task, "update"):
        faults.append(
            f"{FSDP}: {type(task).__name__} makes its updates itself, which only works with whole parameters. "
            "Use trainer.parallel=ddp."
        )
    for words, names in (
        ("without a dimension cannot be cut (give them the shape [1])", _names(named, lambda p: p.dim() == 0)),
        ("that are not contiguous cannot be cut", _names(named, lambda p: not p.is_contiguous())),
        ("with sparse gradients cannot be trained (use trainer.parallel=ddp)", sparse(model)),
    ):
        if names:
            faults.append(f"{FSDP}: parameters {words}: {short_list(names, most=6)}.")
    if settings.fsdp.param_dtype == "bfloat16" and settings.amp.dtype == "float16":
        faults.append("fsdp.param_dtype=bfloat16: amp computes in float16. Leave one of the two out.")
    if settings.tracker.register_as is not None:
        faults.append(
            f"{FSDP}: each rank saves its part of the weights, so tracker.register_as={settings.tracker.register_as} "
            "has no file to register. Leave it out; python -m savepoint export makes that file."
        )
    norms = [name for name, each in model.named_modules() if isinstance(each, _NormBase) and each.track_running_stats]
    if norms and settings.fsdp.checkpoint_activations:
        faults.append(
            f"fsdp.checkpoint_activations=true: the running statistics of {short_list(norms, most=6)} would be updated "
            "twice, because torch computes units again. Set it to false."
        )
    if settings.fsdp.cpu_offload and device.type == "cpu":
        faults.append("fsdp.cpu_offload=true: the model is in host memory already. Set it to false.")
    if faults:
        raise ConfigError("\n".join(faults))


def _names(named: dict[str, nn.Parameter], faulty: Any) -> list[str]:
    return [name for name, parameter in named.items() if faulty(parameter)]


def cut(model: nn.Module, settings: Settings, device: torch.device) -> None:
    """Cut a model in place: this rank keeps its rows of every parameter, and all of every buffer.

    The model needs no averaging of gradients any more: its backward pass adds them up over the ranks.
    Raises: ConfigError if `fsdp.classes` names no class of the model, or divides tied parameters among units.
    """
    chosen = settings.fsdp
    dtypes = {None: None, "bfloat16": torch.bfloat16, "float32": torch.float32}
    computed, reduced = dtypes[chosen.param_dtype], dtypes[chosen.reduce_dtype]
    shard = functools.partial(
        fully_shard,
        mesh=init_device_mesh(device.type, (parallel.count(),)),
        offload_policy=CPUOffloadPolicy() if chosen.cpu_offload else OffloadPolicy(),
        reshard_after_forward=chosen.reshard_after_forward,
    )
    parts = units(model, settings)
    norms = [] if computed is None else [each for each in model.modules() if _keeps_statistics(each)]
    for norm in norms:
        shard(norm, mp_policy=MixedPrecisionPolicy(None, reduced))
    parts = [each for each in parts if each not in norms]
    for part in parts:
        if chosen.checkpoint_activations:
            part.forward = functools.partial(checkpoint, part.forward, use_reentrant=False)
        shard(part, mp_policy=MixedPrecisionPolicy(computed, reduced))
    # The loss is computed from what the whole model returns.
    returned = None if computed is None else torch.float32
    shard(model, mp_policy=MixedPrecisionPolicy(computed, reduced, output_dtype=returned))
    for unit in [*norms, *parts, model]:
        # Sums in place of means: the ranks weight their gradients themselves.
        unit.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        unit.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo does not know how to divide


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm with running statistics, which stay in float32. torch then wants such weights, too."""
    return isinstance(module, _NormBase) and module.affine


def units(model: nn.Module, settings: Settings) -> list[nn.Module]:
    """Return the parts of a model that become units of their own, inner ones first. What is left is one more unit.

    Raises: ConfigError if `fsdp.classes` names no class of the model, or divides tied parameters among units.
    """
    classes = settings.fsdp.classes
    wanted_classes = {classes} if isinstance(classes, str) else set(classes or ())
    inside = [module for module in model.modules() if module is not model]
    there = sorted({type(module).__name__ for module in inside if next(module.parameters(), None) is not None})
    if unknown := sorted(wanted_classes - set(there)):
        raise ConfigError(f"fsdp.classes: the model has no {', '.join(unknown)}. It has: {', '.join(there)}.")
    places = Counter(id(each) for each in _each_place(model))
    found: list[nn.Module] = []
    taken: set[int] = set()
    for module in reversed(inside):  # `modules` has each module before those inside it
        mine = [each for each in module.parameters() if id(each) not in taken]
        if not mine or isinstance(module, _CONTAINERS):
            continue
        within = Counter(id(each) for each in _each_place(module))
        tied = [each for each in mine if places[id(each)] > within[id(each)]]
        if classes is not None:
            chosen = type(module).__name__ in wanted_classes
            if chosen and tied:
                names = [name for name, each in model.named_parameters() if any(each is one for one in tied)]
                raise ConfigError(
                    f"fsdp.classes: {type(module).__name__} holds {short_list(names)}, which another part of the model "
                    "shares. Name a class that holds both, or leave it out."
                )
        else:
            # A module without children may only lend its weight to others, and then it is never called.
            large = sum(each.numel() for each in mine) >= settings.fsdp.min_parameters
            chosen = large and not tied and next(module.children(), None) is not None
        if chosen:
            found.append(module)
            taken.update(map(id, mine))
    return found


def _each_place(module: nn.Module) -> list[nn.Parameter]:
    return [each for _, each in module.named_parameters(remove_duplicate=False)]


class ShardedTeam(Team):
    """The other ranks, where each holds a part of the model.

    Every call of the model involves all ranks, in evaluation too.
    """

    together = True

    def __init__(self, model: nn.Module, forward: Any, *, batch_size: int) -> None:
        """Take a model that was cut. batch_size: samples of a whole batch, as the config has it."""
        super().__init__(model, None, batch_size=batch_size, every_parameter=True)
        self.model, self._begun = forward, False
        self._divisor = self.unit

    def begin_epoch(self) -> None:
        """Let FSDP look at a model again that has frozen or unfrozen parameters.

        It notes at its first forward pass in which precision a unit's gradients are added up, and nothing for a unit
        that is frozen then. A run that is resumed later would note something.
        """
        trained = [name for name, each in self._module.named_parameters() if each.requires_grad]
        if self._begun and trained != self._trained:
            for unit in self._module.modules():
                if isinstance(unit, FSDPModule):
                    unit.unshard()
                    unit.reshard()
        self._begun, self._trained = True, trained

    def collect(self, *, last: bool) -> None:
        """Do nothing: every backward pass reaches the ranks, so none has to keep a whole gradient."""
