"""Losses over a catalogue: (states, item table, targets) -> the sum over targets, written in logit space.

Letters: N predicted positions, D width, V items, K negatives. The table, and the bias of the items where there is one, have
V + 1 rows; row 0 is padding and never a candidate.
Each loss is a frozen config whose `build` gives the module that computes it.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function

from turborec.contract import parts_of, rows_of
from turborec.recipe import Config

logger = logging.getLogger("turborec")

TILE_BYTES = {2: 16 * 2**20, 4: 2 * 2**20, 8: 2 * 2**20}
"""Logits held at a time, by the bytes of one: a tile that stays in the processor's cache is read again without touching memory.

Narrow products in bfloat16 gain more from fewer, larger tiles (docs/log.md).
"""

ACCELERATOR_TILE_BYTES = 256 * 2**20
"""The same on an accelerator, whose cache is small and whose products want to be large: a few launches a step."""

HARMLESS = 60.0
"""Logits no larger than this, either way, are exponentiated as they are: exp(60) times any catalogue is far from overflow.

Not in float16, which ends at exp(11).
"""

_MIN_ROWS = 128  # fewer rows make the matrix products of a tile too thin


class CrossEntropy(Config):
    """Exact softmax cross-entropy over all items, never holding more than a tile of logits."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def build(self, counts: Tensor) -> "Criterion":
        """`counts` [V + 1]: training events of each item (not needed here)."""
        return Criterion(self, counts)

    def value(self, head: "Head", targets: Tensor, negatives: Tensor, share: Tensor) -> Tensor:
        """[N] -> scalar."""
        total: Tensor = TiledCrossEntropy.apply(head.states, head.table, head.bias, targets)  # type: ignore[no-untyped-call]
        return total


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
        rate = min(1.0, len(negatives) / max(1, parts_of(head.table).total - 2))
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


CatalogueLoss = Annotated[CrossEntropy | SampledSoftmax | GBCE | BPR | Auto, Field(discriminator="kind")]


class Criterion(nn.Module):
    """A loss together with the distribution its negatives are drawn from."""

    share: Tensor
    cumulative: Tensor

    def __init__(self, config: CrossEntropy | SampledSoftmax | GBCE | BPR, counts: Tensor) -> None:
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

    def forward(self, states: Tensor, table: Tensor, targets: Tensor, key: int, bias: Tensor | None = None) -> Tensor:
        """[N, D], [V + 1, D], [N], bias [V + 1] -> scalar sum.

        `key` is the step's, so that all processes draw the same negatives.
        """
        size = getattr(self.config, "negatives", 0)
        with record_function("head"):
            negatives = self.draw(size, key) if size else targets[:0]
            return self.config.value(Head(states, table, bias), targets, negatives, self.share)

    def draw(self, size: int, key: int) -> Tensor:
        """`size` item ids drawn with replacement: int64 [K]."""
        generator = torch.Generator().manual_seed(key % 2**63)
        uniform = torch.rand(size, dtype=torch.float64, generator=generator)
        cumulative = self.cumulative
        return torch.searchsorted(cumulative, uniform.to(cumulative.device), right=True).clamp(1, len(cumulative) - 1)


@dataclass(frozen=True)
class Head:
    """What logits are made of: state times item, plus the item's bias where there is one."""

    states: Tensor  # [N, D]
    table: Tensor  # [V + 1, D]
    bias: Tensor | None = None  # [V + 1]

    def logits(self, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of targets [N] and of shared negatives [N, K] in float32, and where a negative is the target [N, K]."""
        positive = (self.states.float() * rows_of(self.table, targets).float()).sum(1)
        negative = (self.states @ rows_of(self.table, negatives, shared=True).to(self.states.dtype).T).float()
        if self.bias is not None:
            positive, negative = positive + self.bias[targets].float(), negative + self.bias[negatives].float()
        return positive, negative, negatives == targets[:, None]


class TiledCrossEntropy(torch.autograd.Function):
    """Sum of logsumexp(states @ table[1:].T) - target logit, whose gradients are formed tile by tile in the forward pass.

    The sum's gradient is known up to the scalar that arrives in `backward`, so each tile of logits is used at once for
    the value and for both gradients and then forgotten. Under bf16 autocast the three products of a tile run in bf16;
    the normaliser and the targets' own terms stay in float32, because 1 - p of a good prediction would drown in bf16.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """[N, D], [V + 1, D], [V + 1], [N] -> scalar in float32 (float64 for float64 inputs)."""
        device = states.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        needs_gradient = any(ctx.needs_input_grad)
        with torch.autocast(device, enabled=False):
            total, *gradients = _cross_entropy(Head(states.to(table.dtype), table, bias), targets, low, needs_gradient)
        if needs_gradient:
            ctx.save_for_backward(*gradients)
        ctx.dtype, ctx.biased = states.dtype, bias is not None
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """Scalar -> gradients of states [N, D], of the table [V + 1, D] and of the bias [V + 1]."""
        states, table, bias = ctx.saved_tensors
        return (states * scale).to(ctx.dtype), table * scale, bias * scale if ctx.biased else None, None


def _cross_entropy(head: Head, targets: Tensor, low: torch.dtype, needs_gradient: bool) -> tuple[Tensor, ...]:
    """The value and, where asked for, the gradients of states, table and bias, a block of rows at a time.

    A process that holds some rows of the table takes the states of all processes against them. What goes between them is
    states, a sum for each state and the states' gradients, never the table or its gradient.
    """
    parts, table = parts_of(head.table), head.table
    states, targets = parts.together(head.states, targets)
    head = Head(states, table, head.bias)
    first = 1 if parts.first == 0 else 0  # of the rows that are here: row 0 of the table is padding
    rows, columns = _tile(parts.most, tile_bytes(table.device, low) // low.itemsize)
    tiles = torch.split(table[first:].to(low), columns)
    starts = [first + number * columns for number in range(len(tiles))]
    biases = [
        None if head.bias is None else head.bias[parts.first + lo :][: len(t)].to(low)
        for lo, t in zip(starts, tiles, strict=True)
    ]
    losses = table.new_empty(len(states))
    state_gradient, table_gradient = torch.empty_like(states), torch.zeros_like(table)
    bias_gradient = table.new_zeros(parts.total)
    peaked = low == torch.float16 or not _largest(head) <= HARMLESS
    for start in range(0, len(states), rows):
        block = states[start : start + rows]
        low_block = block.to(low)
        peak, mass, kept = _normaliser(low_block, tiles, biases, table.dtype, peaked)
        if peaked and (top := parts.greatest(peak)) is not peak:
            shift = (peak - top).to(table.dtype).exp()
            kept, peak, mass = kept if kept is None else (kept * shift).to(low), top, mass * shift.squeeze(1)
        mass = parts.summed(mass)
        losses[start : start + rows] = peak.squeeze(1) + mass.log()
        if not needs_gradient:
            continue
        # Dividing the thin products by the mass spares a pass over the tile.
        scaled = (block / mass[:, None]).to(low)
        gradient = torch.zeros_like(block)
        for lo, tile, bias in zip(starts, tiles, biases, strict=True):
            share = kept if kept is not None else _exponentials(_logits(low_block, tile, bias), peak if peaked else None)
            _accumulate(gradient, share, tile)
            _accumulate(table_gradient[lo : lo + len(tile)], share.T, scaled)
            if bias is not None:
                bias_gradient[parts.first + lo :][: len(tile)] += share.T @ (1 / mass).to(low)
        state_gradient[start : start + rows] = gradient.div_(mass[:, None])
    here = parts.held(targets)
    local, correct = targets[here] - parts.first, losses.new_zeros(len(losses))
    embedded = table[local]
    correct[here] = (states[here] * embedded).sum(1)
    state_gradient[here] -= embedded
    table_gradient.index_add_(0, local, states[here], alpha=-1)
    if head.bias is not None:
        correct[here] += head.bias[targets[here]]
        bias_gradient.index_add_(0, targets[here], bias_gradient.new_ones(len(local)), alpha=-1)
    total = parts.own(losses - parts.summed(correct)).sum()
    return total, parts.returned(state_gradient), table_gradient, bias_gradient


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, in one pass where they are of one type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _logits(block: Tensor, tile: Tensor, bias: Tensor | None) -> Tensor:
    """[R, D], [C, D], [C] -> [R, C]."""
    return block @ tile.T if bias is None else torch.addmm(bias, block, tile.T)


def tile_bytes(device: torch.device, dtype: torch.dtype) -> int:
    """How many bytes of logits are held at a time."""
    return TILE_BYTES[dtype.itemsize] if device.type == "cpu" else ACCELERATOR_TILE_BYTES


def _tile(items: int, capacity: int) -> tuple[int, int]:
    """Rows and columns of a tile of so many logits: all items while a block of rows of them fits, else a square-ish piece."""
    if items * _MIN_ROWS <= capacity:
        return capacity // items, items
    return 4 * _MIN_ROWS, capacity // (4 * _MIN_ROWS)


def _largest(head: Head) -> float:
    """No logit is larger than this, either way (Cauchy and Schwarz): a pass over two thin tables."""
    longest = parts_of(head.table).greatest(head.table.norm(dim=1).amax())
    largest = head.states.norm(dim=1).amax() * longest if len(head.states) else head.states.new_zeros(())
    return float(largest if head.bias is None else largest + head.bias.abs().amax())


def _normaliser(
    block: Tensor, tiles: Sequence[Tensor], biases: Sequence[Tensor | None], wide: torch.dtype, peaked: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each row's shift [R, 1] and sum of exp(logit - shift) [R]; with one tile, those exponentials [R, V] too.

    The shift is the row's largest logit, or 0 where logits are not `peaked` and two passes over each tile can be spared.
    """
    peaks, masses, exponentials = [], [], None
    for tile, bias in zip(tiles, biases, strict=True):
        logits = _logits(block, tile, bias)
        peaks.append(logits.amax(1, keepdim=True) if peaked else logits.new_zeros(len(block), 1))
        exponentials = _exponentials(logits, peaks[-1] if peaked else None)
        masses.append(exponentials.sum(1, dtype=wide))
    if len(tiles) == 1:
        return peaks[0], masses[0], exponentials
    peak = torch.cat(peaks, dim=1).amax(1, keepdim=True)
    rescaled = torch.stack(masses, dim=1) * (torch.cat(peaks, dim=1) - peak).to(wide).exp()
    return peak, rescaled.sum(1), None


def _exponentials(logits: Tensor, shift: Tensor | None) -> Tensor:
    """exp(logit - shift), in place."""
    return (logits if shift is None else logits.sub_(shift)).exp_()
