"""A small convolutional network, for images of any size."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Cnn(nn.Module):
    """Stages of two convolutions each, halving the image between stages; then the mean over pixels and a linear head.

    in_channels: 1 for grey images, 3 for colour.
    channels: the width of each stage.
    dropout: the fraction of the head's inputs zeroed in training.

    >>> import torch
    >>> Cnn(channels=[16, 32])(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        out_features: int = 10,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = [in_channels, *channels]
        self.stages = nn.ModuleList(stage(a, b) for a, b in pairwise(widths))
        self.halve = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (batch, height, width) or (batch, in_channels, height, width).

        Returns: logits (batch, out_features), unnormalised.
        Raises: ValueError for what is no image, or has another number of channels.
        """
        if not inputs.is_floating_point() or inputs.dim() not in (3, 4):
            raise ValueError(
                f"model=cnn: a sample is an image, and here it is {inputs.dtype} of shape {list(inputs.shape[1:])}. "
                "For a table add model=mlp, for text model=transformer."
            )
        pixels = inputs.unsqueeze(1) if inputs.dim() == 3 else inputs
        if pixels.shape[1] != self.in_channels:
            raise ValueError(
                f"model.in_channels={self.in_channels}: an image here has {pixels.shape[1]}. "
                f"Add model.in_channels={pixels.shape[1]}."
            )
        for index, stage_ in enumerate(self.stages):
            pixels = stage_(pixels if index == 0 else self.halve(pixels))
        logits: Tensor = self.head(self.dropout(pixels.mean(dim=(2, 3))))
        return logits


def stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, (batch, in_channels, h, w) to (batch, out_channels, h, w)."""
    return nn.Sequential(
        OrderedDict(
            # Batch norm subtracts the mean, so a bias before it would never matter.
            conv1=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(out_channels),
            activation1=nn.ReLU(),
            conv2=nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(out_channels),
            activation2=nn.ReLU(),
        )
    )
