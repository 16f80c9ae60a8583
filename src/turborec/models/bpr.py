"""BPR: a vector for each user and each item, trained on pairs of an item that a user has and one that the user has not.

Letters: B rows, D width, U users, V items.
"""

from typing import ClassVar, Literal

from pydantic import Field

from turborec.contract import DotProduct, Loss, Model, rows_of
from turborec.data.batch import DataSpec, PairBatch
from turborec.models._pairs import Pairs, squares, vectors
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Bayesian personalised ranking by matrix factorisation (Rendle et al., UAI 2009, arXiv 1205.2618)."""

    kind: Literal["bpr"] = "bpr"
    batch: ClassVar[type[PairBatch]] = PairBatch

    width: int = Field(64, ge=1)
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
        self.pairs = Pairs(spec)

    def forward(self, batch: PairBatch) -> Loss:
        """The loss of the pairs of a batch."""
        users = rows_of(self.users.weight, batch.users)
        liked, other = (rows_of(self.items.weight, ids) for ids in (batch.items, batch.negatives))
        penalties = {"l2": (squares(users, liked, other), self.config.regularisation)}
        loss: Loss = self.pairs.loss(batch, users, liked, other, penalties)
        return loss

    def scorer(self) -> DotProduct:
        """Scores by the two tables."""
        scorer: DotProduct = self.pairs.scorer(self.users.weight, self.items.weight)
        return scorer
