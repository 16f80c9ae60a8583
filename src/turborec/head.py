"""The head over a catalogue: what logits are made of, and the exact softmax cross-entropy of them, in tiles.

Letters: N predicted positions, D width, V items, K negatives, P single logits to which something is added, R and C rows and
columns of a tile. The table, and the bias of the items where there is one, have V + 1 rows; row 0 is padding and never a
candidate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turborec.contract import Cells, Whole, parts_of, rows_of
from turborec.errors import UserError

TILE_BYTES = {2: 16 * 2**20, 4: 2 * 2**20, 8: 2 * 2**20}
"""Logits held at a time, by the bytes of one: a tile that stays in the processor's cache is read again without touching memory.

Narrow products in bfloat16 gain more from fewer, larger tiles (docs/log.md).
"""

ACCELERATOR_TILE_BYTES = 256 * 2**20
"""The same on an accelerator, whose cache is small and whose products want to be large: a few launches a step."""

ALIGNMENT = {"cpu": 1}
"""The columns of a tile are a multiple of this, by the kind of device; of 8 elsewhere.

Products over rows that begin at no multiple of 16 bytes take an accelerator's slowest kernels. Columns that are no item's have
a logit of minus infinity.
"""

HARMLESS = 60.0
"""Logits no larger than this, either way, are exponentiated as they are: exp(60) times any catalogue is far from overflow.

Not in float16, which ends at exp(11).
"""

_MIN_ROWS = 128  # fewer rows make the matrix products of a tile too thin


@dataclass(frozen=True)
class Head:
    """What logits are made of: state times item, plus the item's bias and what is added to single ones."""

    states: Tensor  # [N, D]
    table: Tensor  # [V + 1, D]
    bias: Tensor | None = None  # [V + 1]
    cells: Cells | None = None
    items: int | None = None  # V, where the table has rows of some of them alone

    def __post_init__(self) -> None:
        if self.cells is not None and not isinstance(parts_of(self.table), Whole):
            raise UserError("model.repeat_bias needs the whole item table in every process. Set train.exchange.shard=none.")

    def logits(self, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of targets [N] and of shared negatives [N, K] in float32, and where a negative is the target [N, K]."""
        positive = (self.states.float() * rows_of(self.table, targets).float()).sum(1)
        negative = (self.states @ rows_of(self.table, negatives, shared=True).to(self.states.dtype).T).float()
        if self.bias is not None:
            positive, negative = positive + self.bias[targets].float(), negative + self.bias[negatives].float()
        if self.cells is not None:
            rows, items, values = self.cells.rows, self.cells.items, self.cells.values.float()
            hit = items == targets[rows]
            positive = positive.index_add(0, rows[hit], values[hit])
            drawn, columns = torch.unique(negatives, return_inverse=True)
            column = torch.searchsorted(drawn, items).clamp(max=len(drawn) - 1)
            hit = drawn[column] == items
            extra = negative.new_zeros(len(negative), len(drawn))
            negative = negative + extra.index_put((rows[hit], column[hit]), values[hit])[:, columns]
        return positive, negative, negatives == targets[:, None]


class TiledCrossEntropy(torch.autograd.Function):
    """Sum of logsumexp(states @ table[1:].T) - target logit, whose gradients are formed tile by tile in the forward pass.

    States whose target is 0 count nothing. With a `focus` g each of these, c, counts (1 - exp(-c))^g times: the focal loss.

    The sum's gradient is known up to the scalar that arrives in `backward`, so each tile of logits is used at once for
    the value and for both gradients and then forgotten. Under bf16 autocast the three products of a tile run in bf16; the
    targets' own terms stay in float32 and are never part of a sum that they would be taken off again, because 1 - p of a good
    prediction would drown in bf16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        values: Tensor | None = None,
        cells: Cells | None = None,
        focus: float = 0.0,
    ) -> Tensor:
        """[N, D], [V + 1, D], [V + 1], [N], the cells' values [P] -> scalar in float32 (float64 for float64 inputs)."""
        device = states.device.type
        wide = torch.promote_types(table.dtype, torch.float32)  # a frozen table may be kept in less
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        needs_gradient = any(ctx.needs_input_grad)
        if cells is not None and values is not None:
            cells = replace(cells, values=values.to(wide))
        with torch.autocast(device, enabled=False):
            head = Head(states.to(wide), table, bias, cells)
            wanted = Wanted(focus, needs_gradient, ctx.needs_input_grad[1])
            total, *gradients = _cross_entropy(head, targets, low, wanted)
        if needs_gradient:
            ctx.save_for_backward(*gradients)
        ctx.dtype, ctx.biased, ctx.extra = states.dtype, bias is not None, cells is not None
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Scalar -> gradients of states [N, D], of the table [V + 1, D], of the bias [V + 1] and of the cells' values [P]."""
        states, table, bias, values = ctx.saved_tensors
        learnt = table * scale if ctx.needs_input_grad[1] else None
        given = (states * scale).to(ctx.dtype), learnt, bias * scale if ctx.biased else None
        return *given, None, values * scale if ctx.extra else None, None, None


@dataclass(frozen=True)
class Wanted:
    """What is computed of a cross-entropy."""

    focus: float = 0.0  # g of the focal loss
    gradient: bool = True
    of_table: bool = True  # a frozen table wants none, which is a third of the work


def _cross_entropy(head: Head, targets: Tensor, low: torch.dtype, wanted: Wanted) -> tuple[Tensor, ...]:
    """The value and, where asked for, the gradients of states, table, bias and cells, a block of rows at a time.

    A process that holds some rows of the table takes the states of all processes against them. What goes between them is
    states, a sum for each state and the states' gradients, never the table or its gradient.
    """
    parts, table = parts_of(head.table), head.table
    states, targets = parts.together(head.states, targets)
    head = replace(head, states=states)
    tiles, correct = _Tiles(head, low, targets), _correct(head, targets)
    wide, losses = states.dtype, states.new_empty(len(states))
    counted = (targets != 0).to(wide)
    rows = len(table) + tiles.spare
    state_gradient = torch.empty_like(states)
    table_gradient = states.new_zeros((rows, table.shape[1]) if wanted.of_table else (0,))
    bias_gradient, cell_gradient = states.new_zeros(parts.total + tiles.spare), states.new_zeros(tiles.added)
    # On an accelerator a pass over the tile is cheaper than to wait for the answer.
    peaked = low == torch.float16 or states.device.type != "cpu" or not _largest(head) <= HARMLESS
    for number, start in enumerate(range(0, len(states), tiles.rows)):
        here = slice(start, start + tiles.rows)
        block = states[here]
        low_block = block.to(low)
        peak, mass, kept = _normaliser(low_block, tiles, number, wide, peaked)
        if peaked and (top := parts.greatest(peak)) is not peak:
            shift = (peak - top).to(wide).exp()
            kept, peak, mass = kept if kept is None else (kept * shift).to(low), top, mass * shift.squeeze(1)
        mass = parts.summed(mass)
        # Against all other items together the target stands alone, so nothing of a good prediction is a small difference.
        behind = peak.squeeze(1) + mass.log() - correct[here]
        losses[here] = torch.logaddexp(behind, torch.zeros_like(behind)) * counted[here]
        if wanted.focus:
            losses[here], slope = _focused(losses[here], wanted.focus)
            counted[here] *= slope
        if not wanted.gradient:
            continue
        counted[here] *= behind.sigmoid()  # 1 - p of the target, which all others share
        # Weighting the thin products spares a pass over the tile.
        weight = counted[here] / mass.clamp(min=torch.finfo(wide).tiny)
        scaled = (block * weight[:, None]).to(low)
        gradient = torch.zeros_like(block)
        for at, (lo, tile) in enumerate(tiles):
            whole = kept if kept is not None else _exponentials(tiles.logits(low_block, number, at), peak if peaked else None)
            share = whole[:, : len(tile)]
            _accumulate(gradient, share, tile)
            if wanted.of_table:
                _accumulate(table_gradient[lo : lo + len(tile)], share.T, scaled)
            if head.bias is not None:
                bias_gradient[parts.first + lo :][: len(tile)] += share.T @ weight.to(low)
            if tiles.added:
                placed = tiles.cells[number][at]
                found = whole.view(-1).index_select(0, placed.places).to(wide)
                cell_gradient[placed.which] = found * weight.index_select(0, placed.rows)
        state_gradient[here] = gradient.mul_(weight[:, None])
    if wanted.of_table:
        table_gradient = table_gradient[: len(table)]
    bias_gradient = bias_gradient[: parts.total]
    _take_off_targets(head, targets, counted, (state_gradient, table_gradient, bias_gradient, cell_gradient))
    total = parts.own(losses).sum()
    return total, parts.returned(state_gradient), table_gradient, bias_gradient, cell_gradient


def _correct(head: Head, targets: Tensor) -> Tensor:
    """The logit of each state's target, in the states' own type: [N]."""
    parts = parts_of(head.table)
    here = parts.held(targets)
    found = head.states.new_zeros(len(head.states))
    found[here] = (head.states[here] * head.table[targets[here] - parts.first].to(found.dtype)).sum(1)
    if head.bias is not None:
        found[here] += head.bias[targets[here]]
    if head.cells is not None:
        hit = head.cells.items == targets[head.cells.rows]
        found.index_add_(0, head.cells.rows[hit], head.cells.values[hit])
    return parts.summed(found)


def _take_off_targets(head: Head, targets: Tensor, counted: Tensor, gradients: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Subtract from gradients, in place, what comes of the targets' own logits: 1 - p of each, as often as it is counted."""
    states, table, bias, cells = gradients
    parts = parts_of(head.table)
    here = parts.held(targets)
    local, counts = targets[here] - parts.first, counted[here]
    states[here] -= head.table[local].to(states.dtype) * counts[:, None]
    if len(table):
        table.index_add_(0, local, head.states[here] * counts[:, None], alpha=-1)
    if head.bias is not None:
        bias.index_add_(0, targets[here], counts, alpha=-1)
    if head.cells is not None:
        hit = head.cells.items == targets[head.cells.rows]
        cells -= hit.to(cells.dtype) * counted[head.cells.rows]


def _focused(losses: Tensor, focus: float) -> tuple[Tensor, Tensor]:
    """(1 - p)^g c of each cross-entropy c = -log p, and its derivative by c: [R] -> [R], [R]."""
    missed = -torch.expm1(-losses)  # 1 - p, exact where p is near to one
    missed = missed.clamp(min=0)
    power = missed**focus
    # g (1 - p)^(g - 1) p c, with c / (1 - p) -> 1 where p goes to one, and no power of a negative number.
    ratio = torch.where(missed > 0, losses / missed.clamp(min=torch.finfo(missed.dtype).tiny), 1.0)
    return power * losses, power * (1 + focus * (-losses).exp() * ratio)


class _Tiles:
    """The rows of the table that are here, cut into tiles, and the logits of blocks of so many `rows` of states.

    A target's own logit is minus infinity: it is known apart, and better.
    """

    def __init__(self, head: Head, low: torch.dtype, targets: Tensor) -> None:
        parts, table = parts_of(head.table), head.table
        self.targets = targets - parts.first
        first = 1 if parts.first == 0 else 0  # of the rows that are here: row 0 of the table is padding
        multiple = ALIGNMENT.get(table.device.type, 8)
        self.rows, columns = _tile(parts.most, tile_bytes(table.device, low) // low.itemsize, multiple)
        self.spare = -(len(table) - first) % multiple  # columns of no item, behind the others
        bias = None if head.bias is None else head.bias[parts.first + first :][: len(table) - first].to(low)
        # A table that is kept in this type is not copied to make it longer: the last tile's logits are, which are fewer.
        self.beyond = self.spare if table.dtype == low else 0
        if self.spare and not self.beyond:
            items = table[first:]
            table = table.new_zeros(len(items) + self.spare, table.shape[1], dtype=low)
            table[: len(items)] = items
            bias = F.pad(table.new_zeros(len(items)) if bias is None else bias, (0, self.spare), value=-math.inf)
        else:
            table = table[first:].to(low)
        self.tables = torch.split(table, columns)
        self.starts = [first + number * columns for number in range(len(self.tables))]
        self.biases = [None] * len(self.tables) if bias is None else torch.split(bias, columns)
        self.added = 0 if head.cells is None else len(head.cells.items)
        self.cells: list[list[_Placed]] = []  # by block and tile
        if head.cells is not None:
            cells = replace(head.cells, items=head.cells.items - first, values=head.cells.values.to(low))
            starts = torch.arange(0, len(head.states) + self.rows, self.rows, device=cells.rows.device)
            bounds = torch.searchsorted(cells.rows, starts).tolist()
            widths = [*(len(t) for t in self.tables[:-1]), len(self.tables[-1]) + self.beyond]
            self.cells = [_place(cells, *bound, n * self.rows, widths) for n, bound in enumerate(pairwise(bounds))]

    def __len__(self) -> int:
        return len(self.tables)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return zip(self.starts, self.tables, strict=True)

    def logits(self, block: Tensor, number: int, at: int) -> Tensor:
        """Of block `number` [R, D] against a tile: [R, C]."""
        table, bias = self.tables[at], self.biases[at]
        more = self.beyond if at + 1 == len(self.tables) else 0
        logits = block.new_empty(len(block), len(table) + more)
        if bias is None:
            torch.mm(block, table.T, out=logits[:, : len(table)])
        else:
            torch.addmm(bias, block, table.T, out=logits[:, : len(table)])
        if more:
            logits[:, len(table) :] = -math.inf
        if self.added:
            placed = self.cells[number][at]
            logits.view(-1).index_add_(0, placed.places, placed.values)
        own = self.targets[number * self.rows :][: len(block)] - self.starts[at]
        column = own.clamp(0, len(table) - 1)[:, None]
        there = logits.gather(1, column).masked_fill_(((own >= 0) & (own < len(table)))[:, None], -math.inf)
        return logits.scatter_(1, column, there)


@dataclass(frozen=True)
class _Placed:
    """Those of the cells that fall into one tile of logits."""

    rows: Tensor  # int64 [Q], of the tile
    places: Tensor  # int64 [Q], of the tile flattened
    which: slice | Tensor  # of all cells
    values: Tensor  # [Q]


def _place(cells: Cells, begin: int, end: int, start: int, widths: Sequence[int]) -> list[_Placed]:
    """The cells begin..end - 1 of a block of rows from `start` on, for tiles of these widths; items are counted from 0."""
    rows, items, values = cells.rows[begin:end] - start, cells.items[begin:end], cells.values[begin:end]
    if len(widths) == 1:
        return [_Placed(rows, rows * widths[0] + items, slice(begin, end), values)]
    tile = items // widths[0]
    counts = tile.bincount(minlength=len(widths)).tolist()
    orders = torch.split(tile.argsort(), counts)
    return [
        _Placed(rows[order], rows[order] * width + items[order] % widths[0], order + begin, values[order])
        for order, width in zip(orders, widths, strict=True)
    ]


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, in one pass where they are of one type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and total.dtype == torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


def tile_bytes(device: torch.device, dtype: torch.dtype) -> int:
    """How many bytes of logits are held at a time."""
    return TILE_BYTES[dtype.itemsize] if device.type == "cpu" else ACCELERATOR_TILE_BYTES


def _tile(items: int, capacity: int, multiple: int = 1) -> tuple[int, int]:
    """Rows and columns of a tile of so many logits: all items while a block of rows of them fits, else a square-ish piece."""
    items += -items % multiple
    if items * _MIN_ROWS <= capacity:
        return capacity // items, items
    return 4 * _MIN_ROWS, max(multiple, capacity // (4 * _MIN_ROWS) // multiple * multiple)


def _largest(head: Head) -> float:
    """No logit is larger than this, either way (Cauchy and Schwarz): a pass over two thin tables."""
    longest = parts_of(head.table).greatest(head.table.norm(dim=1).amax())
    largest = head.states.norm(dim=1).amax() * longest if len(head.states) else head.states.new_zeros(())
    for added in (head.bias, None if head.cells is None else head.cells.values):
        largest = largest if added is None or not len(added) else largest + added.abs().amax()
    return float(largest)


def _normaliser(
    block: Tensor, tiles: _Tiles, number: int, wide: torch.dtype, peaked: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each row's shift [R, 1] and sum of exp(logit - shift) [R]; with one tile, those exponentials [R, V] too.

    The shift is the row's largest logit, or 0 where logits are not `peaked` and two passes over each tile can be spared.
    """
    peaks, masses, exponentials = [], [], None
    for at in range(len(tiles)):
        logits = tiles.logits(block, number, at)
        # Where a target is alone in its tile there is nothing else: no number, but one that can be subtracted.
        least = torch.finfo(logits.dtype).min
        peaks.append(logits.amax(1, keepdim=True).clamp_(min=least) if peaked else logits.new_zeros(len(block), 1))
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
