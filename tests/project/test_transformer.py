"""src/project/models/transformer.py: no token sees a later one; embedding and head are one matrix, resumed or not."""

import pytest
import torch
from torch import nn

from project.models.transformer import Transformer
from project.tasks.language_model import LanguageModel


def tokens(*shape: int, vocabulary: int = 256) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def test_it_gives_logits_for_every_token() -> None:
    model = Transformer(vocabulary=50, context=12, width=24, layers=1, heads=3)
    for length in (1, 7, 12):
        assert model(tokens(5, length, vocabulary=50)).shape == (5, length, 50)


def test_no_token_sees_a_later_one() -> None:
    torch.manual_seed(0)
    model = Transformer(context=16).eval()
    first = tokens(3, 16)
    for place in range(1, 16):
        second = first.clone()
        second[:, place:] = (second[:, place:] + 1) % 256
        before, after = model(first), model(second)
        assert torch.equal(before[:, :place], after[:, :place]), place
        assert not torch.equal(before[:, place], after[:, place])


def test_every_token_sees_all_before_it_and_where_they_are() -> None:
    torch.manual_seed(0)
    model = Transformer(context=8, layers=1).eval()
    first = tokens(1, 8)
    for place in range(8):
        second = first.clone()
        second[0, place] = (second[0, place] + 1) % 256
        assert not torch.equal(model(first)[0, -1], model(second)[0, -1]), place
    swapped = first[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert not torch.allclose(model(first)[0, -1], model(swapped)[0, -1], atol=1e-6)


def test_one_layer_equals_attention_written_out() -> None:
    torch.manual_seed(0)
    attention = Transformer(width=8, heads=2).blocks[0].attention.eval()
    states = torch.randn(2, 5, 8)
    query, key, value = attention.qkv(states).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 4**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    expected = attention.out(torch.cat(heads, dim=-1))
    assert (attention(states) - expected).abs().max() < 1e-6


def test_embedding_and_head_are_one_matrix_trained_once() -> None:
    model = Transformer()
    assert model.head.weight is model.token_embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    assert {"head.weight", "token_embedding.weight"} <= set(model.state_dict())


def test_every_parameter_gets_a_gradient() -> None:
    model = Transformer(context=16)
    LanguageModel()(model, (tokens(4, 16), tokens(4, 16))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_first_weights_are_small_and_those_that_add_up_smaller_with_depth() -> None:
    torch.manual_seed(0)
    model = Transformer(width=128, layers=8)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith("out.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name))), name


def test_first_loss_is_that_of_a_guess_at_random() -> None:
    torch.manual_seed(0)
    rows = tokens(8, 65)
    outcome = LanguageModel()(Transformer().eval(), (rows[:, :-1], rows[:, 1:]))
    assert LanguageModel().compute(outcome.sums, outcome.samples)["perplexity"] == pytest.approx(256, rel=0.05)


@pytest.mark.parametrize("silenced", [nn.Dropout.forward, None])
def test_dropout_acts_in_training_only(monkeypatch: pytest.MonkeyPatch, silenced: object) -> None:
    """silenced: with every layer of dropout but that of the attention weights switched off, which is no layer."""
    if silenced:
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, states: states)
    model, row = Transformer(dropout=0.5), tokens(2, 16)
    assert not torch.equal(model(row), model(row))
    model.eval()
    assert torch.equal(model(row), model(row))


def test_names_are_stable_because_checkpoints_hold_them() -> None:
    parts = ("norm1", "attention.qkv", "attention.out", "norm2", "feed_forward.hidden", "feed_forward.out")
    block = [f"blocks.0.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    ends = ["token_embedding.weight", "position_embedding.weight"], ["norm.weight", "norm.bias", "head.weight"]
    assert list(Transformer(layers=1).state_dict()) == [*ends[0], *block, *ends[1]]


def test_what_it_cannot_read_is_named() -> None:
    with pytest.raises(ValueError, match=r"^model\.width=30: must be a multiple of model\.heads=4\.$"):
        Transformer(width=30)
    with pytest.raises(ValueError, match=r"^model\.context=8: a row here has 9 tokens\. Add model\.context=9\.$"):
        Transformer(context=8)(tokens(1, 9))
    for images in (torch.rand(2, 8, 8), torch.rand(2, 8), tokens(2, 8, 8)):
        with pytest.raises(
            ValueError, match=r"^model=transformer: a sample is a row of tokens, and here it is torch\."
        ):
            Transformer()(images)
