"""FREEDOM: LightGCN on a graph that loses edges in every epoch, beside a frozen graph of items that are alike.

Letters: B rows, D width, U users, V items, n nodes, N distinct nodes of a batch, M modalities, K layers.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, read_whole
from turborec.data.batch import DataSpec, PairBatch
from turborec.losses import preference
from turborec.models._pairs import Pairs, graph_of, squares, vectors
from turborec.nn.graph import Both, distinct, symmetric
from turborec.nn.modality import Modalities, part_of, shares
from turborec.nn.neighbours import item_graph
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """FREEDOM (Zhou and Shen, MM 2023, arXiv 2211.06924).

    As in MMRec: the loss compares each user's vector with projected features too, and the features are trained. Edges are
    kept by 1 / sqrt(d_u d_i). Published `modality_weights` are .1 for images and .9 for texts. A pair is compared by a
    modality only where both of its items have it. Projections have no bias: it would be the same in both scores of a pair.
    """

    kind: Literal["freedom"] = "freedom"
    batch: ClassVar[type[PairBatch]] = PairBatch
    stated: ClassVar[tuple[str, ...]] = ("features", "modality_weights", "neighbours")

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=0, description="on the graph of users and items")
    item_layers: int = Field(1, ge=1, description="on the graph of items")
    neighbours: int = Field(10, ge=1, description="of each item by each modality, itself among them")
    features: tuple[str, ...] | None = Field(None, min_length=1, description="which tables; all when null")
    modality_weights: dict[str, float] = Field({}, description="of each modality in the graph of items; equal when empty")
    drop: float = Field(0.8, ge=0.0, lt=1.0, description="share of the edges that an epoch goes without")
    regularisation: float = Field(
        0.0,
        ge=0.0,
        description="weight of half the squared norms of what a pair reads, as LightGCN has; published: none",
    )
    feature_loss: float = Field(1e-3, ge=0.0, description="weight of the comparison with features")
    train_features: bool = Field(True, description="train copies of the features, as published code does")

    def build(self, spec: DataSpec) -> "Freedom":
        """The model for data of this shape, with freshly drawn weights. A UserError where it has no such features."""
        return Freedom(self, spec)


class Freedom(Model):
    """Two tables, two graphs, and a projection of each modality."""

    users_of: Tensor  # int32 [E]
    items_of: Tensor  # int32 [E]

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.sizes = config, (spec.users, spec.items)
        self.users = read_whole(vectors(spec.users, config.width))
        self.items = read_whole(vectors(spec.items + 1, config.width))
        self.tables = Modalities(spec.features, config.features)
        names = self.tables.names
        self.alike = Both(
            item_graph(
                [table for _, table in self.tables.each()], shares(config.modality_weights, names), config.neighbours, spec.kept
            )
        )
        self.projections = nn.ModuleDict(
            {part_of(name): nn.Linear(table.width, config.width, bias=False) for name, table in self.tables.each()}
        )
        self.copies = nn.ModuleDict()
        if config.train_features:
            for name, table in self.tables.each():
                self.copies[part_of(name)] = nn.Embedding(len(table.values), table.width, _weight=table.values.clone())
        graph = graph_of(spec)
        self.register_buffer("users_of", graph.users, persistent=False)
        self.register_buffer("items_of", graph.items, persistent=False)
        self.graph = symmetric(graph.users, graph.items, self.sizes)
        self.pruned = self.graph
        self.pairs = Pairs(spec)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Keep some edges, those of busy users and popular items less often; what is kept is normalised anew."""
        if not self.config.drop:
            return
        device = self.users_of.device
        users, items = self.users_of.cpu().long(), self.items_of.cpu().long()
        degrees = [torch.bincount(ids).double() for ids in (users, items)]
        chance = (degrees[0][users] * degrees[1][items]).rsqrt()
        # The greatest of independent exponential races are a draw without replacement by these chances.
        races = -torch.empty_like(chance).exponential_(generator=generator) / chance
        kept = races.topk(max(1, round(len(users) * (1 - self.config.drop)))).indices
        self.pruned = symmetric(users[kept], items[kept], self.sizes).to(device)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch, and of the same pairs by features."""
        first = len(self.users.weight)
        nodes, (user, liked, other) = distinct([batch.users, batch.items + first, batch.negatives + first])
        x = torch.cat([self.users.weight, self.items.weight])
        spread = self.pruned.sums(x, self.config.layers, nodes) / (self.config.layers + 1)
        alike = self._alike()
        users = spread[user]
        liked_items, other_items = (spread[at] + alike[ids] for at, ids in ((liked, batch.items), (other, batch.negatives)))
        penalties = {f"by_{name}": (self._by(name, users, batch), self.config.feature_loss) for name in self.tables.names}
        own = [self.users(batch.users), self.items(batch.items), self.items(batch.negatives)]
        penalties["l2"] = (squares(*own), self.config.regularisation)
        loss: Loss = self.pairs.loss(batch, users, liked_items, other_items, penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by what was spread along all edges, and along the graph of items."""
        x = torch.cat([self.users.weight, self.items.weight])
        spread = self.graph.sums(x, self.config.layers) / (self.config.layers + 1)
        users, items = spread.tensor_split([len(self.users.weight)])
        scorer: DotProduct = self.pairs.scorer(users, items + self._alike())
        return scorer

    def _alike(self) -> Tensor:
        """What the items alike to each item say of it: [V + 1, D]."""
        x = self.items.weight
        for _ in range(self.config.item_layers):
            x = self.alike(x)
        return x

    def _by(self, name: str, users: Tensor, batch: PairBatch) -> Tensor:
        """The loss of the pairs by one modality's features: [B]."""
        table = self.tables[name]
        values = dict(self.copies.named_parameters()).get(f"{part_of(name)}.weight", table.values)
        liked, other = (self.projections[part_of(name)](F.embedding(ids, values)) for ids in (batch.items, batch.negatives))
        both = table.there[batch.items] & table.there[batch.negatives]
        return preference(users, liked, other) * both
