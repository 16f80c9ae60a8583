import math

import pytest
import torch

from turborec.nn.attention import Attention, Block, Shape, pick
from turborec.nn.linear import Context, Linear

CONTEXT = Context(keys=torch.tensor([1, 2]))


def plain_attention(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Softmax attention written out head by head and query by query, in float64."""
    x = x.double()
    q, k, v = (x @ p.weight.double().T + p.bias.double() for p in (layer.q, layer.k, layer.v))
    out = torch.zeros_like(x)
    size = x.shape[2] // layer.heads
    for row in range(x.shape[0]):
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            for at in range(x.shape[1]):
                seen = at + 1 if layer.causal else x.shape[1]
                weights = torch.softmax(k[row, :seen, part] @ q[row, at, part] / math.sqrt(size), 0)
                out[row, at, part] = weights @ v[row, :seen, part]
    return out @ layer.o.weight.double().T + layer.o.bias.double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_the_formula(causal, heads):
    layer, x = Attention(8, heads, causal), torch.randn(2, 5, 8)
    assert torch.allclose(layer(x, CONTEXT).double(), plain_attention(layer, x), atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="divisible"):
        Attention(8, 3, causal=True)


def test_a_causal_block_sees_no_future():
    block, x = Block(Shape(8, 2, 16, 0.3), causal=True, site=0), torch.randn(2, 6, 8)
    changed = torch.cat([x[:, :4], torch.randn(2, 2, 8)], dim=1)
    assert torch.equal(block(x, CONTEXT)[:, :4], block(changed, CONTEXT)[:, :4])


def test_every_projection_is_called_with_the_context(monkeypatch):
    seen = []
    original = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x, context: (seen.append(context), original(self, x, context))[1])
    Block(Shape(8, 2, 16, 0.0), causal=True, site=0)(torch.randn(2, 3, 8), CONTEXT)
    assert seen == [CONTEXT] * 6


def test_a_block_is_the_same_function_of_the_same_batch():
    block, x = Block(Shape(8, 2, 16, 0.5), causal=True, site=1), torch.randn(2, 3, 8)
    assert torch.equal(block(x, CONTEXT), block(x, CONTEXT))


@pytest.mark.parametrize("norm", ["pre", "post", "query"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_block_asked_for_some_places_gives_what_it_gives_for_all(causal, norm):
    block, x = Block(Shape(8, 2, 16, 0.3, norm), causal, site=0).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    at, visible = torch.tensor([[5, 0, 3], [2, 2, 4]]), torch.tensor([[True] * 6, [True] * 5 + [False]])[:, None, None]
    x.requires_grad_()
    whole = pick(block(x, CONTEXT, None if causal else visible), at)
    some = block(x, CONTEXT, None if causal else visible, at)
    assert torch.allclose(some, whole, atol=1e-12)
    weights = torch.randn_like(whole)
    inputs = [x, *block.parameters()]
    for got, expected in zip(
        torch.autograd.grad((some * weights).sum(), inputs), torch.autograd.grad((whole * weights).sum(), inputs), strict=True
    ):
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("at", [None, torch.tensor([[1, 3], [0, 2]])])
def test_blanks_are_states_of_zero_before_the_row(causal, at):
    layer, x, asked, blanks = Attention(8, 2, causal), torch.randn(2, 4, 8), torch.randn(2, 4, 8), [3, 0]
    got = layer(x, CONTEXT, at=at, asked=asked, blanks=torch.tensor(blanks))
    for row, count in enumerate(blanks):
        longer = [torch.cat([torch.zeros(count, 8), part[row]])[None] for part in (x, asked)]
        places = None if at is None else at[row : row + 1] + count
        expected = layer(longer[0], Context(keys=CONTEXT.keys[:1]), at=places, asked=longer[1])[0]
        assert torch.allclose(got[row], expected if at is not None else expected[count:], atol=1e-6)


def test_query_norm_is_that_of_the_first_sasrec():
    block, x = Block(Shape(8, 2, 16, 0.0, "query", 1e-3, "relu"), causal=True, site=0), torch.randn(2, 5, 8)
    for norm in (block.attention_norm, block.feed_forward_norm):
        torch.nn.init.normal_(norm.weight)
    asked = torch.nn.functional.layer_norm(x, (8,), block.attention_norm.weight, block.attention_norm.bias, 1e-3)
    mixed = asked + block.attention(x, CONTEXT, asked=asked)
    mixed = torch.nn.functional.layer_norm(mixed, (8,), block.feed_forward_norm.weight, block.feed_forward_norm.bias, 1e-3)
    up, down = block.feed_forward.up, block.feed_forward.down
    expected = mixed + torch.relu(mixed @ up.weight.T + up.bias) @ down.weight.T + down.bias
    assert torch.allclose(block(x, CONTEXT), expected, atol=1e-5)
