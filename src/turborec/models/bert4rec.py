"""BERT4Rec: a Transformer that reads both sides of a masked event and says which item it was.

Letters: B rows, L positions of a batch, D width, V items, N masked positions. A window of L events and the one that follows
them are a sequence of L + 1 positions.
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, Term, read_whole
from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._gate import Gate
from turborec.nn.attention import Attention, Block, Shape, require_heads
from turborec.nn.keyed import Dropout, uniform
from turborec.nn.linear import Context, Linear
from turborec.recipe import Config as BaseConfig

MASK = 0
"""The item in place of a masked one: the row of the table that padding, which nobody looks at, would leave unused."""


class Config(BaseConfig):
    """BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations (Sun et al., CIKM 2019, arXiv 1904.06690).

    Deliberate deviations: positions are counted from the end of the sequence, so that padding cannot move them; the first
    event of a history is never masked, since no model predicts it; masks are drawn anew in every epoch instead of ten times
    in advance; no dropout on attention weights; pre-norm blocks (`norm: post` is the paper's) and Xavier's deviations for the
    linear maps instead of 0.02, because without either many times the steps go by until the order of events is read.
    `head: false`, `tied: false` and sinusoidal positions are for the variants that other studies trained.
    """

    kind: Literal["bert4rec"] = "bert4rec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    hidden: int = Field(256, ge=1, description="width of the feed-forward layer")
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on the embeddings and on every residual branch")
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = Field(1e-5, gt=0.0, description="what norms add to a variance")
    embedding_norm: bool = True
    final_norm: bool = Field(True, description="normalise what pre-norm blocks leave")
    positions: Literal["learned", "sinusoidal"] = "learned"
    count_from: Literal["end", "start"] = Field("end", description="where in the sequence positions are counted from")
    skip_first: bool = Field(False, description="ranking leaves out the first event that is shown, as RecBole's does")
    head: bool = Field(True, description="a dense layer, GELU and a norm before the logits")
    tied: bool = Field(True, description="one item table for both ends")
    maps: Literal["xavier", "identity"] = Field(
        "xavier", description="initial linear maps; identity: attention's values and output are, so a mask begins as a mean"
    )
    mask_share: float = Field(0.2, gt=0.0, lt=1.0, description="chance of an event to be masked")
    last_share: float = Field(0.1, ge=0.0, le=1.0, description="share of the rows in which the last event alone is masked")
    loss: CatalogueLoss = CrossEntropy()
    loss_on: Literal["masked", "every_event"] = Field(
        "masked", description="every_event: also of events that are seen, as a public study trained it: mostly to copy"
    )

    @model_validator(mode="after")
    def _widths_fit(self) -> "Config":
        require_heads(self.width, self.heads)
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even width, got {self.width}")
        return self

    def build(self, spec: DataSpec) -> "BERT4Rec":
        """The model for data of this shape, with freshly drawn weights."""
        return BERT4Rec(self, spec)


class BERT4Rec(Model):
    """The module. Logits exist at masked positions only."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        width, length, eps = config.width, spec.max_length + 1, config.norm_eps
        self.items = nn.Embedding(spec.items + 1, width)  # row 0: MASK
        self.length = length
        learned = config.positions == "learned"
        self.positions = read_whole(nn.Embedding(length, width)) if learned else Sinusoids(length, width)
        self.embedding_norm = nn.LayerNorm(width, eps=eps) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout, site=4 * config.layers)
        shape = Shape(width, config.heads, config.hidden, config.dropout, config.norm, eps)
        self.blocks = nn.ModuleList(Block(shape, causal=False, site=site) for site in range(config.layers))
        self.norm = nn.LayerNorm(width, eps=eps) if config.norm == "pre" and config.final_norm else nn.Identity()
        self.dense = Linear(width, width) if config.head else None
        self.dense_norm = nn.LayerNorm(width, eps=eps) if config.head else nn.Identity()
        self.output = None if config.tied else nn.Embedding(spec.items + 1, width)  # row 0: unused
        self.bias = nn.Parameter(torch.zeros(spec.items + 1))
        self.criterion = config.loss.build(spec.item_counts())
        self.gate: Gate | None = None  # of instance-wise adapters
        self._initialise()

    def _initialise(self) -> None:
        """Tables normal with deviation 0.02, cut off at two deviations; biases zero, norms one; linear maps as the config says.

        xavier: with 0.02, which suits matrices of 768 rows, every block is nearly the identity at a width of 64, and it takes
        several times the steps until the order of events is read (docs/log.md). identity: drawn value and output maps must
        first learn to speak of items in the terms of their table; as the identity, beside small other maps, they let a mask
        begin as the mean of the items that it sees.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
                if self.config.maps == "xavier":
                    nn.init.xavier_normal_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention) and self.config.maps == "identity":
                nn.init.eye_(module.v.weight)
                nn.init.eye_(module.o.weight)

    @property
    def replays(self) -> bool:
        """Unless negatives are drawn, or another run's model is asked for gates."""
        return self.criterion.exact and (self.gate is None or self.gate.other is None)

    def forward(self, batch: SequenceBatch) -> Loss:
        """The loss of naming every masked event of the batch, or every event."""
        asked = self.asked(batch)
        assert asked.hidden is not None
        shown, lengths = sequence(asked).masked_fill(asked.hidden, MASK), asked.lengths + 1
        context = self._context(asked, shown, lengths)
        states = self._encode(shown, lengths, context, asked.at)
        chosen = states.flatten(0, 1).index_select(0, asked.where)
        chosen = self._projected(chosen, context.of(asked.where // states.shape[1], asked.where % states.shape[1]))
        total = self.criterion(chosen, self._output(), asked.wanted, asked.key, self.bias)
        return Loss({"masked_item": Term(total, asked.count)})

    def asked(self, batch: SequenceBatch, again: bool = False) -> AskedBatch:
        """The batch with its masks, and the places of the events that have to be named."""
        if isinstance(batch, AskedBatch):
            return batch
        events, masked = sequence(batch), self.masked(batch)
        asked = masked if self.config.loss_on == "masked" else events != 0
        most, size = self._usual(*batch.items.shape) if again else (1, 0)
        at, real = places(asked, most)
        where = real.flatten().nonzero().squeeze(1)
        return replace(AskedBatch.of(batch, where, events[asked], size), at=at, hidden=masked)

    def _usual(self, rows: int, length: int) -> tuple[int, int]:
        """How many events are asked for of one of so many rows, and of all together, with few exceptions."""
        if self.config.loss_on == "every_event":
            return length + 1, rows * (length + 1)
        share = self.config.mask_share
        mean, deviation = length * share + (1 - share) ** length, math.sqrt(length * share * (1 - share))
        return math.ceil(mean + 4 * deviation), math.ceil(rows * mean + 3 * math.sqrt(rows) * deviation)

    def counts(self, batch: SequenceBatch) -> dict[str, int]:  # type: ignore[override]
        """How many events are masked, or have to be named all the same."""
        return {"masked_item": self.asked(batch).count}

    def scorer(self) -> DotProduct:
        """Scores by the state of a mask after the last event."""
        return DotProduct(self._next_state, self._output(), self.bias)

    def masked(self, batch: SequenceBatch) -> Tensor:
        """Which positions of the sequences are masked: of a row with targets at least one, by its key: bool [B, L + 1]."""
        config, length = self.config, batch.items.shape[1] + 1
        site = 4 * config.layers + 1
        may = F.pad(batch.targets != 0, (1, 0))
        draw = uniform(batch.keys, site, length).masked_fill(~may, 1.0)
        chosen = draw < config.mask_share
        chosen |= (draw == draw.amin(1, keepdim=True)) & ~chosen.any(1, keepdim=True)
        last = torch.arange(length, device=batch.items.device) == batch.lengths[:, None]
        last_only = uniform(batch.keys, site + 1, 1) < config.last_share
        return torch.where(last_only & (last & may).any(1, keepdim=True), last, chosen) & may

    def _next_state(self, batch: SequenceBatch) -> Tensor:
        """[B, D]."""
        # Padding holds the number of the mask, so one more column puts a mask behind every history.
        events, shown = F.pad(batch.items, (0, 1)), batch.lengths
        if self.config.skip_first:
            events, shown = events[:, 1:], (shown - 1).clamp(min=0)
        context = self._context(batch, events, shown + 1)
        states = self._encode(events, shown + 1, context, shown[:, None])
        return self._projected(states[:, 0], context)

    def _context(self, batch: SequenceBatch, events: Tensor, lengths: Tensor) -> Context:
        """What travels with the states of these sequences [B, L + 1], whose masked events are 0."""
        if self.gate is None:
            return Context(batch.keys)
        frozen = Context(keys=None, adapted=False)
        return Context(batch.keys, self.gate(batch, events, lambda: self._encode(events, lengths, frozen)))

    def _encode(self, events: Tensor, lengths: Tensor, context: Context, at: Tensor | None = None) -> Tensor:
        """[B, L + 1] -> [B, L + 1, D], or [B, M, D]: the states at the places `at` [B, M]."""
        place = torch.arange(events.shape[1], device=events.device)
        counted = lengths[:, None] - 1 - place if self.config.count_from == "end" else place
        positions = self.positions(counted.clamp(0, self.length - 1))
        x = self.dropout(self.embedding_norm(self.items(events) + positions), context.keys)
        visible = (place < lengths[:, None])[:, None, None]
        for block in self.blocks[:-1]:
            x = block(x, context, visible)
        x = self.blocks[-1](x, context, visible, at)
        encoded: Tensor = self.norm(x)
        return encoded

    def _projected(self, states: Tensor, context: Context) -> Tensor:
        """[N, D] -> [N, D]."""
        if self.dense is None:
            return states
        projected: Tensor = self.dense_norm(F.gelu(self.dense(states, context)))
        return projected

    def _output(self) -> Tensor:
        """The table that states are compared with: [V + 1, D]."""
        return self.items.weight if self.output is None else self.output.weight


class Sinusoids(nn.Module):
    """Fixed positions (Vaswani et al. 2017, arXiv 1706.03762, section 3.5), nothing to learn."""

    table: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        rate = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(length)[:, None] * rate
        table = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, position: Tensor) -> Tensor:
        """[...] -> [..., D]."""
        return self.table[position]


def places(masked: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Where each row's masked events are, in order, and which of these places are real: int64 and bool [B, M].

    M is `least` where no row has more, and rows are as long.
    """
    count = masked.sum(1)
    most = max(1, int(count.max()))  # of no place the shapes of what follows could not be told
    most = min(masked.shape[1], max(least, most))
    at = (~masked).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
    return at, torch.arange(most, device=masked.device) < count[:, None]


def sequence(batch: SequenceBatch) -> Tensor:
    """Each row's events with the last target behind them: [B, L] -> [B, L + 1]."""
    following = batch.targets.gather(1, batch.last()[:, None])
    return F.pad(batch.items, (0, 1)).scatter(1, batch.lengths[:, None], following)
