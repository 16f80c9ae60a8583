"""The projection every model uses, and the context an adapter needs to change it per sample."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What travels with the hidden states of a batch through every block."""

    keys: Tensor  # int64 [B]: each row's random key
    gates: Tensor | None = None  # [B, K]: per-sequence weights of an instance-wise adapter's K experts; None without one

    def of(self, rows: Tensor) -> "Context":
        """The context of single states, gathered from these rows [N]."""
        return Context(self.keys[rows], None if self.gates is None else self.gates[rows])


class Linear(nn.Linear):
    """A linear map called with the batch's context. Without an adapter the context changes nothing."""

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        """[..., D] -> [..., O]."""
        return F.linear(x, self.weight, self.bias)
