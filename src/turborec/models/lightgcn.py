"""LightGCN: vectors of users and items, spread along the edges of who has what, and nothing else.

Letters: B rows, D width, U users, V items, n nodes, N distinct nodes of a batch, K layers.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from turborec.contract import DotProduct, Loss, Model, read_whole, rows_of
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, graph_of, squares, vectors
from turborec.nn import sampled
from turborec.nn.graph import distinct, symmetric
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): the mean of the layers x, A x, …, A^K x.

    With `neighbours` a step goes along that many edges of a node at most, drawn anew for every layer: its vectors are those
    of the whole graph on the mean. A step then costs what its pairs have around them, however large the graph.
    """

    kind: Literal["lightgcn"] = "lightgcn"
    batch: ClassVar[type[PairBatch]] = PairBatch

    width: int = Field(64, ge=1)
    layers: int = Field(3, ge=0)
    neighbours: int | None = Field(None, ge=1, description="edges of a node that a layer goes along in training; all when null")
    regularisation: float = Field(1e-4, ge=0.0, description="weight of half the squared norms of what a pair reads")

    def build(self, spec: DataSpec) -> "LightGCN":
        """The model for data of this shape, with freshly drawn weights."""
        return LightGCN(self, spec)


class LightGCN(Model):
    """Two tables, and the graph."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.users, self.items = vectors(spec.users, config.width), vectors(spec.items + 1, config.width)
        if config.neighbours is None:
            read_whole(self.users)
            read_whole(self.items)
        graph = graph_of(spec)
        self.graph = symmetric(graph.users, graph.items, (spec.users, spec.items))
        self.pairs = Pairs(spec)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch; the penalty is on the vectors before they are spread."""
        first = len(self.users.weight)
        nodes, (user, liked, other) = distinct([batch.users, batch.items + first, batch.negatives + first])
        if self.config.neighbours is None:
            spread = self._spread(nodes)
        else:
            total = sampled.sums(self.graph.ahead, self._read, nodes, self.config.layers, self.config.neighbours, batch.key)
            spread = total / (self.config.layers + 1)
        own = [rows_of(self.users.weight, batch.users)]
        own += [rows_of(self.items.weight, ids) for ids in (batch.items, batch.negatives)]
        penalties = {"l2": (squares(*own), self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, spread[user], spread[liked], spread[other], penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by what was spread."""
        users, items = self._spread().tensor_split([len(self.users.weight)])
        scorer: DotProduct = self.pairs.scorer(users, items)
        return scorer

    def _read(self, nodes: Tensor) -> Tensor:
        """The vectors of some nodes, which ascend: int64 [N] -> [N, D]."""
        first = len(self.users.weight)
        people = int(torch.searchsorted(nodes, first))
        users, items = nodes[:people], nodes[people:] - first
        return torch.cat([rows_of(self.users.weight, users), rows_of(self.items.weight, items)])

    def _spread(self, nodes: Tensor | None = None) -> Tensor:
        """The mean of the layers, of these nodes or of all: int64 [N] -> [N, D] or [n, D]."""
        x = torch.cat([self.users.weight, self.items.weight])
        return self.graph.sums(x, self.config.layers, nodes) / (self.config.layers + 1)
