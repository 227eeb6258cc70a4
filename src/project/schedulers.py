"""Learning rate schedules that torch does not have."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from savepoint.errors import ConfigError


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to `min_factor` times the optimizer's learning rate.

    With W warm-up steps of T in all, update t = 0, 1, 2, … runs at lr * factor(t):

        factor(t) = (t + 1) / (W + 1)                                                        for t < W
        factor(t) = min_factor + (1 - min_factor) * (1 + cos(pi * (t - W) / (T - W))) / 2    for W <= t < T
        factor(t) = min_factor                                                               for T <= t

    Already the first update moves, and update W is the first at the full rate.
    A closed form of `last_epoch`, so resuming needs no more than that number.

    total_steps: T, the calls of `step()` in the whole training.
    warmup: W if at least 1; below 1, the fraction of T.
    Sources: Goyal et al. 2017, section 2.2 (warm-up); Loshchilov & Hutter 2017, equation 5 (cosine, no restart).
    Raises: ConfigError if the warm-up is not shorter than the training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        warmup: float = 0.05,
        min_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
        self.min_factor = min_factor
        if not 0 <= self.warmup_steps < total_steps:
            raise ConfigError(
                f"scheduler.warmup={warmup}: {self.warmup_steps} warm-up steps do not fit into {total_steps} in all. "
                "Give fewer steps, or a fraction between 0 and 1."
            )
        super().__init__(optimizer, last_epoch)  # last, since it already asks for the first rate

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at update `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * progress)) / 2

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor(self.last_epoch)
        return [base_lr * factor for base_lr in self.base_lrs]


def inverse_sqrt(step: int, *, warmup: int) -> float:
    """A factor for LambdaLR: up to 1 in `warmup` steps, then down with the inverse square root of the step.

    Source: Vaswani et al. 2017, section 5.3, with 1 as the highest.

    >>> inverse_sqrt(0, warmup=4), inverse_sqrt(3, warmup=4), inverse_sqrt(15, warmup=4)
    (0.25, 1.0, 0.5)
    """
    if warmup < 1:
        raise ConfigError(f"scheduler.lr_lambda.warmup={warmup}: must be at least 1.")
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def inverse_time(step: int, *, half_life: float) -> float:
    """A factor for MultiplicativeLR: all of them up to step t multiplied give 1 / (1 + t / half_life).

    >>> inverse_time(1, half_life=1) * inverse_time(2, half_life=1)
    0.3333333333333333
    """
    return (half_life + step - 1) / (half_life + step)
