"""A multilayer perceptron, for inputs of any shape."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Module):
    """Blocks of linear, batch norm (optional), ReLU and dropout, then a linear head.

    in_features: numbers in one sample, all its dimensions multiplied.
    hidden: the width of each block; an empty list gives a linear model.
    dropout: the fraction of each block's outputs zeroed in training.

    >>> import torch
    >>> Mlp(in_features=64, hidden=[128, 32], out_features=10)(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        *,
        in_features: int = 64,
        hidden: Sequence[int] = (256,),
        out_features: int = 10,
        dropout: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        widths = [in_features, *hidden]
        self.hidden = nn.Sequential(*(block(a, b, dropout=dropout, batch_norm=batch_norm) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (batch, ...), flattened. Returns: logits (batch, out_features), unnormalised.

        Raises: ValueError for what is no number, or another count of them.
        """
        flat = inputs.flatten(1)
        if not flat.is_floating_point():
            raise ValueError(f"model=mlp: inputs are numbers, and here tokens ({flat.dtype}). Add model=transformer.")
        if flat.shape[1] != self.in_features:
            raise ValueError(
                f"model.in_features={self.in_features}: a sample here has {flat.shape[1]} numbers. "
                f"Add model.in_features={flat.shape[1]}."
            )
        logits: Tensor = self.head(self.hidden(flat))
        return logits


def block(in_features: int, out_features: int, *, dropout: float, batch_norm: bool) -> nn.Sequential:
    """One hidden layer. Named parts, so that a checkpoint reads `hidden.0.linear.weight` whatever is switched on."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(in_features, out_features))
    if batch_norm:
        parts["norm"] = nn.BatchNorm1d(out_features)
    parts["activation"] = nn.ReLU()
    parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)
