"""What the size of a batch does to a stage's rates, and the clipping of a table's rows that large batches ask for."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from turborec.contract import reads_of
from turborec.engine import world
from turborec.engine.optim import AdamW, Muon
from turborec.recipe import Config

SMALLEST_NORM = 1e-5
"""Of a row, for the clipping: rows that begin near zero may move (zeta of CowClip's algorithm 1)."""


class Scaling(Config):
    """How the optimizer's rate, stated for batches of `tokens`, follows `batches.tokens`; k is the second over the first.

    linear: lr * k (arXiv 1706.02677). square_root: lr * sqrt(k) (arXiv 2205.10287, for Adam). cowclip: the body's lr * sqrt(k),
    the tables' unchanged with k times the weight decay, and each row of a table clipped by its own norm and the times it
    was read (arXiv 2204.06240, the rule and algorithm 1).
    """

    rule: Literal["none", "linear", "square_root", "cowclip"] = "none"
    tokens: int | None = Field(None, ge=1, description="the batches.tokens that the optimizer's rate is meant for")

    @model_validator(mode="after")
    def _knows_its_batch(self) -> Self:
        if self.rule != "none" and self.tokens is None:
            raise ValueError(f"rule {self.rule} needs tokens: the batches.tokens that the optimizer's rate is meant for")
        return self

    def applied(self, optimizer: AdamW | Muon, tokens: int) -> AdamW | Muon:
        """The optimizer for batches of so many tokens."""
        if self.rule == "none" or self.tokens is None:
            return optimizer
        k = tokens / self.tokens
        changes = {"lr": optimizer.lr * (k if self.rule == "linear" else math.sqrt(k))}
        if self.rule == "cowclip" and isinstance(optimizer, AdamW):
            changes |= {"tables_lr": optimizer.lr, "tables_weight_decay": optimizer.weight_decay * k, "clip_rows": 1.0}
        return optimizer.model_copy(update=changes)

    def told(self, optimizer: AdamW | Muon, tokens: int) -> str | None:
        """What it does, in words; None where it does nothing."""
        if self.rule == "none":
            return None
        rate = self.applied(optimizer, tokens).lr
        return f"Rate {optimizer.lr:g} is meant for {self.tokens:,} tokens a batch: at {tokens:,} it is {rate:g} ({self.rule})"


def clip_rows(tables: list[nn.Parameter], ratio: float) -> None:
    """Scale each row of the sparse gradients to a norm of at most `reads * max(ratio * norm of the row, SMALLEST_NORM)`."""
    for table in tables:
        reads, gradient = world.added(reads_of(table, shared=False)) + reads_of(table, shared=True), table.grad
        if gradient is None or not gradient.is_sparse:
            continue
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        limit = reads[rows] * (ratio * table.detach()[rows].norm(dim=1)).clamp(min=SMALLEST_NORM)
        values.mul_((limit / values.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None].to(values.dtype))
        table.grad = gradient
