"""Language modelling: at every place of a text, which token comes next."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from project.tasks.sums import total
from savepoint import Outcome
from savepoint.errors import ConfigError

WRITTEN = 240  # tokens of a sample


class LanguageModel:
    """Cross entropy as the loss; perplexity and bits per token as metrics.

    A batch is (tokens, targets), both (batch, length) int64: targets are the tokens, each one place earlier.
    The model returns logits (batch, length, vocabulary), unnormalised. What is counted as a sample is a token.

    label_smoothing: the share of each target spread over the vocabulary, 0..1; the metrics are without it.
        Source: Szegedy et al. 2016, section 7.
    """

    metrics: tuple[str, ...] = ("perplexity", "bits_per_token")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be between 0 and 1")
        self.label_smoothing = label_smoothing

    def __call__(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Outcome:
        tokens, targets = batch[:2]
        if tokens.is_floating_point() or tokens.dim() != 2 or targets.shape != tokens.shape:
            raise ConfigError(
                "task=language_model: a sample is a row of tokens, and here it is "
                f"{tokens.dtype} of shape {list(tokens.shape[1:])}. Add data=text."
            )
        logits = model(tokens)
        if logits.shape[:-1] != targets.shape:
            raise ConfigError(
                f"task=language_model: the model gives {list(logits.shape[1:])} for each row of {tokens.shape[1]} "
                "tokens, and not logits for each of them. Add model=transformer."
            )
        rows, expected = logits.flatten(0, 1), targets.flatten()
        nats = cross_entropy(rows, expected, reduction="none")
        smoothed = cross_entropy(rows, expected, label_smoothing=self.label_smoothing) if self.label_smoothing else None
        loss = nats.mean() if smoothed is None else smoothed
        return Outcome(loss=loss, samples=targets.numel(), sums={"nats": total(nats)})

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        """The metrics of an epoch. perplexity: the vocabulary's size for a guess at random, 1 at best."""
        nats = sums["nats"] / samples
        return {"perplexity": nats.exp().item(), "bits_per_token": nats.item() / math.log(2)}

    def figures(self, model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, str]:
        """Let the model go on from the beginning of the first validation row. Tokens below 256 are shown as bytes."""
        row = next(iter(batches))[0][:1]
        context, tokens = row.shape[1], row[0, : max(1, row.shape[1] // 2)].tolist()
        begun = len(tokens)
        for _ in range(WRITTEN):
            logits = model(torch.tensor([tokens[-context:]], device=row.device))[0, -1]
            # On the CPU: drawing from many classes is not deterministic on every GPU.
            tokens.append(int(torch.multinomial(logits.float().cpu().softmax(dim=0), 1)))
        return {"sample": f"{_text(tokens[:begun])} ▸ {_text(tokens[begun:])}\n"}


def _text(tokens: list[int]) -> str:
    if max(tokens) < 256:
        return bytes(tokens).decode(errors="replace")
    return " ".join(str(token) for token in tokens)
