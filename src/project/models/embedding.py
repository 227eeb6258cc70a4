"""A linear model of pixels as tokens, with sparse gradients."""

import torch
from torch import Tensor, nn


class PixelEmbedding(nn.Module):
    """Each pixel is rounded to one of `levels` values; place and value together look up one row of a table of logits.

    A batch touches few of the pixels * levels rows, so the table's gradient is sparse: only those rows are in it.

    pixels: numbers in one sample, all its dimensions multiplied; each between 0 and 1.
    sparse: false gives the same gradient as a dense tensor, which every optimizer takes.

    >>> PixelEmbedding(pixels=64, levels=17)(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    first_row: Tensor

    def __init__(self, *, pixels: int = 64, levels: int = 17, out_features: int = 10, sparse: bool = True) -> None:
        super().__init__()
        self.levels = levels
        self.table = nn.EmbeddingBag(pixels * levels, out_features, mode="sum", sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(out_features))
        # The logits add up one row for each pixel: with EmbeddingBag's own deviation of 1 they would start near 8.
        nn.init.normal_(self.table.weight, std=0.02)
        self.register_buffer("first_row", torch.arange(pixels) * levels, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: (batch, ...), flattened. Returns: logits (batch, out_features), unnormalised.

        Raises: ValueError if a sample has another count of numbers.
        """
        flat, pixels = inputs.flatten(1), len(self.first_row)
        if flat.shape[1] != pixels:
            raise ValueError(
                f"model.pixels={pixels}: a sample here has {flat.shape[1]} numbers. Add model.pixels={flat.shape[1]}."
            )
        values = (flat * (self.levels - 1)).round().long().clamp(0, self.levels - 1)
        logits: Tensor = self.table(self.first_row + values) + self.bias
        return logits
