"""DRAGON: users and items spread on a graph for each modality, joined by attention, beside a graph of items and one of users.

Letters: B rows, D width, U users, V items, n nodes, N distinct nodes of a batch, M modalities, K layers.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, graph_of
from turborec.nn.graph import Both, distinct, symmetric
from turborec.nn.modality import Modalities, part_of, shares
from turborec.nn.neighbours import item_graph, user_graph
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """DRAGON (Zhou et al., ECAI 2023, arXiv 2301.12097), as released in MMRec.

    Deliberate deviations: who has fewer than `user_neighbours` neighbours has those alone, where published code repeats
    some at random; a modality that an item lacks is zero in its vector. As released: the loss has a logarithm to the base
    2, which is the natural one with the penalty weighed 1.4427 times less; users' weights of modalities are a softmax
    where training begins and free numbers from then on.
    """

    kind: Literal["dragon"] = "dragon"
    batch: ClassVar[type[PairBatch]] = PairBatch
    stated: ClassVar[tuple[str, ...]] = ("features", "modality_weights", "neighbours", "user_neighbours")

    width: int = Field(64, ge=1, description="for each modality")
    hidden: int = Field(256, ge=1, description="between the two layers that read features")
    layers: int = Field(2, ge=0, description="on the graph of users and items")
    item_layers: int = Field(1, ge=1, description="on the graph of items")
    neighbours: int = Field(10, ge=1, description="of each item by each modality, itself among them")
    user_neighbours: int = Field(40, ge=0, description="of each user; 0: no graph of users")
    features: tuple[str, ...] | None = Field(None, min_length=1, description="which tables; all when null")
    modality_weights: dict[str, float] = Field({}, description="of each modality in the graph of items; equal when empty")
    regularisation: float = Field(1e-3, ge=0.0, description="weight of the mean squares of what is learnt of users")

    def build(self, spec: DataSpec) -> "Dragon":
        """The model for data of this shape, with freshly drawn weights. A UserError where it has no such features."""
        return Dragon(self, spec)


class Dragon(Model):
    """Users' preferences and a reader of features for each modality, and three graphs."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.tables = Modalities(spec.features, config.features)
        names = self.tables.names
        self.preferences = nn.ParameterDict({part_of(name): _xavier(spec.users, config.width) for name in names})
        self.readers = nn.ModuleDict({part_of(name): self._reader(self.tables[name].width) for name in names})
        self.attention = nn.Parameter(_xavier(spec.users, len(names)).softmax(1))
        graph, sizes = graph_of(spec), (spec.users, spec.items)
        self.graph = symmetric(graph.users, graph.items, sizes)
        weights = shares(config.modality_weights, names)
        self.alike = Both(item_graph([table for _, table in self.tables.each()], weights, config.neighbours, spec.kept))
        self.company = None
        if config.user_neighbours:
            self.company = Both(user_graph(graph.users, graph.items, sizes, config.user_neighbours, spec.kept))
        self.pairs = Pairs(spec)

    def _reader(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, self.config.hidden), nn.LeakyReLU(), nn.Linear(self.config.hidden, self.config.width)
        )

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch; log2 as published."""
        spread = self._spread()
        who, (user,) = distinct([batch.users])
        what, (liked, other) = distinct([batch.items, batch.negatives])
        users, items = self._users(spread, who), self._items(spread, what)
        read = [self.preferences[part_of(name)][batch.users] for name in self.tables.names] + [self.attention[batch.users]]
        penalty = torch.stack([part.float().square().mean(1) for part in read]).sum(0)
        penalties = {"l2": (penalty, self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, users[user], items[liked], items[other], penalties, scale=1 / math.log(2))
        return loss

    def scorer(self) -> DotProduct:
        """Scores by the joined vectors."""
        spread = self._spread()
        scorer: DotProduct = self.pairs.scorer(self._users(spread), self._items(spread))
        return scorer

    def _spread(self) -> Tensor:
        """Users and items on the graph, the modalities side by side, so that one product does for all: [n, M D]."""
        parts = []
        for name, table in self.tables.each():
            read = self.readers[part_of(name)](table.values).float() * table.there[:, None]
            parts.append(F.normalize(torch.cat([self.preferences[part_of(name)], read]), dim=1))
        return self.graph.sums(torch.cat(parts, dim=1), self.config.layers)

    def _users(self, spread: Tensor, rows: Tensor | None = None) -> Tensor:
        """Users, each modality by its weight, and the company they are in: [U, M D], or of N rows."""
        people = spread[: len(self.attention)]
        own = (people.view(*self.attention.shape, -1) * self.attention[:, :, None]).flatten(1)
        mine = own if rows is None else own.index_select(0, rows)
        if self.company is not None:
            mine = mine + self.company(own, rows)
        return mine

    def _items(self, spread: Tensor, rows: Tensor | None = None) -> Tensor:
        """Items, and what is alike to them: [V + 1, M D], or of N rows."""
        own = spread[len(self.attention) :]
        x = own
        for layer in range(self.config.item_layers):
            x = self.alike(x, rows if layer == self.config.item_layers - 1 else None)
        return (own if rows is None else own.index_select(0, rows)) + x


def _xavier(rows: int, width: int) -> Tensor:
    return nn.init.xavier_normal_(torch.empty(rows, width))
