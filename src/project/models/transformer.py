"""A small decoder-only transformer.

Sources: Vaswani et al. 2017 (attention, blocks); Radford et al. 2019, section 2.3 (norms before each part and at the
end, learned positions, first weights); Press & Wolf 2017 (one matrix for embedding and head).
"""

import math

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Transformer(nn.Module):
    """Embeddings of tokens and positions, blocks of attention and feed-forward, then a head that shares the embedding.

    vocabulary: how many tokens there are: 256 for bytes.
    context: the longest row of tokens.
    width: of each token's vector, a multiple of `heads`. layers: the number of blocks.
    dropout: the fraction zeroed in training: of the embeddings, the attention weights and the output of every part.

    >>> import torch
    >>> Transformer(context=16)(torch.zeros(5, 16, dtype=torch.int64)).shape
    torch.Size([5, 16, 256])
    """

    def __init__(
        self,
        *,
        vocabulary: int = 256,
        context: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"model.width={width}: must be a multiple of model.heads={heads}.")
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token_embedding.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Both parts of each block add to what passes through: so its deviation does not grow with the depth.
                adds = name.endswith("out.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if adds else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, length) int64. Returns: logits (batch, length, vocabulary), unnormalised.

        Raises: ValueError for what is no row of tokens, or longer than the context.
        """
        if tokens.is_floating_point() or tokens.dim() != 2:
            raise ValueError(
                "model=transformer: a sample is a row of tokens, and here it is "
                f"{tokens.dtype} of shape {list(tokens.shape[1:])}. Add task=language_model."
            )
        length, context = tokens.shape[1], self.position_embedding.num_embeddings
        if length > context:
            raise ValueError(f"model.context={context}: a row here has {length} tokens. Add model.context={length}.")
        states = self.dropout(self.token_embedding(tokens) + self.position_embedding.weight[:length])
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(self.norm(states))
        return logits


class Block(nn.Module):
    """What every token takes from those before it, then what it makes of that; each added to what came in."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout=dropout)

    def forward(self, states: Tensor) -> Tensor:
        """states: (batch, length, width). Returns: the same shape."""
        states = states + self.attention(self.norm1(states))
        after: Tensor = states + self.feed_forward(self.norm2(states))
        return after


class Attention(nn.Module):
    """Causal self-attention: no token sees a later one."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """states: (batch, length, width). Returns: the same shape."""
        # Each (batch, heads, length, width / heads).
        query, key, value = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        seen = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        mixed: Tensor = self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return mixed


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them. Source of the activation: Hendrycks & Gimpel 2016."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width)
        self.activation = nn.GELU()
        self.out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """states: (..., width). Returns: the same shape."""
        made: Tensor = self.dropout(self.out(self.activation(self.hidden(states))))
        return made
