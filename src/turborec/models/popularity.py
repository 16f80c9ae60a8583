"""Popularity: the same ranking for everybody, by the number of training events. Letters: B rows, V items."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from turborec.contract import Counted, Loss
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.store import Histories
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """The anchor below which a model has learned nothing about anybody."""

    kind: Literal["popularity"] = "popularity"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch

    def build(self, spec: DataSpec) -> "Popularity":
        """An empty counter for data of this shape."""
        return Popularity(self, spec)


class Popularity(Counted):
    """Counts of the training events."""

    events: Tensor  # float64 [V + 1]

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("events", torch.zeros(spec.items + 1, dtype=torch.float64))

    def count(self, histories: Histories) -> None:
        """Count every event of the training part."""
        ids = torch.from_numpy(histories.items.astype("int64"))
        self.events = torch.bincount(ids, minlength=len(self.events)).double()

    def forward(self, batch: SequenceBatch) -> Loss:
        """Nothing is trained: a loss without terms."""
        return Loss({})

    def scorer(self) -> "PopularityScorer":
        """Scores by the counts."""
        return PopularityScorer(self.events)


class PopularityScorer:
    """Every user gets the same row."""

    def __init__(self, events: Tensor) -> None:
        """`events` [V + 1] in float64."""
        self.events = events

    def users(self, batch: SequenceBatch) -> int:
        """How many users: B."""
        return len(batch.items)

    def score(self, state: int, lo: int, hi: int) -> Tensor:
        """[B, hi - lo] in float64."""
        return self.events[lo:hi].expand(state, -1)
