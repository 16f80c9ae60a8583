"""Losses over a catalogue: (states, item table, targets) -> the sum over targets, written in logit space.

Letters: N predicted positions, V items, K negatives; the rest is in `head`.
Each loss is a frozen config whose `build` gives the module that computes it.
"""

import logging
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function

from turborec.contract import Cells, parts_of
from turborec.head import Head, TiledCrossEntropy
from turborec.recipe import Config

logger = logging.getLogger("turborec")


class CrossEntropy(Config):
    """Exact softmax cross-entropy over all items, never holding more than a tile of logits."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item (not needed here)."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N] -> scalar."""
        return _exact(head, targets, 0.0)


class Focal(Config):
    """Exact softmax cross-entropy c, each counted (1 - exp(-c))^gamma times (Lin et al., ICCV 2017, arXiv 1708.02002).

    What is predicted well already counts little; gamma 0 is cross-entropy.
    """

    kind: Literal["focal"] = "focal"
    gamma: float = Field(1.0, ge=0.0)

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item (not needed here)."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N] -> scalar."""
        return _exact(head, targets, self.gamma)


class SampledSoftmax(Config):
    """Cross-entropy against negatives shared by the whole step, with each one's logit corrected by its expected count.

    The partition sum over the items other than the target is estimated without bias by
    sum_k exp(s_k) / (K q_k), so the target itself, which is always present, takes no correction
    (the refinement of arXiv 2507.09331 over the usual logQ correction). Draws that hit the target are left out.
    """

    kind: Literal["sampled_softmax"] = "sampled_softmax"
    negatives: int = Field(256, ge=1)
    popularity_power: float = Field(0.0, ge=0.0, le=1.0, description="0 draws uniformly, 1 by popularity")

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N], [K], [V + 1] -> scalar."""
        positive, negative, hit = head.logits(targets, negatives)
        negative = negative - (share[negatives] * len(negatives)).log()
        logits = torch.cat([positive[:, None], negative.masked_fill(hit, -math.inf)], dim=1)
        return (logits.logsumexp(1) - positive).sum()


class GBCE(Config):
    """Generalised binary cross-entropy of gSASRec (arXiv 2308.07192), with negatives shared by the step.

    The positive's log-likelihood is raised to beta = a (t (1 - 1/a) + 1/a), a = negatives / (V - 1); t = 0 is plain binary
    cross-entropy, t = 1 is fully calibrated.
    """

    kind: Literal["gbce"] = "gbce"
    negatives: int = Field(256, ge=1)
    calibration: float = Field(0.75, ge=0.0, le=1.0, description="t of the paper")
    popularity_power: float = Field(0.0, ge=0.0, le=1.0)

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N], [K], [V + 1] -> scalar."""
        items = parts_of(head.table).total - 1 if head.items is None else head.items
        rate = min(1.0, len(negatives) / max(1, items - 1))
        beta = rate * (self.calibration * (1 - 1 / rate) + 1 / rate)
        positive, negative, hit = head.logits(targets, negatives)
        return beta * F.softplus(-positive).sum() + F.softplus(negative).masked_fill(hit, 0.0).sum()


class BPR(Config):
    """Bayesian personalised ranking (arXiv 1205.2618): softplus(negative - positive), averaged over shared negatives."""

    kind: Literal["bpr"] = "bpr"
    negatives: int = Field(1, ge=1)
    popularity_power: float = Field(0.0, ge=0.0, le=1.0)

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N], [K], [V + 1] -> scalar."""
        positive, negative, hit = head.logits(targets, negatives)
        return F.softplus(negative - positive[:, None]).masked_fill(hit, 0.0).sum() / len(negatives)


class Auto(Config):
    """Exact cross-entropy while the catalogue is small enough for it, else a sampled softmax.

    It looks at the catalogue alone, so that one recipe has one objective on every machine; the log says what was chosen. The
    exact loss costs 6 D V operations a target: at 50,000 items most of a small model's step.
    """

    kind: Literal["auto"] = "auto"
    exact_up_to: int = Field(50_000, ge=1, description="items")
    negatives: int = Field(512, ge=1, description="of the sampled softmax")

    def chosen(self, items: int) -> CrossEntropy | SampledSoftmax:
        """The loss for a catalogue of this size."""
        return CrossEntropy() if items <= self.exact_up_to else SampledSoftmax(negatives=self.negatives)

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item."""
        items = len(counts) - 1
        chosen = self.chosen(items)
        words = "at most" if isinstance(chosen, CrossEntropy) else "more than"
        logger.info(f"Loss: {chosen.kind}, because the catalogue has {items:,} items, {words} {self.exact_up_to:,}")
        return chosen.build(counts)


CatalogueLoss = Annotated[CrossEntropy | Focal | SampledSoftmax | GBCE | BPR | Auto, Field(discriminator="kind")]


def _exact(head: Head, targets: Tensor, focus: float) -> Tensor:
    values = None if head.cells is None else head.cells.values
    total: Tensor = TiledCrossEntropy.apply(  # type: ignore[no-untyped-call]
        head.states, head.table, head.bias, targets, values, head.cells, focus
    )
    return total


def preference(users: Tensor, liked: Tensor, other: Tensor) -> Tensor:
    """softplus(other score - liked score) of each row, which is -log sigmoid of the difference: [B, D] three times -> [B].

    Scores, differences and the loss are in float32 whatever comes in, so that no precision overflows and no gradient of a
    great difference is lost: log(sigmoid(x)) in float16 is -inf from x = -17.3 on, and its gradient is not a number.
    """
    with torch.autocast(users.device.type, enabled=False):
        users, liked, other = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (users, liked, other))
        return F.softplus(((other - liked) * users).sum(1))


class Criterion(nn.Module):
    """A loss together with the distribution its negatives are drawn from."""

    share: Tensor
    cumulative: Tensor

    def __init__(self, config: CrossEntropy | Focal | SampledSoftmax | GBCE | BPR, counts: Tensor) -> None:
        """`counts` [V + 1]: training events of each item; row 0 is ignored."""
        super().__init__()
        self.config = config
        weight = (counts.double().clamp(min=1) ** getattr(config, "popularity_power", 0.0)).index_fill(
            0, torch.zeros(1, dtype=torch.int64), 0.0
        )
        share = weight / weight.sum()
        # Facts of the data, not learnt: they come back with the store, so no checkpoint carries them.
        self.register_buffer("share", share.float(), persistent=False)  # [V + 1]: q of each item
        self.register_buffer("cumulative", share.cumsum(0), persistent=False)  # [V + 1]

    def forward(
        self,
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        key: int,
        bias: Tensor | None = None,
        cells: Cells | None = None,
    ) -> Tensor:
        """[N, D], [V + 1, D], [N], bias [V + 1], cells of rows 0..N - 1 -> scalar sum.

        `key` is the step's, so that all processes draw the same negatives. A UserError for cells of a table in parts.
        """
        size = getattr(self.config, "negatives", 0)
        with record_function("head"):
            negatives = self.draw(size, key) if size else targets[:0]
            return self.config.value(Head(states, table, bias, cells), targets, negatives, self.share)

    def of_rows(
        self, states: Tensor, rows: Callable[[Tensor], Tensor], targets: Tensor, key: int, among: Tensor | None = None
    ) -> Tensor:
        """The same of a table whose rows are made when they are asked for, each once: `rows` int64 [U] -> [U, D].

        Those of the targets and of the negatives; of a loss without negatives those that are `among` int64 [K], or all.
        """
        size, items = getattr(self.config, "negatives", 0), len(self.share) - 1
        others = torch.arange(1, items + 1, device=targets.device) if among is None else among
        negatives = self.draw(size, key) if size else others
        ids, place = torch.unique(torch.cat([targets, negatives]), return_inverse=True)
        place = place + int(ids[0] != 0)  # row 0 stays that of padding
        ids = ids[ids != 0] if (ids != 0).any() else ids + 1  # of no target, so that there is something to compute
        with record_function("items"):
            made = rows(ids)
        table = torch.cat([made.new_zeros(1, made.shape[1]), made])
        share = torch.cat([self.share[:1], self.share[ids]])
        wanted, drawn = place[: len(targets)], place[len(targets) :] if size else targets[:0]
        with record_function("head"):
            return self.config.value(Head(states, table, items=items), wanted, drawn, share)

    @property
    def exact(self) -> bool:
        """Whether all items stand against each target, and none are drawn."""
        return not getattr(self.config, "negatives", 0)

    def draw(self, size: int, key: int) -> Tensor:
        """`size` item ids drawn with replacement: int64 [K]."""
        generator = torch.Generator().manual_seed(key % 2**63)
        uniform = torch.rand(size, dtype=torch.float64, generator=generator)
        cumulative = self.cumulative
        return torch.searchsorted(cumulative, uniform.to(cumulative.device), right=True).clamp(1, len(cumulative) - 1)
