"""Scores of the whole catalogue: by a model, and by a table that stands for one."""

import torch
from torch import Tensor

from turborec.contract import Model
from turborec.data.batch import SequenceBatch
from turborec.ranking import UserBatch


class Table:
    """Scores user u by row u of a table [U, V + 1], whatever else a batch of users holds."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def users(self, batch: UserBatch) -> Tensor:
        return batch.users

    def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
        return self.scores[state, lo:hi]


def catalogue_scores(model: Model, batch: SequenceBatch, items: int) -> Tensor:
    """What the model, not in training, gives to items 1..V: [B, V]."""
    model.eval()
    with torch.no_grad():
        scorer = model.scorer()
        return scorer.score(scorer.users(batch), 1, items + 1)
