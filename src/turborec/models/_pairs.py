"""What models of users and items share: the loss of pairs, and a scorer that has an answer for strangers.

Letters: B rows, D width, U users, V items.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Term, rows_of
from turborec.data.batch import DataSpec, Interactions, PairBatch, SequenceBatch
from turborec.losses import preference

DEVIATION = 0.1
"""Of the initial vectors of users and items, as LightGCN has it."""


def graph_of(spec: DataSpec) -> Interactions:
    """The training pairs; none where nobody has told them, as of data that are described alone."""
    none = torch.zeros(0, dtype=torch.int32)
    return spec.graph or Interactions(none, none)


def vectors(rows: int, width: int) -> nn.Embedding:
    """A table of vectors to be trained: [rows, width]."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=DEVIATION)
    return table


class Pairs(nn.Module):
    """The loss of pairs, and the scorer; it knows which users the training has seen."""

    known: Tensor  # bool [U]

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        known = torch.zeros(spec.users, dtype=torch.bool)
        known[graph_of(spec).users.long()] = True
        self.register_buffer("known", known, persistent=False)  # a fact of the data, which comes back with the store

    def loss(
        self,
        batch: PairBatch,
        users: Tensor,
        liked: Tensor,
        other: Tensor,
        penalties: Mapping[str, tuple[Tensor, float]],
        scale: float = 1.0,
    ) -> Loss:
        """The preference of `liked` over `other` [B, D], and penalties [B] by name, each with its weight; 0: left out.

        `scale` is the weight of the preference.
        """
        count, asked = batch.num_targets(), (batch.items > 0).float()
        terms = {"bpr": Term((preference(users, liked, other) * asked).sum(), count, scale)}
        for name, (values, weight) in penalties.items():
            if weight:
                terms[name] = Term((values * asked).sum(), count, weight)
        return Loss(terms)

    def scorer(self, users: Tensor, items: Tensor, bias: nn.Embedding | None = None) -> DotProduct:
        """Scores by vectors of users [U, D] and items [V + 1, D].

        A user whom the training has not seen is the mean of the items of the history that is shown.
        """
        users, items = users.detach().float(), items.detach().float()

        def encode(batch: SequenceBatch) -> Tensor:
            at = batch.users.clamp(min=0)
            known = (batch.users >= 0) & self.known[at]
            strangers = (~known).nonzero().squeeze(1)
            shown = F.embedding_bag(batch.items[strangers], items, mode="mean", padding_idx=0)
            return users[at].index_copy(0, strangers, shown)

        return DotProduct(encode, items, None if bias is None else bias.weight[:, 0].detach())


Three = tuple[Tensor, Tensor, Tensor]
"""Vectors of users, of the items that they have, and of others: [B, D] each."""


def with_bias(vectors: Three, bias: nn.Embedding | None, batch: PairBatch) -> Three:
    """The vectors, one number longer where items have a bias: [B, D] -> [B, D + 1]."""
    if bias is None:
        return vectors
    users, liked, other = vectors
    liked, other = (
        torch.cat([part, rows_of(bias.weight, at)], dim=1) for part, at in ((liked, batch.items), (other, batch.negatives))
    )
    return torch.cat([users, users.new_ones(len(users), 1)], dim=1), liked, other


def squares(*parts: Tensor) -> Tensor:
    """Half the squared norms of the rows of some tensors, added up, in float32: [B, D] each -> [B]."""
    total = sum((part.float().square().sum(1) for part in parts), start=torch.zeros(1, device=parts[0].device))
    return 0.5 * total
