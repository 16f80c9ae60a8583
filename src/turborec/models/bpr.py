"""BPR: a vector for each user and each item, trained on pairs of an item that a user has and one that the user has not.

Letters: B rows, D width, U users, V items.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from turborec.contract import DotProduct, Loss, Model, rows_of
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, squares, vectors, with_bias
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Bayesian personalised ranking by matrix factorisation (Rendle et al., UAI 2009, arXiv 1205.2618).

    MMRec's and RecBole's have no bias of the items; the authors' has.
    """

    kind: Literal["bpr"] = "bpr"
    batch: ClassVar[type[PairBatch]] = PairBatch

    width: int = Field(64, ge=1)
    item_bias: bool = Field(False, description="learn a number for each item, the same for all users")
    regularisation: float = Field(1e-4, ge=0.0, description="weight of half the squared norms of what a pair reads")

    def build(self, spec: DataSpec) -> "BPR":
        """The model for data of this shape, with freshly drawn weights."""
        return BPR(self, spec)


class BPR(Model):
    """Two tables."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.users, self.items = vectors(spec.users, config.width), vectors(spec.items + 1, config.width)
        self.bias = nn.Embedding(spec.items + 1, 1, _weight=torch.zeros(spec.items + 1, 1)) if config.item_bias else None
        self.pairs = Pairs(spec)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch."""
        users = rows_of(self.users.weight, batch.users)
        liked, other = (rows_of(self.items.weight, ids) for ids in (batch.items, batch.negatives))
        users, liked, other = with_bias((users, liked, other), self.bias, batch)
        penalties = {"l2": (squares(users, liked, other), self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, users, liked, other, penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by the two tables."""
        scorer: DotProduct = self.pairs.scorer(self.users.weight, self.items.weight, self.bias)
        return scorer
