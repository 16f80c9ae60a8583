"""Graph models written plainly, as public code has them: what the speed of ours is compared with, and its results too.

LightGCN by one sparse product in coordinates for each layer, and MMGCN by messages that are gathered along edges and added
up where they arrive. Each takes the parameters of a model of ours, so that losses and gradients can be compared number by
number. Letters: n nodes, E edges in one direction, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turborec.contract import Loss, Model, Scorer, Term
from turborec.data.batch import Interactions, PairBatch
from turborec.models.lightgcn import LightGCN
from turborec.models.mmgcn import LAYERS, MMGCN


class PlainLightGCN(Model):
    """Every layer of every node is kept, and their mean is taken in the end."""

    def __init__(self, model: LightGCN, graph: Interactions) -> None:
        super().__init__()
        self.model, self.first = model, len(model.users.weight)
        nodes = self.first + len(model.items.weight)
        users, items = graph.users.long(), graph.items.long() + self.first
        index = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
        degrees = torch.bincount(index[0], minlength=nodes).double()
        values = (degrees[index[0]] * degrees[index[1]]).rsqrt().float()
        adjacency = torch.sparse_coo_tensor(index, values, (nodes, nodes), check_invariants=True).coalesce()
        self.register_buffer("adjacency", adjacency, persistent=False)

    adjacency: Tensor

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch."""
        x = torch.cat([self.model.users.weight, self.model.items.weight])
        layers = [x]
        for _ in range(self.model.config.layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        users, items = torch.stack(layers, dim=1).mean(dim=1).split([self.first, len(x) - self.first])
        own = (self.model.users(batch.users), self.model.items(batch.items), self.model.items(batch.negatives))
        ranked = _ranked(users[batch.users], items[batch.items], items[batch.negatives])
        penalty = 0.5 * sum(part.square().sum() for part in own)
        count = batch.num_targets()
        return Loss({"bpr": Term(ranked, count), "l2": Term(penalty, count, self.model.config.regularisation)})

    def scorer(self) -> Scorer:
        """That of the model."""
        return self.model.scorer()


class PlainMMGCN(Model):
    """Three layers of messages for each modality, of all nodes, in every step."""

    def __init__(self, model: MMGCN, graph: Interactions) -> None:
        super().__init__()
        self.model = model
        users, items = graph.users.long(), graph.items.long() + model.first
        self.register_buffer("sources", torch.cat([users, items]), persistent=False)
        self.register_buffer("arrivals", torch.cat([items, users]), persistent=False)
        degrees = torch.bincount(self.arrivals, minlength=len(model.ids)).clamp(min=1)
        self.register_buffer("degrees", degrees.float(), persistent=False)

    sources: Tensor
    arrivals: Tensor
    degrees: Tensor

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch, in the published form: scores side by side, times [1, -1]."""
        parts = [self._network(name) for name, _ in self.model.tables.each()]
        x = (torch.stack(parts, dim=2) * self.model.counted[:, None]).sum(2)
        users, items = x.split([self.model.first, len(x) - self.model.first])
        loss = _ranked(users[batch.users], items[batch.items], items[batch.negatives])
        return Loss({"bpr": Term(loss, batch.num_targets())})

    def scorer(self) -> Scorer:
        """That of the model."""
        return self.model.scorer()

    def _network(self, name: str) -> Tensor:
        network, table = self.model._network(name), self.model.tables[name]
        items = table.values if network.reduce is None else network.reduce(table.values) * table.there[:, None]
        x = F.normalize(torch.cat([network.preferences, items]))
        for layer in range(LAYERS):
            hidden = F.leaky_relu(self._mean(x @ network.spread[layer].weight.T))
            itself = F.leaky_relu(network.own[layer](x)) + self.model.ids
            x = F.leaky_relu(network.join[layer](torch.cat((hidden, itself), dim=1)))
        return x

    def _mean(self, x: Tensor) -> Tensor:
        """The mean of the neighbours' rows: [n, D] -> [n, D]."""
        messages = x.index_select(0, self.sources)
        return torch.zeros_like(x).index_add(0, self.arrivals, messages) / self.degrees[:, None]


def _ranked(users: Tensor, liked: Tensor, other: Tensor) -> Tensor:
    scores = torch.stack([(users * liked).sum(1), (users * other).sum(1)], dim=1)
    return F.softplus(-(scores @ torch.tensor([[1.0], [-1.0]], dtype=scores.dtype))).sum()


def plain(model: nn.Module, graph: Interactions) -> Model:
    """The plain form of a model of ours, which it shares all parameters with."""
    if isinstance(model, LightGCN):
        return PlainLightGCN(model, graph)
    if isinstance(model, MMGCN):
        return PlainMMGCN(model, graph)
    raise TypeError(f"expected LightGCN or MMGCN, got {type(model).__name__}")
