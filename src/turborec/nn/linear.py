"""The projection every model uses, and the context an adapter needs to change it per sample."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What travels with the hidden states of a batch through every block."""

    keys: Tensor | None  # int64 [B]: each row's random key; None where nothing is to be random, even in training
    gates: Tensor | None = None  # [B, R]: what each rank of an instance-wise adapter counts for a row; None without one
    adapted: bool = True  # False: as if there were no adapters
    places: Tensor | None = None  # int64 [B]: of single states, which of their row's they are

    def of(self, rows: Tensor, places: Tensor) -> "Context":
        """The context of single states, gathered from these rows [N], of which they are these [N]."""
        keys, gates = (part if part is None else part[rows] for part in (self.keys, self.gates))
        return replace(self, keys=keys, gates=gates, places=places)


class Linear(nn.Linear):
    """A linear map called with the batch's context. Without an adapter the context changes nothing."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.adapter: nn.Module | None = None  # what is added to the map, called with the same arguments (nn/lora.py)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        """[..., D] -> [..., O]."""
        weight = self.weight
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            weight = weight.to(x.dtype)  # of a frozen base that is kept in less
        mapped = F.linear(x, weight, self.bias)
        if self.adapter is None or not context.adapted:
            return mapped
        added: Tensor = self.adapter(x, context)
        return mapped + added
