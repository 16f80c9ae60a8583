"""LightGCN: vectors of users and items, spread along the edges of who has what, and nothing else.

Letters: B rows, D width, U users, V items, n nodes, N distinct nodes of a batch, K layers.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from turborec.contract import DotProduct, Loss, Model, read_whole
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, graph_of, squares, vectors
from turborec.nn.graph import distinct, symmetric
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): the mean of the layers x, A x, …, A^K x."""

    kind: Literal["lightgcn"] = "lightgcn"
    batch: ClassVar[type[PairBatch]] = PairBatch

    width: int = Field(64, ge=1)
    layers: int = Field(3, ge=0)
    regularisation: float = Field(1e-4, ge=0.0, description="weight of half the squared norms of what a pair reads")

    def build(self, spec: DataSpec) -> "LightGCN":
        """The model for data of this shape, with freshly drawn weights."""
        return LightGCN(self, spec)


class LightGCN(Model):
    """Two tables, and the graph."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.users = read_whole(vectors(spec.users, config.width))
        self.items = read_whole(vectors(spec.items + 1, config.width))
        graph = graph_of(spec)
        self.graph = symmetric(graph.users, graph.items, (spec.users, spec.items))
        self.pairs = Pairs(spec)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch; the penalty is on the vectors before they are spread."""
        first = len(self.users.weight)
        nodes, (user, liked, other) = distinct([batch.users, batch.items + first, batch.negatives + first])
        spread = self._spread(nodes)
        own = [self.users(batch.users), self.items(batch.items), self.items(batch.negatives)]
        penalties = {"l2": (squares(*own), self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, spread[user], spread[liked], spread[other], penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by what was spread."""
        users, items = self._spread().tensor_split([len(self.users.weight)])
        scorer: DotProduct = self.pairs.scorer(users, items)
        return scorer

    def _spread(self, nodes: Tensor | None = None) -> Tensor:
        """The mean of the layers, of these nodes or of all: int64 [N] -> [N, D] or [n, D]."""
        x = torch.cat([self.users.weight, self.items.weight])
        return self.graph.sums(x, self.config.layers, nodes) / (self.config.layers + 1)
