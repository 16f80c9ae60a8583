"""The encoder of texts against definitions of its own in float64, and against Hugging Face's Longformer."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from turborec.nn.linear import Context
from turborec.nn.longformer import TextEncoder, TextShape, Tokens, WindowAttention

SHAPE = TextShape(
    vocabulary=50, positions=700, types=4, item_positions=9, width=16, layers=2, heads=2, hidden=24, window=8, dropout=0.0
)
NOTHING = Context(keys=None)


def tokens_of(lengths, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)

    def drawn(most):
        return torch.randint(0, most, (sum(lengths),), generator=generator)

    return Tokens(drawn(shape.vocabulary), drawn(shape.types), drawn(shape.item_positions), torch.tensor(lengths), max(lengths))


def encoder_of(shape=SHAPE, seed=0, std=0.3):
    torch.manual_seed(seed)
    model = TextEncoder(shape).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def attention_by_definition(layer, x, window):
    """One text [L, D], token by token."""
    length, width = x.shape
    each = width // layer.heads
    mixed = torch.zeros_like(x)
    q, k, v = (F.linear(x, part.weight, part.bias) for part in (layer.q, layer.k, layer.v))
    qf, kf, vf = (F.linear(x, part.weight, part.bias) for part in (layer.q_first, layer.k_first, layer.v_first))
    for i in range(length):
        near = list(range(length)) if i == 0 else [j for j in range(length) if j == 0 or abs(i - j) <= window // 2]
        asked, keys, values = (qf, kf, vf) if i == 0 else (q, k, v)
        for head in range(layer.heads):
            part = slice(head * each, (head + 1) * each)
            scores = torch.stack([asked[i, part] @ keys[j, part] / math.sqrt(each) for j in near])
            mixed[i, part] = sum(share * values[j, part] for share, j in zip(scores.softmax(0), near, strict=True))
    return F.linear(mixed, layer.o.weight, layer.o.bias)


@pytest.mark.parametrize("longest", [1, 5, 9, 30])
@pytest.mark.parametrize("dense", [256, 0])
def test_each_token_sees_its_window_and_the_first_and_the_first_sees_all(longest, dense, monkeypatch):
    monkeypatch.setattr("turborec.nn.longformer.DENSE", dense)
    torch.manual_seed(0)
    layer = WindowAttention(16, 2, window=4).double()
    last = WindowAttention(16, 2, window=4, alone=True).double()
    last.load_state_dict({name: value for name, value in layer.state_dict().items() if name.split(".")[0] not in "qkv"})
    lengths = [longest, 1, max(1, longest - 3), max(1, longest // 2)]
    tokens = tokens_of(lengths)
    x = torch.randn(sum(lengths), 16, dtype=torch.float64)
    expected = torch.cat([attention_by_definition(layer, text, 4) for text in x.split(lengths)])
    torch.testing.assert_close(layer(x, tokens, NOTHING), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last(x, tokens, NOTHING), expected[tokens.starts], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dense", [256, 0])
def test_a_text_does_not_depend_on_the_others_of_its_batch(dense, monkeypatch):
    monkeypatch.setattr("turborec.nn.longformer.DENSE", dense)
    model, lengths = encoder_of(), [40, 3, 17, 1]
    tokens = tokens_of(lengths)
    together = model(tokens, NOTHING)
    assert together.shape == (4, 16)
    start = 0
    for row, length in enumerate(lengths):
        here = slice(start, start + length)
        alone = Tokens(
            tokens.ids[here], tokens.types[here], tokens.item_positions[here], torch.tensor([length]), longest=length
        )
        torch.testing.assert_close(model(alone, NOTHING)[0], together[row], rtol=0, atol=1e-12)
        start += length


def test_the_first_state_alone_is_that_of_all_states_and_everything_is_learnt():
    whole, model, tokens = encoder_of(replace(SHAPE, every_state=True)), encoder_of(), tokens_of([12, 5, 1])
    model.load_state_dict({name: value for name, value in whole.state_dict().items() if name in model.state_dict()})
    first, states = model(tokens, NOTHING), whole.states(tokens, NOTHING)
    torch.testing.assert_close(whole(tokens, NOTHING), first, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="every_state"):
        model.states(tokens, NOTHING)
    torch.testing.assert_close(states[tokens.starts], first, rtol=0, atol=1e-12)
    for one, found in ((model, first), (whole, states)):
        (found * torch.randn_like(found)).sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in one.parameters())


def test_dropout_goes_by_the_text_and_not_by_its_batch():
    model = encoder_of(replace(SHAPE, dropout=0.25)).train()
    tokens, keys = tokens_of([12, 7]), torch.tensor([5, 9])
    together = model(tokens, Context(keys))
    alone = Tokens(tokens.ids[12:], tokens.types[12:], tokens.item_positions[12:], torch.tensor([7]), longest=7)
    torch.testing.assert_close(model(alone, Context(keys[1:]))[0], together[1], rtol=0, atol=1e-12)
    assert not torch.allclose(model(alone, Context(keys[:1]))[0], together[1])


def test_texts_that_are_too_long_are_refused():
    model = encoder_of()
    with pytest.raises(ValueError, match="at most 698 tokens, got one of 699"):
        model(tokens_of([699]), NOTHING)
    with pytest.raises(ValueError, match="an even window"):
        WindowAttention(16, 2, window=5)
