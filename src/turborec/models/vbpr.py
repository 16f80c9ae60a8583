"""VBPR: matrix factorisation whose items also have a vector that is read off their features.

Letters: B rows, D width, U users, V items, F numbers that describe an item.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, rows_of
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, squares, vectors, with_bias
from turborec.nn.modality import Modalities, part_of
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Visual Bayesian personalised ranking (He and McAuley, AAAI 2016, arXiv 1510.01784), for any features.

    As in MMRec: all tables side by side, and one projection; the paper has a bias of the items, too. The penalty is on what
    is read off features as well, else the projection grows as the users' halves shrink. What an item lacks adds nothing.
    Tables are centred and brought to one scale, which the projection could undo and no comparison of two items that have them
    would notice, but without which training hardly moves where a table has a large mean.
    """

    kind: Literal["vbpr"] = "vbpr"
    batch: ClassVar[type[PairBatch]] = PairBatch
    stated: ClassVar[tuple[str, ...]] = ("features",)

    width: int = Field(64, ge=1, description="of the vectors that are learnt, and again of those that are read off features")
    features: tuple[str, ...] | None = Field(None, min_length=1, description="which tables; all when null")
    item_bias: bool = Field(False, description="learn a number for each item, the same for all users")
    regularisation: float = Field(1e-4, ge=0.0, description="weight of half the squared norms of what a pair reads")

    def build(self, spec: DataSpec) -> "VBPR":
        """The model for data of this shape, with freshly drawn weights. A UserError where it has no such features."""
        return VBPR(self, spec)


class VBPR(Model):
    """Two tables and a projection."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.users, self.items = vectors(spec.users, 2 * config.width), vectors(spec.items + 1, config.width)
        self.tables = Modalities(spec.features, config.features, centred=True)
        self.projections = nn.ModuleDict(
            {part_of(name): nn.Linear(table.width, config.width, bias=False) for name, table in self.tables.each()}
        )
        for weight in self.projections.parameters():
            nn.init.xavier_normal_(weight)
        self.bias = nn.Embedding(spec.items + 1, 1, _weight=torch.zeros(spec.items + 1, 1)) if config.item_bias else None
        self.pairs = Pairs(spec)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch."""
        users = rows_of(self.users.weight, batch.users)
        liked, other = (
            torch.cat([rows_of(self.items.weight, ids), self._seen(ids)], dim=1) for ids in (batch.items, batch.negatives)
        )
        users, liked, other = with_bias((users, liked, other), self.bias, batch)
        penalties = {"l2": (squares(users, liked, other), self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, users, liked, other, penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by the users' table and both halves of the items' vectors."""
        items = torch.cat([self.items.weight, self._seen(None)], dim=1)
        scorer: DotProduct = self.pairs.scorer(self.users.weight, items, self.bias)
        return scorer

    def _seen(self, ids: Tensor | None) -> Tensor:
        """What features say of these items, or of all: int64 [B] -> float32 [B, D] or [V + 1, D]."""
        parts = []
        for name, table in self.tables.each():
            values = table.values if ids is None else F.embedding(ids, table.values)
            parts.append(self.projections[part_of(name)](values).float())
        return torch.stack(parts).sum(0)
