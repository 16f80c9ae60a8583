"""What models that predict the next item at every position share: the loss and the scorer of their states.

Letters: B rows, L positions, D width, V items, N predicted positions, P pairs of a position and an item of its history.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import Cells, DotProduct, Loss, Term
from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss

Repeats = Annotated[bool, Field(description="learn a bias of the items of the history, by how long ago they were there")]

CELLS = 2**20
"""Pairs of a position and an event that are looked at together, which bounds the memory of long windows."""


class NextItem(nn.Module):
    """A loss over the catalogue and, where it is asked for, a bias for the items of the history."""

    def __init__(self, loss: CatalogueLoss, repeat_bias: bool, spec: DataSpec) -> None:
        super().__init__()
        self.criterion = loss.build(spec.item_counts())
        self.repeats = RepeatBias(spec.max_length) if repeat_bias else None

    def asked(self, batch: SequenceBatch, again: bool = False) -> AskedBatch:
        """The batch with the places of its targets; `again`: all places, so that as many come again."""
        if isinstance(batch, AskedBatch):
            return batch
        targets = batch.targets.flatten()
        where = torch.arange(len(targets), device=targets.device) if again else targets.nonzero().squeeze(1)
        return AskedBatch.of(batch, where, targets[where])

    def loss(self, states: Tensor, table: Tensor, batch: AskedBatch) -> Loss:
        """The loss of the states [N, D] of the places that are asked for, against [V + 1, D]."""
        sums = []
        rows = len(states) if self.repeats is None else CELLS // batch.items.shape[1]
        parts = (torch.split(part, max(1, rows)) for part in (states, batch.where, batch.wanted))
        for some, at, asked in zip(*parts, strict=True):
            cells = None if self.repeats is None else self.repeats(batch.items, at)
            sums.append(self.criterion(some, table, asked, batch.key, cells=cells))
        return Loss({"next_item": Term(torch.stack(sums).sum(), batch.num_targets())})

    def scorer(self, encode: Callable[[SequenceBatch], Tensor], table: Tensor) -> DotProduct:
        """Scores by `encode(batch)` [B, D], the states after the last events."""
        return DotProduct(encode, table, cells=lambda batch: self.cells(batch.items, batch.last()))

    def cells(self, items: Tensor, last: Tensor) -> Cells | None:
        """What is added to scores: int64 [B, L], and the positions [B] of the last events; None where nothing is."""
        if self.repeats is None:
            return None
        rows, length = items.shape
        cells: Cells = self.repeats(items, torch.arange(rows, device=items.device) * length + last)
        return cells


class RepeatBias(nn.Module):
    """A learned number for the logits of the items that are in the history, by how many events ago each was last there.

    Where nothing recurs a model need not spend its states on that, and where much does, it learns when. This is the choice
    between repeating and exploring of RepeatNet (Ren et al., AAAI 2019, arXiv 1812.02646) in the plainest form. The last
    event was one event ago; 2 to 3 events ago share a number, 4 to 7, 8 to 15 and so on.
    """

    bucket: Tensor

    def __init__(self, max_length: int) -> None:
        super().__init__()
        bucket = torch.arange(1, max_length + 1).double().log2().long()
        self.register_buffer("bucket", bucket, persistent=False)  # int64 [max_length], by events ago less one
        self.weight = nn.Parameter(torch.zeros(int(bucket[-1]) + 1))

    def forward(self, items: Tensor, wanted: Tensor) -> Cells:
        """int64 [B, L], 0 where padded, and ascending places in it flattened [N] -> P cells of rows 0..N - 1."""
        length = items.shape[1]
        place = torch.arange(length, device=items.device)
        rows, at = wanted // length, wanted % length
        followed = torch.where(items != 0, next_place(items), 0).index_select(0, rows)
        row, place = ((place <= at[:, None]) & (followed > at[:, None])).nonzero(as_tuple=True)
        shown = items.flatten().index_select(0, rows[row] * length + place)
        age = (at[row] - place).int()  # kept for the backward pass
        return Cells(row, shown, self.weight[self.bucket].index_select(0, age))


def next_place(items: Tensor) -> Tensor:
    """Where in its row an item comes again: int64 [B, L] -> [B, L]; L where it does not."""
    length = items.shape[1]
    ordered, order = items.sort(dim=1, stable=True)
    again = torch.where(ordered[:, 1:] == ordered[:, :-1], order[:, 1:], length)
    return torch.full_like(items, length).scatter(1, order[:, :-1], again)
