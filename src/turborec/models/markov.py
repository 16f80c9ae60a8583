"""Markov: a mixture of first-order transition counts from a user's last few events.

Letters: B rows, V items, T distinct transitions. score(j) = sum over lags l of decay^l * count(i_l -> j) / count(i_l -> any)
plus 1e-9 times the item's training events, which breaks ties by popularity.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from turborec.contract import Counted, Loss
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.store import Histories
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """The anchor every neural sequence model must beat: consecutive pairs counted in the training part, nothing tuned."""

    kind: Literal["markov"] = "markov"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch

    steps: int = Field(5, ge=1, description="how many of the last events vote")
    decay: float = Field(0.6, gt=0.0, le=1.0, description="weight of each step back against the one after it")

    def build(self, spec: DataSpec) -> "Markov":
        """Empty counts for data of this shape."""
        return Markov(self, spec)


class Markov(Counted):
    """Sparse rows of transition shares: those of item i are `shares[starts[i]:starts[i + 1]]`, to items `targets`."""

    starts: Tensor  # int64 [V + 2]
    targets: Tensor  # int64 [T]
    shares: Tensor  # float64 [T]
    events: Tensor  # float64 [V + 1]

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("starts", torch.zeros(spec.items + 2, dtype=torch.int64))
        self.register_buffer("targets", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("shares", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("events", torch.zeros(spec.items + 1, dtype=torch.float64))

    def count(self, histories: Histories) -> None:
        """Count consecutive pairs within every user's training part."""
        ids = torch.from_numpy(histories.items.astype("int64"))
        size = len(self.events)
        inside = torch.ones(max(0, len(ids) - 1), dtype=torch.bool)
        borders = torch.from_numpy(histories.offsets[1:-1].astype("int64"))
        inside[borders[(borders > 0) & (borders < len(ids))] - 1] = False
        pairs, counts = torch.unique((ids[:-1] * size + ids[1:])[inside], return_counts=True)
        origins = pairs // size
        leaving = torch.bincount(origins, weights=counts.double(), minlength=size)
        self.starts = torch.searchsorted(origins, torch.arange(size + 1))
        self.targets = pairs % size
        self.shares = counts.double() / leaving[origins]
        self.events = torch.bincount(ids, minlength=size).double()

    def forward(self, batch: SequenceBatch) -> Loss:
        """Nothing is trained: a loss without terms."""
        return Loss({})

    def scorer(self) -> "MarkovScorer":
        """Scores by the counts, in float64."""
        return MarkovScorer(self)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # How many distinct transitions there are is known only after counting.
        for name in ("targets", "shares"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class MarkovScorer:
    """Adds up the sparse rows of each user's last events."""

    def __init__(self, model: Markov) -> None:
        self.model = model
        size = len(model.events)
        origins = torch.repeat_interleave(torch.arange(size), model.starts.diff())
        self.keys = origins * size + model.targets  # ascending: what a row has of a tile lies together

    def users(self, batch: SequenceBatch) -> Tensor:
        """The last events, newest first, 0 where there are fewer: int64 [B, steps]."""
        back = batch.lengths[:, None] - 1 - torch.arange(self.model.config.steps)
        recent = batch.items.gather(1, back.clamp(min=0))
        return torch.where(back >= 0, recent, 0)

    def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
        """[B, steps] -> [B, hi - lo] in float64."""
        model, width, rows = self.model, hi - lo, state * len(self.model.events)
        scores = (1e-9 * model.events[lo:hi]).repeat(len(state), 1)
        starts, ends = torch.searchsorted(self.keys, rows + lo), torch.searchsorted(self.keys, rows + hi)
        for lag in range(state.shape[1]):
            lengths = ends[:, lag] - starts[:, lag]
            row = torch.repeat_interleave(torch.arange(len(state)), lengths)
            within = torch.arange(len(row)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
            entry = starts[row, lag] + within
            value = model.config.decay**lag * model.shares[entry]
            # index_add_ sums in the order of the entries, so equal histories score equal to the bit.
            scores.view(-1).index_add_(0, row * width + model.targets[entry] - lo, value)
        return scores
