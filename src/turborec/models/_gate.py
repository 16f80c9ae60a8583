"""The gate of instance-wise adapters: what each expert counts for a sequence, by what is visible of it.

Letters: B rows, L positions, D width of the vector that is looked at, K experts, R rank.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turborec.contract import DotProduct, Model
from turborec.data.batch import SequenceBatch
from turborec.data.schema import UNKNOWN_TIME


class Gate(nn.Module):
    """A softmax of a linear map of a frozen model's vector of the sequence; nothing is learnt through that vector."""

    def __init__(self, width: int, experts: int, rank: int, other: Model | None = None) -> None:
        """`other` gives the vectors, of `width` numbers; where there is none, the model that is adapted does."""
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.each = rank // experts
        self.other = other

    def train(self, mode: bool = True) -> "Gate":
        """As usual, but that the other model never trains."""
        super().train(mode)
        if self.other is not None:
            self.other.eval()
        return self

    def forward(self, batch: SequenceBatch, events: Tensor, own: Callable[[], Tensor]) -> Tensor:
        """What each rank counts: events [B, L], 0 where hidden or padded, -> [B, R].

        `own` gives the last states of the frozen model itself, [B, L, D], without adapters.
        """
        seen = events != 0
        with torch.no_grad():
            if self.other is None:
                states = own().float()
                vectors = (states * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
            else:
                scorer = self.other.scorer()
                assert isinstance(scorer, DotProduct)
                vectors = scorer.users(visible(batch, events)).users
        return self.shares(vectors)

    def shares(self, vectors: Tensor) -> Tensor:
        """What each rank counts by a frozen model's vectors: [B, D] -> [B, R]."""
        with torch.autocast(vectors.device.type, enabled=False):
            shares: Tensor = self.router(F.layer_norm(vectors.float(), vectors.shape[1:])).softmax(1)
        return shares.repeat_interleave(self.each, dim=1)


def visible(batch: SequenceBatch, events: Tensor) -> SequenceBatch:
    """What is visible of the batch's events, without gaps or times, and nothing to predict: int64 [B, L], 0 where hidden."""
    order = (events == 0).to(torch.int8).sort(dim=1, stable=True).indices[:, : batch.items.shape[1]]
    items = events.gather(1, order)
    nothing, unknown = torch.zeros_like(items), torch.full_like(items, UNKNOWN_TIME)
    return replace(batch, items=items, times=unknown, targets=nothing, lengths=(items != 0).sum(1), targets_count=0)
