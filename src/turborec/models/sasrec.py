"""SASRec: a causal Transformer over item ids that predicts the next item at every position.

Letters: B rows, L positions, D width, V items, N predicted positions.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, read_whole, rows_of
from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._next_item import NextItem, Repeats
from turborec.nn.attention import Activation, Block, Shape, require_heads
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context
from turborec.nn.modality import Modalities, part_of
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

    Deliberate deviations: pre-norm blocks with a final norm, GELU, positions counted from the end of the window (so that
    padding and bucketing cannot move them), no dropout on attention weights, and the loss of the recipe's choice: the
    paper's binary cross-entropy with one negative is the known cause of its low published numbers (arXiv 2309.07602).
    The other settings of norms, activation and positions are those of other libraries, whose weights can be imported.
    """

    kind: Literal["sasrec"] = "sasrec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch
    stated: ClassVar[tuple[str, ...]] = ("repeat_bias",)

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    hidden: int = Field(256, ge=1, description="width of the feed-forward layer")
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on the embeddings and on every residual branch")
    norm: Literal["pre", "post", "query"] = Field(
        "pre", description="where blocks normalise; query: only what attention asks with, as the authors' code does"
    )
    norm_eps: float = Field(1e-5, gt=0.0, description="what norms add to a variance")
    embedding_norm: bool = Field(False, description="normalise what the first block sees")
    activation: Activation = "gelu"
    scale_items: bool = Field(False, description="multiply the items' vectors by the root of the width before positions come")
    count_from: Literal["end", "start"] = Field("end", description="where in the window positions are counted from")
    blanks: Literal["hidden", "seen"] = Field(
        "hidden", description="seen: places of the longest window that no event fills are seen, as states of zero"
    )
    table_std: float = Field(0.05, gt=0.0, description="standard deviation of the initial item and position tables")
    repeat_bias: Repeats = False
    features: tuple[str, ...] = Field(
        (), description="tables of features that an item's vector is made of: whitened, and by a linear map each"
    )
    ids: bool = Field(
        True, description="a vector of its own for each item; false: its features alone, which new items have too"
    )
    loss: CatalogueLoss = CrossEntropy()

    @model_validator(mode="after")
    def _items_have_vectors(self) -> "Config":
        if not self.ids and not self.features:
            raise ValueError("ids: false needs features, which the items' vectors are then made of")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Config":
        require_heads(self.width, self.heads)
        return self

    def build(self, spec: DataSpec) -> "SASRec":
        """The model for data of this shape, with freshly drawn weights."""
        return SASRec(self, spec)


class SASRec(Model):
    """The module; one table of the items' vectors serves both ends: their own, or what is read off features, or the sum."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(spec.items + 1, config.width, padding_idx=0) if config.ids else None
        self.features = Modalities(spec.features, config.features, whitened=True) if config.features else None
        widths = {} if self.features is None else {part_of(name): one.width for name, one in self.features.each()}
        self.maps = nn.ModuleDict({name: nn.Linear(width, config.width, bias=False) for name, width in widths.items()})
        self.positions = read_whole(nn.Embedding(spec.max_length, config.width))
        self.dropout = Dropout(config.dropout, site=4 * config.layers)
        eps = config.norm_eps
        self.embedding_norm = nn.LayerNorm(config.width, eps=eps) if config.embedding_norm else nn.Identity()
        shape = Shape(config.width, config.heads, config.hidden, config.dropout, config.norm, eps, config.activation)
        self.blocks = nn.ModuleList(Block(shape, causal=True, site=site) for site in range(config.layers))
        self.norm = nn.Identity() if config.norm == "post" else nn.LayerNorm(config.width, eps=eps)
        self.head = NextItem(config.loss, config.repeat_bias, spec)
        self._initialise()

    def _initialise(self) -> None:
        """Tables normal with their own deviation, other matrices with 0.02, biases zero, norms one, the padding row zero.

        With tables as small as the rest, twice as many steps may go by before the order of events is read (docs/log.md).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.table_std if isinstance(module, nn.Embedding) else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            if self.items is not None:
                self.items.weight[0].zero_()
        for module in self.maps.modules():  # rows of features have a mean square norm of 1: what is made of them begins as
            if isinstance(module, nn.Linear):  # large as rows of a table
                nn.init.normal_(module.weight, std=self.config.table_std)

    @property
    def replays(self) -> bool:
        """Unless negatives are drawn, or there is a bias for what a history holds."""
        return self.head.criterion.exact and self.head.repeats is None

    def forward(self, batch: SequenceBatch) -> Loss:
        """The loss of predicting every target of the batch."""
        asked = self.asked(batch)
        table = self._table()
        states = self._encode(asked, table).flatten(0, 1).index_select(0, asked.where)
        return self.head.loss(states, table, asked)

    def asked(self, batch: SequenceBatch, again: bool = False) -> AskedBatch:
        """The batch with the places of its targets."""
        return self.head.asked(batch, again)

    def scorer(self) -> DotProduct:
        """Scores by the state after the last event."""
        table = self._table()
        return self.head.scorer(lambda batch: self._encode(batch, table, batch.last()[:, None])[:, 0], table)

    def _table(self) -> Tensor:
        """The items' vectors: [V + 1, D]. What an item lacks adds nothing."""
        parts: list[Tensor] = [] if self.items is None else [self.items.weight]
        if self.features is not None:
            parts += [self.maps[part_of(name)](table.values) for name, table in self.features.each()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _encode(self, batch: SequenceBatch, table: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, L] -> [B, L, D], or [B, M, D] at the places `at` [B, M]; beyond a row's length they hold nothing of meaning."""
        context, config = Context(keys=batch.keys), self.config
        place = torch.arange(batch.items.shape[1], device=batch.items.device)
        if config.count_from == "end":
            place = batch.lengths[:, None] - 1 - place
        x = self.items(batch.items) if self.items is not None and self.features is None else rows_of(table, batch.items)
        x = x * config.width**0.5 if config.scale_items else x
        # Beyond a row's end a place may be none of the table's: nobody looks there.
        x = x + self.positions(place.clamp(0, self.positions.num_embeddings - 1))
        x = self.dropout(self.embedding_norm(x), context.keys)
        blanks = self.positions.num_embeddings - batch.lengths if config.blanks == "seen" else None
        for block in self.blocks[:-1]:
            x = block(x, context, blanks=blanks)
        x = self.blocks[-1](x, context, at=at, blanks=blanks)
        encoded: Tensor = self.norm(x)
        return encoded
