"""What the size of a batch does to a stage's rates, and the clipping of a table's rows that large batches ask for."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from turborec.contract import reads_of
from turborec.engine import world
from turborec.engine.optim import AdamW, Muon
from turborec.errors import UserError
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
        if self.rule == "none" and self.tokens is not None:
            raise ValueError(
                "tokens without a rule changes nothing: state rule linear, square_root or cowclip, or leave it out"
            )
        return self

    def applied(self, optimizer: AdamW | Muon, tokens: int) -> AdamW | Muon:
        """The optimizer for batches of so many tokens."""
        if self.rule == "none" or self.tokens is None:
            return optimizer
        k = tokens / self.tokens
        factor = k if self.rule == "linear" else math.sqrt(k)
        changes = {"lr": optimizer.lr * factor}
        if isinstance(optimizer, AdamW) and self.rule == "cowclip":
            decay = optimizer.weight_decay if optimizer.tables_weight_decay is None else optimizer.tables_weight_decay
            changes |= {
                "tables_lr": optimizer.tables_lr or optimizer.lr,
                "tables_weight_decay": decay * k,
                "clip_rows": optimizer.clip_rows or 1.0,
            }
        elif isinstance(optimizer, AdamW) and optimizer.tables_lr is not None:
            changes["tables_lr"] = optimizer.tables_lr * factor
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
        if gradient is None:
            continue
        if not gradient.is_sparse:
            raise UserError(
                "Rows are clipped by how often they are read, and the loss over all items reads every row: "
                "cowclip and clip_rows need a sampled loss, such as model.loss={kind: sampled_softmax}."
            )
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        limit = reads.to(rows.device)[rows] * (ratio * table.detach()[rows].norm(dim=1)).clamp(min=SMALLEST_NORM)
        limit[rows == 0] = math.inf  # padding's, or a mask's: how wide a batch is decides how often it is read
        values.mul_((limit / values.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None].to(values.dtype))
        table.grad = gradient
