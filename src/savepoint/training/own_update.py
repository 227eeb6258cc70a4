"""Let a task make its own updates: `task.update(step, batch)` decides what each optimizer steps on, and when.

This serves GANs, distillation, adversarial and reinforcement learning, and whatever else is not one loss and one step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from savepoint import data, parallel
from savepoint.errors import ConfigError
from savepoint.training.optimization import Optimization
from savepoint.training.state import Parts, TrainState
from savepoint.training.task import Outcome


def own_update(state: TrainState, parts: Parts, window: list[Any]) -> int:
    """Let the task make one update from a window of batches. Returns: the number of samples in the window."""
    step, samples = Step(state, parts, batches=len(window)), 0
    for number, batch in enumerate(window):
        share = parts.share(state.batch + number)
        outcome = step.take(parts.task, batch, share)
        if share:
            outcome.add_to(state.sums)
            samples += outcome.samples
    state.grad_norms |= step.grad_norms
    return samples


def clip(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale gradients down to a norm of at most `limit`; None keeps them. Returns: the norm before, a 0-dim tensor."""
    given = [parameter for parameter in parameters if parameter.grad is not None]
    if limit is None:
        return parallel.whole(nn.utils.get_total_norm([each.grad for each in given if each.grad is not None]))
    return parallel.whole(nn.utils.clip_grad_norm_(given, limit))


class Step:
    """One update, as `task.update` sees it: the model, the optimizers by name, and `minimize`.

    model: the whole model. With `trainer.compile` it is compiled part by part, each direct child alone.
    number: the count of updates completed before this one. epoch: the count of epochs completed. device: the batch's.
    """

    def __init__(self, state: TrainState, parts: Parts, *, batches: int) -> None:
        self.model: Any = parts.forward
        self.number, self.epoch, self.device = state.step, state.epoch, parts.device
        self._parts, self._left, self._counted = parts, batches, 1
        self._accumulates = parts.settings.trainer.accumulate > 1
        wants_norm = parts.wants_norm(state)
        self._shares = {name: _Share(one, parts, wants_norm=wants_norm) for name, one in state.optimizers.items()}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """The optimizers by name, to look at. The only one of a config without names is under ""."""
        return {name: share.one.optimizer for name, share in self._shares.items()}

    @property
    def grad_norms(self) -> dict[str, Tensor]:
        """The norms of the last gradients, where they were computed, by the names of the optimizers."""
        return {name: share.norm for name, share in self._shares.items() if share.norm is not None}

    def minimize(
        self,
        loss: Tensor,
        optimizer: str = "",
        *,
        samples: int | None = None,
        retain_graph: bool = False,
        clip_grad_norm: float | None = None,
    ) -> None:
        """Make one step of an optimizer on a loss. Only the parameters of that optimizer get a gradient.

        This takes care of the precision of `amp`, of scaling in float16, of clipping, and of `trainer.accumulate`: with
        that, the gradient is added up over the window's batches, and the optimizer steps once, in the last batch.

        loss: 0-dim, with its graph. optimizer: its name in the config; left out where there is only one.
        samples: how many samples the loss is a mean over. Needed with trainer.accumulate, to weight the batches.
        retain_graph: keep the graph, for another `minimize` of a loss that shares a part of it.
        clip_grad_norm: largest norm of this gradient; `trainer.clip_grad_norm` if left out.
        Raises: ConfigError for a name that the config does not have, a loss without a graph, a missing `samples`.
        """
        share = self._share(loss, optimizer, samples)
        mine = self._counted
        share.differentiate(loss, samples or mine if mine else 0, retain_graph=retain_graph)
        share.limit = clip_grad_norm or self._parts.settings.trainer.clip_grad_norm
        if self._left <= 1:
            share.step()

    def take(self, task: Any, batch: Any, counted: int = 1) -> Outcome:
        """Let the task work on one batch. At the window's end every optimizer has stepped.

        counted: how many samples of the batch count, where several ranks divide it; 0 for a placeholder.
        """
        self._counted = counted
        batch = data.to_device(batch, self.device)
        with self._parts.autocasting():
            outcome = task.update(self, batch)
        if not isinstance(outcome, Outcome):
            kind = type(outcome).__name__
            raise ConfigError(f"task: update of {type(task).__name__} returns a {kind}, and has to return an Outcome.")
        self._left -= 1
        for share in self._shares.values():
            share.minimized = False
            if self._left == 0 and share.pending:  # it was minimized in an earlier batch of the window, not in this one
                share.step()
        return outcome

    def _share(self, loss: Tensor, optimizer: str, samples: int | None) -> "_Share":
        share = self._shares.get(optimizer)
        if share is None:
            names = ", ".join(name or 'one without a name, which is ""' for name in self._shares)
            raise ConfigError(f"task: minimize(…, {optimizer!r}): the config has no such optimizer. It has: {names}.")
        if not loss.requires_grad or loss.dim():
            what = "has no graph" if loss.dim() == 0 else f"has the shape {list(loss.shape)}"
            raise ConfigError(f"task: the loss that minimize is given for optimizer {optimizer!r} {what}.")
        if self._accumulates:
            if samples is None:
                raise ConfigError(
                    "task: with trainer.accumulate, minimize needs to know how many samples the loss is a mean over: "
                    "minimize(loss, …, samples=…)."
                )
            if share.minimized:
                raise ConfigError(
                    f"task: optimizer {optimizer!r} steps more than once in an update, so batches cannot be "
                    "accumulated for it. Set trainer.accumulate=1."
                )
            share.minimized = True
        return share


class _Share:
    """An optimizer's share of an update: its gradient so far, and the number of samples in that gradient."""

    def __init__(self, one: Optimization, parts: Parts, *, wants_norm: bool) -> None:
        self.one, self._wants_norm = one, wants_norm
        self.limit: float | None = None
        self.norm: Tensor | None = None  # of the last gradient that it stepped on
        self.minimized = False  # in this batch
        self.samples = self._unit = 0
        self._kind, self._team = parts.device.type, parts.team

    @property
    def pending(self) -> bool:
        """Whether there is a gradient that the optimizer has not stepped on."""
        return self._unit > 0

    def differentiate(self, loss: Tensor, samples: int, *, retain_graph: bool) -> None:
        self._unit = self._unit or samples or 1
        self.samples += samples
        # Weighted relative to the first batch. The division by the window's size follows in `step`.
        weighted = loss if samples == self._unit else loss * (samples / self._unit)
        parameters = [parameter for parameter in self._parameters() if parameter.requires_grad]
        with torch.autocast(self._kind, enabled=False):
            self.one.scaler.scale(weighted).backward(  # type: ignore[no-untyped-call]
                inputs=parameters, retain_graph=retain_graph
            )

    def step(self) -> None:
        one, gradients = self.one, [each.grad for each in self._parameters() if each.grad is not None]
        if not gradients:
            raise ConfigError("task: a loss that minimize is given depends on no parameter of its optimizer.")
        if self._team is not None:
            self._team.reduce(gradients, self.samples, self._unit)
        elif self.samples != self._unit:
            torch._foreach_mul_(gradients, self._unit / self.samples)
        if self.limit is not None or self._wants_norm:
            one.scaler.unscale_(one.optimizer)
            self.norm = clip(self._parameters(), self.limit)
        one.scaler.step(one.optimizer)
        one.scaler.update()
        one.optimizer.zero_grad()
        # Autocast keeps low-precision copies of weights, and what follows in this update needs the new weights.
        torch.clear_autocast_cache()
        self.samples = self._unit = 0

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.one.optimizer.param_groups for parameter in group["params"]]
