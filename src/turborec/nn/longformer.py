"""A Transformer over texts: each token sees those near it and the first one, and the first sees all (Longformer).

Letters: B texts, T tokens of all of them together, L tokens of the longest, D width, H heads, E width of a head, W tokens seen
on either side, N blocks of 2 W places.
Texts are packed: their tokens lie one after another, without padding, wherever each token is treated by itself.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turborec.contract import read_whole
from turborec.nn.attention import FeedForward, Shape, attend, require_heads
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context, Linear

FIRST_POSITION = 2
"""The position of a text's first token: RoBERTa's tables count on from the number of the padding token, which is 1."""

DENSE = 256
"""Longest texts whose tokens are compared with all others and the far ones hidden; of longer ones only those near are."""


@dataclass(frozen=True)
class TextShape:
    """How large an encoder is, and what its tables have rows for."""

    vocabulary: int
    positions: int  # rows of the table of positions, FIRST_POSITION unused ones among them
    types: int  # of tokens
    item_positions: int  # places of an item in a history
    width: int
    layers: int
    heads: int
    hidden: int
    window: int  # tokens that are seen, half of them on either side
    dropout: float
    norm_eps: float = 1e-5
    norm: Literal["post", "pre"] = "post"
    every_state: bool = False  # whether states of other tokens than the first are ever wanted of the last block
    pooling: Literal["first", "mean"] = "first"  # what stands for a text: the state of its first token, or the mean of all


@dataclass(frozen=True)
class Tokens:
    """Texts, packed: one row of tokens after the other, the first token of each being the one that stands for it."""

    ids: Tensor  # int64 [T]
    types: Tensor  # int64 [T]
    item_positions: Tensor  # int64 [T]
    lengths: Tensor  # int64 [B], one at least
    longest: int  # L: the greatest of the lengths, known without asking a device
    items: Tensor | None = None  # int64 [T]: whose token it is, 0 of a text's first; for who has something to add of items

    def to(self, device: torch.device) -> "Tokens":
        """The same texts on a device."""
        ids, types, item_positions, lengths = (
            part.to(device) for part in (self.ids, self.types, self.item_positions, self.lengths)
        )
        items = None if self.items is None else self.items.to(device)
        return Tokens(ids, types, item_positions, lengths, self.longest, items)

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins: int64 [B]."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def rows(self) -> Tensor:
        """Which text each token is of: int64 [T]."""
        return torch.arange(len(self.lengths), device=self.ids.device).repeat_interleave(
            self.lengths, output_size=len(self.ids)
        )

    @cached_property
    def places(self) -> Tensor:
        """Where in its text each token is: int64 [T]."""
        return torch.arange(len(self.ids), device=self.ids.device) - self.starts[self.rows]

    @cached_property
    def real(self) -> Tensor:
        """Which places of a rectangle the texts fill: bool [B, L]."""
        return torch.arange(self.longest, device=self.ids.device) < self.lengths[:, None]

    def of_each(self, context: Context) -> Context:
        """The context of every token."""
        return context.of(self.rows, self.places)

    def of_first(self, context: Context) -> Context:
        """The context of the first tokens."""
        return context.of(self.rows[self.starts], self.places[self.starts])

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...], zero where there is no token."""
        wide = packed.new_zeros(len(self.lengths) * self.longest, *packed.shape[1:])
        return wide.index_copy(0, self._flat, packed).view(len(self.lengths), self.longest, *packed.shape[1:])

    def gathered(self, wide: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]."""
        return wide.flatten(0, 1).index_select(0, self._flat)

    @cached_property
    def _flat(self) -> Tensor:
        return self.rows * self.longest + self.places


class WindowAttention(nn.Module):
    """Attention to W tokens on either side and to the first; the first, by projections of its own, to all.

    Beltagy, Peters and Cohan, Longformer, 2020, arXiv 2004.05150, section 3, with one global token. There is one product for
    that token where they have one for every token: keys enter it only through W_k' q, and values only as W_v of their weighted
    mean, which is the same numbers for a sixty-fourth of the work at Longformer's width.
    """

    def __init__(self, width: int, heads: int, window: int, alone: bool = False) -> None:
        """`alone`: nobody asks for other tokens than the first, so there are no projections of theirs."""
        super().__init__()
        require_heads(width, heads)
        if window % 2:
            raise ValueError(f"expected an even window, got {window}")
        self.heads, self.near = heads, window // 2
        self.alone = alone
        if not alone:
            self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.q_first, self.o = Linear(width, width), Linear(width, width)
        # No projections that an adapter could be put on: their weights are read, and nothing is projected by them.
        self.k_first, self.v_first = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tokens, context: Context, alone: bool = False) -> Tensor:
        """[T, D] -> [T, D], or of the first tokens `alone` [B, D]."""
        first = self._first(x, tokens, tokens.of_first(context))
        if self.alone or alone:
            only: Tensor = self.o(first, tokens.of_first(context))
            return only
        here = tokens.of_each(context)
        q, k, v = (tokens.spread(part(x, here)) for part in (self.q, self.k, self.v))
        mixed = self._dense(q, k, v, tokens) if tokens.longest <= max(DENSE, 2 * self.near) else self._banded(q, k, v, tokens)
        packed = tokens.gathered(mixed).index_copy(0, tokens.starts, first.to(mixed.dtype))
        projected: Tensor = self.o(packed, here)
        return projected

    def _first(self, x: Tensor, tokens: Tokens, context: Context) -> Tensor:
        """What the first tokens mix of all: [T, D] -> [B, D]."""
        rows, width = len(tokens.lengths), x.shape[1]
        each = width // self.heads
        asked = self.q_first(x[tokens.starts], context).view(rows, self.heads, each)
        # A key is W x + b, and q (W x + b) = (q W) x + q b, whose last part is the same for all keys: no softmax depends on b.
        wanted = torch.einsum("bhe,hed->bhd", asked, self.k_first.weight.view(self.heads, each, width).to(asked.dtype))
        wide = tokens.spread(x)
        scores = torch.einsum("bhd,bld->bhl", wanted, wide) / math.sqrt(each)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        shares = scores.masked_fill(~tokens.real[:, None], -math.inf).softmax(-1).to(wide.dtype)
        mean = torch.einsum("bhl,bld->bhd", shares, wide)
        valued = torch.einsum("bhd,hed->bhe", mean, self.v_first.weight.view(self.heads, each, width).to(mean.dtype))
        return valued.flatten(1) + self.v_first.bias.to(valued.dtype)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
        """All pairs of places, of which the far ones are hidden: [B, L, D] each -> [B, L, D]."""
        place = torch.arange(tokens.longest, device=q.device)
        near = ((place[:, None] - place).abs() <= self.near) | (place == 0)
        visible = near & tokens.real[:, None, None]
        mixed = attend(self._heads(q), self._heads(k), self._heads(v), visible)
        return mixed.transpose(1, 2).flatten(2)

    def _banded(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
        """Blocks of 2 W places, each beside the first token and the places that some of its own may see: as `_dense`."""
        rows, length, width = q.shape
        block = 2 * self.near
        number = -(-length // block)
        beyond = number * block - length
        each = width // self.heads
        asked = self._heads(F.pad(q, (0, 0, 0, beyond))).view(rows, self.heads, number, block, each).transpose(1, 2)

        def seen(part: Tensor) -> Tensor:
            """The first token, then those around each block: [B, L, D] -> [B N, H, 1 + 4W, E]."""
            padded = self._heads(F.pad(part, (0, 0, self.near, beyond + self.near)))
            blocks = padded.unfold(2, 2 * block, block).permute(0, 2, 1, 4, 3)
            first = self._heads(part[:, :1])[:, None].expand(rows, number, self.heads, 1, each)
            return torch.cat([first, blocks], dim=3).flatten(0, 1)

        place = torch.arange(block, device=q.device)
        other = torch.arange(2 * block, device=q.device) - self.near  # places of the others, counted from the block's first
        at = other + block * torch.arange(number, device=q.device)[:, None]  # [N, 4W], from the text's first
        near = (place[:, None] - other).abs() <= self.near
        # The first token is there already, as the one that all see.
        there = (at > 0) & (at < tokens.lengths[:, None, None])  # [B, N, 4W]
        visible = F.pad(near & there[:, :, None], (1, 0), value=True).flatten(0, 1)[:, None]
        mixed = attend(asked.flatten(0, 1), seen(k), seen(v), visible)  # [B N, H, 2W, E]
        return mixed.transpose(1, 2).reshape(rows, number * block, width)[:, :length]

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TextBlock(nn.Module):
    """Attention, then a feed-forward layer, each around a residual: norm(x + f(x)) as BERT has it (post), or x + f(norm(x))."""

    def __init__(self, shape: TextShape, site: int, alone: bool) -> None:
        """`site` is the block's place in its model; it takes the dropout sites 4 * site .. 4 * site + 2."""
        super().__init__()
        self.alone, self.norm = alone, shape.norm
        inner = Shape(shape.width, shape.heads, shape.hidden, dropout=0.0)
        self.attention = WindowAttention(shape.width, shape.heads, shape.window, alone)
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attention_dropout = Dropout(shape.dropout, 4 * site)
        self.feed_forward = FeedForward(inner, 4 * site + 1)
        self.feed_forward_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.feed_forward_dropout = Dropout(shape.dropout, 4 * site + 2)

    def forward(self, x: Tensor, tokens: Tokens, context: Context, alone: bool = False) -> Tensor:
        """[T, D] -> [T, D], or of the first tokens `alone` [B, D], who need no others of the last block."""
        pre, alone = self.norm == "pre", self.alone or alone
        mixed = self.attention(self.attention_norm(x) if pre else x, tokens, context, alone)
        here = tokens.of_first(context) if alone else tokens.of_each(context)
        x = x[tokens.starts] if alone else x
        x = x + single(self.attention_dropout, mixed, here)
        x = x if pre else self.attention_norm(x)
        changed = self.feed_forward(self.feed_forward_norm(x) if pre else x, here)
        x = x + single(self.feed_forward_dropout, changed, here)
        return x if pre else self.feed_forward_norm(x)


class TextEncoder(nn.Module):
    """Texts of items, or of histories of items, as the last states of their first tokens.

    Tokens are words of a vocabulary, each with its position, its type and the place of its item in the history, as in
    RecFormer (Li et al., KDD 2023, arXiv 2305.13731, section 2.2.2). Deliberate deviation: no dropout on attention weights.
    """

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = read_whole(nn.Embedding(shape.positions, shape.width))
        self.types = read_whole(nn.Embedding(shape.types, shape.width))
        self.item_positions = read_whole(nn.Embedding(shape.item_positions, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.dropout = Dropout(shape.dropout, site=4 * shape.layers)
        last = shape.layers - 1
        self.blocks = nn.ModuleList(
            TextBlock(shape, site, alone=site == last and not shape.every_state and shape.pooling == "first")
            for site in range(shape.layers)
        )
        self.last_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps) if shape.norm == "pre" else nn.Identity()
        for module in self.modules():  # as BERT is drawn: Devlin et al. 2019, arXiv 1810.04805, their code
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tokens, context: Context, added: Tensor | None = None) -> Tensor:
        """The state of each text: [B, D]. What is `added` [T, D] is a part of the tokens' embeddings beside their words."""
        if self.shape.pooling == "first":
            return self._encoded(tokens, context, added, alone=True)
        states = self._encoded(tokens, context, added, alone=False)
        total = states.new_zeros(len(tokens.lengths), states.shape[1], dtype=torch.float32)
        return total.index_add(0, tokens.rows, states.float()) / tokens.lengths[:, None]

    def states(self, tokens: Tokens, context: Context, added: Tensor | None = None) -> Tensor:
        """The state of every token: [T, D]. A ValueError where the shape has no need of them."""
        if self.shape.pooling == "first" and not self.shape.every_state:
            raise ValueError("expected a shape with every_state: of the last block there is no attention but the first token's")
        return self._encoded(tokens, context, added, alone=False)

    def _encoded(self, tokens: Tokens, context: Context, added: Tensor | None, alone: bool) -> Tensor:
        x = self._embedded(tokens, context, added)
        for block in self.blocks[:-1]:
            x = block(x, tokens, context)
        x = self.blocks[-1](x, tokens, context, alone)
        normed: Tensor = self.last_norm(x)
        return normed

    def _embedded(self, tokens: Tokens, context: Context, added: Tensor | None) -> Tensor:
        if tokens.longest + FIRST_POSITION > self.positions.num_embeddings:
            most = self.positions.num_embeddings - FIRST_POSITION
            raise ValueError(f"expected texts of at most {most} tokens, got one of {tokens.longest}")
        x = self.words(tokens.ids) + self.positions(tokens.places + FIRST_POSITION)
        x = x if added is None else x + added
        x = self.norm(x + self.types(tokens.types) + self.item_positions(tokens.item_positions))
        return single(self.dropout, x, tokens.of_each(context))


def single(dropout: Dropout, x: Tensor, here: Context) -> Tensor:
    """Dropout of single states [N, D], whose context says of which rows and at which places they are."""
    at = None if here.places is None else here.places[:, None]
    dropped: Tensor = dropout(x[:, None], here.keys, at)[:, 0]
    return dropped
