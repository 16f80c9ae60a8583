"""Multi-head self-attention with named q, k, v, o projections, and the Transformer block around it.

Letters: B rows, L positions, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context, Linear

Activation = Literal["gelu", "relu", "silu", "tanh", "sigmoid"]


KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What attention may be computed by on an accelerator."""


@dataclass(frozen=True)
class Shape:
    """What the blocks of a Transformer have in common."""

    width: int
    heads: int
    hidden: int  # width of the feed-forward layer
    dropout: float
    norm: Literal["pre", "post", "query"] = "pre"
    norm_eps: float = 1e-5
    activation: Activation = "gelu"


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Attention(nn.Module):
    """Scaled dot-product self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2), without weight dropout."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.causal = causal
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Context,
        visible: Tensor | None = None,
        at: Tensor | None = None,
        asked: Tensor | None = None,
        blanks: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D], or [B, M, D] where `at` [B, M] names the places whose states are wanted.

        `visible` is bool [B, 1, L or M or 1, L], True where a key may be seen. A causal model needs none for padding on the
        right: no real position looks there. Queries are made of `asked`, like x, where that is given. `blanks` [B] says how
        many states of zero come before each row, seen from all its places: their keys are one and the same, so it stands
        for all of them, with their number.
        """
        asked, causal = x if asked is None else asked, self.causal
        if at is not None:
            asked = pick(asked, at)
        if causal and (at is not None or blanks is not None):
            places = torch.arange(x.shape[1], device=x.device)
            seen = places <= (places[None] if at is None else at)[:, None, :, None]
            visible, causal = seen if visible is None else seen & visible, False
        q, k, v = self._heads(self.q(asked, context)), self._heads(self.k(x, context)), self._heads(self.v(x, context))
        if blanks is not None:
            nothing = x.new_zeros(len(x), 1, x.shape[2])
            k = torch.cat([self._heads(self.k(nothing, context)), k], dim=2)
            v = torch.cat([self._heads(self.v(nothing, context)), v], dim=2)
            visible = _weighted(blanks, visible, q, k)
        mixed = attend(q, k, v, visible, causal)
        projected: Tensor = self.o(mixed.transpose(1, 2).flatten(2), context)
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def require_heads(width: int, heads: int) -> None:
    """A ValueError where heads do not divide the width among them."""
    if width % heads:
        raise ValueError(f"width {width} must be divisible by heads {heads}")


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool = False) -> Tensor:
    """Values in the shares of a softmax of scaled products with keys: queries [..., H, M, E] -> [..., H, M, E].

    `visible` [..., M, L] is True where a key may be seen, or what is added to the products.
    """
    if q.device.type == "cpu":
        # The CPU's bf16 attention kernel is slower than its fp32 one; see docs/log.md.
        q, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
    # Not cuDNN's, which plans anew, for ten milliseconds and more, with each shape that a batch brings (docs/log.md).
    with sdpa_kernel(KERNELS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)


def _weighted(blanks: Tensor, visible: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """What is added to the products of queries and keys, of which the first stands for `blanks` [B]: [B, 1, M, 1 + L]."""
    rows, _, asked, _ = q.shape
    seen = torch.ones(rows, 1, asked, k.shape[2] - 1, dtype=torch.bool, device=q.device) if visible is None else visible
    seen = seen.expand(rows, 1, asked, -1)
    added = torch.zeros(seen.shape, dtype=torch.float32, device=q.device).masked_fill(~seen, -torch.inf)
    return torch.cat([blanks.float().log()[:, None, None, None].expand(rows, 1, asked, 1), added], dim=3)


class FeedForward(nn.Module):
    """Two projections with an activation between them, at every position alone."""

    def __init__(self, shape: Shape, site: int) -> None:
        super().__init__()
        self.up = Linear(shape.width, shape.hidden)
        self.down = Linear(shape.hidden, shape.width)
        self.dropout = Dropout(shape.dropout, site)
        self.activation = _ACTIVATIONS[shape.activation]

    def forward(self, x: Tensor, context: Context, at: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; `at` as in `Dropout`."""
        raised = self.activation(self.up(x, context))
        lowered: Tensor = self.down(self.dropout(raised, context.keys, at), context)
        return lowered


class Block(nn.Module):
    """A Transformer block: attention, then the feed-forward layer, each around a residual.

    Pre-norm: x + f(norm(x)). Post-norm, as the first Transformers: norm(x + f(x)). Query-norm, as the first SASRec
    (Kang and McAuley 2018, their code): attention asks with norm(x) and sees x itself, and both residuals start from what
    was normalised.
    """

    def __init__(self, shape: Shape, causal: bool, site: int) -> None:
        """`site` is the block's place in its model; it takes the dropout sites 4 * site .. 4 * site + 2."""
        super().__init__()
        self.norm = shape.norm
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention = Attention(shape.width, shape.heads, causal)
        self.attention_dropout = Dropout(shape.dropout, 4 * site)
        self.feed_forward_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.feed_forward = FeedForward(shape, 4 * site + 1)
        self.feed_forward_dropout = Dropout(shape.dropout, 4 * site + 2)

    def forward(
        self,
        x: Tensor,
        context: Context,
        visible: Tensor | None = None,
        at: Tensor | None = None,
        blanks: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D], or [B, M, D] where `at` names the places that are wanted; the others as in `Attention`.

        The last block of a model is asked for nothing but what the loss or the scores are made of.
        """
        asked = x if self.norm == "post" else self.attention_norm(x)
        mixed = self.attention(asked if self.norm == "pre" else x, context, visible, at, asked, blanks)
        x = asked if self.norm == "query" else x
        x = x if at is None else pick(x, at)
        x = x + self.attention_dropout(mixed, context.keys, at)
        if self.norm != "pre":
            x = self.attention_norm(x) if self.norm == "post" else self.feed_forward_norm(x)
        changed = self.feed_forward(self.feed_forward_norm(x) if self.norm == "pre" else x, context, at)
        x = x + self.feed_forward_dropout(changed, context.keys, at)
        return self.feed_forward_norm(x) if self.norm == "post" else x


def pick(x: Tensor, at: Tensor) -> Tensor:
    """The states at these places of their rows: [B, L, D], int64 [B, M] -> [B, M, D]."""
    rows, length, width = x.shape
    flat = (at + length * torch.arange(rows, device=x.device)[:, None]).flatten()
    return x.flatten(0, 1).index_select(0, flat).view(rows, -1, width)  # unlike gather, adds whole rows going backward
