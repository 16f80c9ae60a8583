"""Optimizers and learning-rate schedules."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from turborec.recipe import Config

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class AdamW(Config):
    """Adam with decoupled weight decay (arXiv 1711.05101), as one fused kernel. Vectors (norms, biases) do not decay."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    eps: float = Field(1e-8, ge=1e-15)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )


Optimizer = AdamW


class Constant(Config):
    """The full rate after the warm-up."""

    kind: Literal["constant"] = "constant"
    warmup: Share = Field(0.0, description="share of the stage in which the rate rises linearly from 0")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        return _warm(progress, self.warmup)


class Linear(Config):
    """Falls in a straight line from the full rate to `end` of it."""

    kind: Literal["linear"] = "linear"
    warmup: Share = 0.0
    end: Share = Field(0.0, description="share of the rate left at the end")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        return _warm(progress, self.warmup) * (1 - (1 - self.end) * _after(progress, self.warmup))


class Cosine(Config):
    """Falls along half a cosine (arXiv 1608.03983, one period) from the full rate to `end` of it."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.0
    end: Share = Field(0.0, description="share of the rate left at the end")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        fallen = (1 - math.cos(math.pi * _after(progress, self.warmup))) / 2
        return _warm(progress, self.warmup) * (1 - (1 - self.end) * fallen)


Schedule = Annotated[Constant | Linear | Cosine, Field(discriminator="kind")]


def _warm(progress: float, warmup: float) -> float:
    return 1.0 if progress >= warmup else progress / warmup


def _after(progress: float, warmup: float) -> float:
    """How far into the part after the warm-up, in [0, 1]."""
    return 0.0 if progress <= warmup else min(1.0, (progress - warmup) / (1 - warmup))
