"""MMGCN: a graph network of its own for each modality, whose means of neighbours meet a vector that all modalities share.

Letters: B rows, D width, U users, V items, n nodes, N distinct nodes of a batch, M modalities, F width of a modality.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, Term
from turborec.data.batch import DataSpec, PairBatch
from turborec.errors import UserError, closest
from turborec.models._pairs import Pairs, graph_of
from turborec.nn.graph import Both, distinct, means
from turborec.nn.modality import Modalities, Modality, part_of
from turborec.recipe import Config as BaseConfig

LAYERS = 3
"""Of every network; published code has a setting for it, which nothing reads."""


class Config(BaseConfig):
    """MMGCN (Wei et al., MM 2019), as released: networks are joined by concatenation, and modalities by their mean.

    Faithful, with `trainable_ids: false`: the vectors of users and items, and the users' preferences, are drawn once and
    never trained, as in the authors' code and in MMRec, where they are no parameters; so what is known of users never
    changes, and the penalty on these vectors is a constant, which is left out. With `true` both are trained; vectors are
    penalised, and, as published, the preferences of the table called image, if there is one. The loss is the softplus of
    the difference of scores, which is what published code computes by a product, a sigmoid and a logarithm. Deliberate
    deviation: a modality that an item lacks is zero where it enters, and does not count in the mean.
    """

    kind: Literal["mmgcn"] = "mmgcn"
    batch: ClassVar[type[PairBatch]] = PairBatch
    stated: ClassVar[tuple[str, ...]] = ("features", "trainable_ids")

    width: int = Field(64, ge=1)
    features: tuple[str, ...] | None = Field(None, min_length=1, description="which tables; all when null")
    reduced: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="tables that pass a linear layer to this width first, by name; others keep theirs. When null, as "
        "published: a table called image passes one to 256",
    )
    trainable_ids: bool = Field(False, description="train the vectors that published code draws and leaves as they are")
    regularisation: float = Field(1e-3, ge=0.0, description="with trainable_ids: weight of the mean squares of those vectors")

    def build(self, spec: DataSpec) -> "MMGCN":
        """The model for data of this shape, with freshly drawn weights. A UserError where it has no such features."""
        return MMGCN(self, spec)

    def reductions(self, tables: Modalities) -> dict[str, int]:
        """Which tables pass a layer first, and to which width; a UserError where one is named that there is not."""
        if self.reduced is None:
            return {"image": 256}
        if strange := next((name for name in self.reduced if name not in tables.names), None):
            raise UserError(f"model.reduced names {strange!r}, no table of this model{closest(strange, tables.names)}.")
        return self.reduced


class MMGCN(Model):
    """A network for each modality, and the vectors that they share."""

    ids: Tensor  # [n, D]
    counted: Tensor  # float32 [n, M] what each modality counts for each node

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.first = config, spec.users
        self.tables = Modalities(spec.features, config.features)
        graph = graph_of(spec)
        self.graph = means(graph.users, graph.items, (spec.users, spec.items))
        _hold(self, "ids", spec.users + spec.items + 1, config.width, config.trainable_ids)
        reduced = config.reductions(self.tables)
        self.networks = nn.ModuleDict(
            {part_of(name): Network(config, reduced.get(name), table, spec.users) for name, table in self.tables.each()}
        )
        there = torch.stack([table.there for _, table in self.tables.each()], dim=1)
        # Users have every modality; of an item that has none, all networks say what its users are like.
        there = torch.cat([there.new_ones(spec.users, there.shape[1]), there | ~there.any(1, keepdim=True)])
        self.register_buffer("counted", there / there.sum(1, keepdim=True), persistent=False)
        self.pairs = Pairs(spec)
        self._settle()
        self.register_load_state_dict_post_hook(lambda model, keys: model._settle())  # type: ignore[no-untyped-call]

    def _settle(self) -> None:
        for name, table in self.tables.each():
            self._network(name).settle(table, self.graph)

    def _network(self, name: str) -> "Network":
        network = self.networks[part_of(name)]
        assert isinstance(network, Network)
        return network

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch."""
        nodes, (user, liked, other) = distinct([batch.users, batch.items + self.first, batch.negatives + self.first])
        x = self._encode(nodes)
        weight, penalties = self.config.regularisation * self.config.trainable_ids, {}
        if weight:
            read = [(1.0, batch.users), (0.5, batch.items + self.first), (0.5, batch.negatives + self.first)]
            own = [share * F.embedding(at, self.ids).float().square().mean(1) for share, at in read]
            penalties["ids"] = (torch.stack(own).sum(0), weight)  # of users, and of both items on the mean, as MMRec has it
        loss: Loss = self.pairs.loss(batch, x[user], x[liked], x[other], penalties)
        if weight and "image" in self.tables.names:
            # As published: all the visual preferences and no others, whatever the batch.
            whole, count = self._network("image").preferences.float().square().mean(), batch.num_targets()
            loss = Loss({**loss.terms, "preferences": Term(whole * count, count, weight)})
        return loss

    def scorer(self) -> DotProduct:
        """Scores by the mean of the modalities."""
        users, items = self._encode(None).tensor_split([self.first])
        scorer: DotProduct = self.pairs.scorer(users, items)
        return scorer

    def _encode(self, nodes: Tensor | None) -> Tensor:
        """The mean of the modalities that a node has, of these nodes or of all: int64 [N] -> [N, D] or [n, D]."""
        counted = self.counted if nodes is None else self.counted.index_select(0, nodes)
        parts = [
            self._network(name)(table, self.graph, self.ids, nodes) * counted[:, place, None]
            for place, (name, table) in enumerate(self.tables.each())
        ]
        return torch.stack(parts).sum(0)


class Network(nn.Module):
    """Three layers of one modality: what the neighbours are on the mean, joined with what the node is itself.

    What no parameter changes is computed once: of preferences that are not trained and features that pass no layer all that
    enters the first layer, else what the items' neighbours are on the mean.
    """

    preferences: Tensor  # [U, F]
    entering: Tensor | None  # float32 [n, F] or [U, F]: what enters, of all nodes or of users, where it is constant
    around: Tensor | None  # float32 [n, F] or [V + 1, F]: the mean of what enters at neighbours, of all nodes or of items

    def __init__(self, config: Config, reduced: int | None, table: Modality, users: int) -> None:
        """`reduced`: the width of a layer that features pass first, if any."""
        super().__init__()
        first = reduced or table.width
        sizes = (first, *[config.width] * (LAYERS - 1))
        self.reduce = nn.Linear(table.width, first) if reduced else None
        _hold(self, "preferences", users, first, config.trainable_ids)
        self.spread = nn.ModuleList(nn.Linear(size, size, bias=False) for size in sizes)
        self.own = nn.ModuleList(nn.Linear(size, config.width) for size in sizes)
        self.join = nn.ModuleList(nn.Linear(size + config.width, config.width) for size in sizes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self.register_buffer("entering", None, persistent=False)
        self.register_buffer("around", None, persistent=False)
        self.to_users: Both | None = None

    @torch.no_grad()
    def settle(self, table: Modality, graph: Both) -> None:
        """Compute what training will not change; again where other weights were loaded."""
        if isinstance(self.preferences, nn.Parameter):
            return
        users = F.normalize(self.preferences, dim=1)
        if self.reduce is None:
            self.entering = torch.cat([users, F.normalize(table.values, dim=1)])
            self.around = graph.ahead.product(self.entering)
            return
        if self.to_users is None:
            self.to_users = Both(graph.ahead.block((0, len(users)), (len(users), graph.ahead.shape[1])))
        self.entering = users
        nothing = users.new_zeros(len(table.values), users.shape[1])
        self.around = graph.ahead.product(torch.cat([users, nothing]))[len(users) :]

    def forward(self, table: Modality, graph: Both, ids: Tensor, nodes: Tensor | None) -> Tensor:
        """What comes out at these nodes, or at all: int64 [N] -> [N, D], or [n, D]."""
        x, mean = self._enter(table, graph)
        for layer, (spread, own, join) in enumerate(zip(self.spread, self.own, self.join, strict=True)):
            rows = nodes if layer == LAYERS - 1 else None
            if layer:
                mean = graph(x, rows)
            mine, shared = (part if rows is None else part.index_select(0, rows) for part in (x, ids))
            itself = F.leaky_relu(own(mine)) + shared
            assert isinstance(join, nn.Linear)
            around, size = F.leaky_relu(spread(mean)), mean.shape[1]
            # The product of both side by side, without laying them side by side.
            joined = F.linear(around, join.weight[:, :size]) + F.linear(itself, join.weight[:, size:], join.bias)
            x = F.leaky_relu(joined)
        return x

    def _enter(self, table: Modality, graph: Both) -> tuple[Tensor, Tensor]:
        """What enters the first layer at each node, and its mean at the node's neighbours: [n, F], [n, F]."""
        if self.entering is not None and self.around is not None and self.reduce is None:
            return self.entering, self.around
        items = table.values if self.reduce is None else self.reduce(table.values).float() * table.there[:, None]
        items = F.normalize(items, dim=1)
        if self.entering is not None and self.around is not None and self.to_users is not None:
            return torch.cat([self.entering, items]), torch.cat([self.to_users(items).float(), self.around])
        x = torch.cat([F.normalize(self.preferences, dim=1), items])
        return x, graph(x)


def _hold(module: nn.Module, name: str, rows: int, width: int, trained: bool) -> None:
    """Give a module vectors [rows, width], as a parameter or as numbers that stay what they are drawn as."""
    drawn = nn.init.xavier_normal_(torch.empty(rows, width))
    if trained:
        module.register_parameter(name, nn.Parameter(drawn))
    else:
        module.register_buffer(name, drawn)
