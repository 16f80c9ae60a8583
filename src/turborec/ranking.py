"""Ranks of targets among the whole catalogue, found by counting, in tiles of users x items.

Letters: U users, P (user, target) pairs, B users of a batch, N their pairs, M the most targets any of them has, S their
seen cells, V items, W items of a tile. Counts are integers, so the tallies of several processes add up to that of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turborec.contract import Scorer
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import Part, Store
from turborec.errors import UserError
from turborec.tiles import TopK, cells_by_tile, distinct, hide, tile_edges

Int64 = NDArray[np.int64]


class UserBatch(Protocol):
    """A batch whose rows are users of a store."""

    @property
    def users(self) -> Tensor:
        """Store rows: int64 [B]."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        ...


@dataclass(frozen=True)
class Targets:
    """What there is to rank: each user's distinct items of a part."""

    users: Int64  # [U] store rows, ascending
    offsets: Int64  # [U + 1]
    items: Int64  # [P], ascending within a user
    events: Int64  # [U] events of the history, which is everything before the part
    among: NDArray[np.bool_] | None = None  # [V + 1] what is ranked; the whole catalogue when None
    moments: Int64 | None = None  # [U] when each user asks; what was first seen later is no candidate, unless it is a target

    @classmethod
    def of(cls, store: Store, part: Part, users: Int64, among: NDArray[np.bool_] | None = None) -> Self:
        """The targets of `users`, who ascend and have some in `part`; those alone that are `among` what is ranked."""
        starts, ends = store.span(part, users)
        rows, items = _events(store, starts, ends)
        if among is not None:
            rows, items = rows[among[items]], items[among[items]]
        size = store.num_items + 1
        rows, items = np.divmod(distinct(rows * size + items), size)
        offsets = np.searchsorted(rows, np.arange(len(users) + 1)).astype(np.int64)
        if (empty := np.diff(offsets) == 0).any():
            raise ValueError(f"The user at row {users[empty][0]} has no event in {part}")
        return cls(users, offsets, items, starts - store.histories.offsets[users], among)


@dataclass(frozen=True)
class Shown:
    """What the users of a part were shown in it, and clicked: I impressions, C items of all of them."""

    numbers: Int64  # [I] in the store
    users: Int64  # [I] places in `Targets`, ascending
    offsets: Int64  # [I + 1]
    items: Int64  # [C]
    clicked: NDArray[np.bool_]  # [C]

    @classmethod
    def of(cls, store: Store, part: Part, users: Int64) -> Self:
        """What came after all that the users had before the part, and not after their last event of it."""
        log = store.impressions
        if log is None:
            raise UserError(
                "evaluation.metrics asks for impressions, and these data do not say what was shown: leave out the metrics "
                "whose names begin with impression_, or choose a source such as mind."
            )
        if not len(users):
            nothing = np.zeros(0, dtype=np.int64)
            return cls(nothing, nothing, np.zeros(1, dtype=np.int64), nothing, nothing > 0)
        times, (starts, ends) = store.histories.times, store.span(part, users)
        place = np.searchsorted(users, log.users).clip(max=len(users) - 1)
        after = np.where(starts > store.histories.offsets[users], times[starts - 1], UNKNOWN_TIME)
        here = (users[place] == log.users) & (log.times > after[place]) & (log.times <= times[ends - 1][place])
        numbers = np.flatnonzero(here).astype(np.int64)
        _, cells = _ranges(log.offsets[numbers], log.offsets[numbers + 1])
        sizes = np.diff(log.offsets)[numbers]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls(numbers, place[numbers], offsets, log.items[cells].astype(np.int64), log.clicked[cells] > 0)


@dataclass(frozen=True)
class Tally:
    """Counts over the whole catalogue and, apart from them, over the seen items: masking subtracts the latter.

    A seen item is one of the history that is no target: a target stays a candidate wherever else it occurs.
    """

    ranked: Int64  # [U] how often the user was ranked: once, when all is done
    broken: Int64  # [U] 1 where a score was not a number
    seen: Int64  # [U] distinct seen items
    greater: Int64  # [P] other items that score higher than the target
    equal: Int64  # [P] other items that score the same
    greater_seen: Int64  # [P] the seen ones among them
    equal_seen: Int64  # [P]
    listed: Int64  # [2, K, V + 1] how often an item is among the best k, for K values of k; history masked, kept
    scores: NDArray[np.float64]  # [C] of what was shown

    @classmethod
    def empty(cls, targets: Targets, cutoffs: int, items: int, shown: Shown | None = None) -> Self:
        """Nothing counted yet, for `cutoffs` values of k."""
        users, pairs = (len(targets.users),), (len(targets.items),)
        shapes = (users, users, users, pairs, pairs, pairs, pairs, (2, cutoffs, items + 1))
        arrays: list[NDArray[Any]] = [np.zeros(shape, dtype=np.int64) for shape in shapes]
        return cls(*arrays, *[np.zeros(0 if shown is None else len(shown.items))])

    def arrays(self) -> list[NDArray[Any]]:
        """All of it; where several processes ranked a share of the users each, sum these over them in place."""
        return [getattr(self, field.name) for field in fields(self)]


class Ranker:
    """Counts for the users of one batch after the other."""

    def __init__(
        self,
        store: Store,
        before: Part,
        targets: Targets,
        cutoffs: Sequence[int],
        memory: int,
        device: torch.device,
        shown: Shown | None = None,
    ) -> None:
        """`cutoffs`: the lengths of the top lists to tally, ascending. `memory`: bytes of scores that may be held.

        What a user had before the part `before` is seen. What was `shown` is scored besides.
        """
        self.store, self.before, self.targets = store, before, targets
        self.cutoffs, self.memory, self.device = cutoffs, memory, device
        self.shown = shown
        self.tally = Tally.empty(targets, len(cutoffs), store.num_items, shown)
        self._left_out = None if targets.among is None else torch.from_numpy(np.flatnonzero(~targets.among)).to(device)
        self._first_seen = None if targets.moments is None else torch.from_numpy(store.first_seen).to(device)

    @torch.no_grad()
    def rank(self, scorer: Scorer, batch: UserBatch) -> None:
        """Add the counts of one batch to the tally."""
        pairs = _Pairs.of(self.targets, batch.users.cpu().numpy())
        seen = self._seen(pairs)
        size = len(pairs.places)
        edges = tile_edges(size, self.store.num_items, self.device)
        cells, cell_keys = self._shown(pairs)
        wanted_cells, seen_cells, shown_cells = (
            cells_by_tile(keys, size, edges, self.device) for keys in (pairs.keys, seen, cell_keys)
        )
        tiles = list(zip(pairwise(edges), wanted_cells, seen_cells, shown_cells, strict=True))
        moments = None if self.targets.moments is None else torch.from_numpy(self.targets.moments[pairs.places]).to(self.device)
        masked, kept = (TopK(size, min(max(self.cutoffs, default=1), self.store.num_items), self.device) for _ in range(2))
        broken = torch.zeros(size, dtype=torch.bool, device=self.device)
        wanted_scores, seen_scores, shown_scores, held = [], [], [], []
        state = scorer.users(batch.to(self.device))
        for (lo, hi), wanted_here, seen_here, shown_here in tiles:
            tile = scorer.score(state, lo, hi)
            broken |= tile.amax(1).isnan()
            shown_scores.append(tile.flatten().index_select(0, shown_here))
            tile = self._among(tile, lo, hi, wanted_here, moments)
            flat = tile.flatten()  # single places are taken faster than pairs of row and column
            wanted_scores.append(flat.index_select(0, wanted_here))
            seen_scores.append(flat.index_select(0, seen_here))
            if self.cutoffs:
                masked.offer(hide(tile, seen_here), lo)
                kept.offer(tile, lo)
            if size * self.store.num_items * tile.element_size() <= self.memory:
                held.append(tile)
        # A target ties with its equals only if its score is the very number that its tile holds: a product of another
        # shape may round differently. So targets' scores are taken from the tiles in a first pass and compared with the
        # same tiles in a second one: held ones where memory allows it, else ones computed again in the same shape.
        counts = _Counts(pairs.table(torch.cat(wanted_scores)), pairs.slots(self.device))
        for number, ((lo, hi), wanted_here, _, _) in enumerate(tiles):
            counts.add(held[number] if held else self._among(scorer.score(state, lo, hi), lo, hi, wanted_here, moments))
        self.tally.scores[cells] = torch.cat(shown_scores).double().cpu().numpy()
        rows = seen % size
        counts.add_seen(torch.from_numpy(rows).to(self.device), torch.cat(seen_scores))
        self._record(pairs, counts, broken, np.bincount(rows, minlength=size))
        for place, top in enumerate((masked, kept)):
            self._record_list(place, top)

    def _among(self, tile: Tensor, lo: int, hi: int, targets: Tensor, moments: Tensor | None) -> Tensor:
        """Scores of items lo..hi-1; -inf for those that are not ranked, which are above nothing and are not listed."""
        if moments is not None and self._first_seen is not None:
            scores = tile.flatten()
            tile = tile.masked_fill(self._first_seen[lo:hi] > moments[:, None], -math.inf)
            tile.view(-1)[targets] = scores[targets]
        if self._left_out is None:
            return tile
        here = self._left_out[(self._left_out >= lo) & (self._left_out < hi)] - lo
        return tile.index_fill(1, here, -math.inf)

    def _shown(self, pairs: "_Pairs") -> tuple[Int64, Int64]:
        """Numbers of the cells that the batch was shown, and their keys item * B + row, ascending: [N], [N]."""
        if self.shown is None:
            return pairs.places[:0], pairs.places[:0]
        begin, end = (np.searchsorted(self.shown.users, pairs.places, side) for side in ("left", "right"))
        rows, cells = _ranges(self.shown.offsets[begin], self.shown.offsets[end])
        keys = self.shown.items[cells] * len(pairs.places) + rows
        order = np.argsort(keys, kind="stable")
        return cells[order], keys[order]

    def _seen(self, pairs: "_Pairs") -> Int64:
        """The seen cells of a batch as ascending keys item * B + row: [S]."""
        users, among = self.targets.users[pairs.places], self.targets.among
        rows, items = _events(self.store, self.store.histories.offsets[users], self.store.span(self.before, users)[0])
        if among is not None:
            rows, items = rows[among[items]], items[among[items]]
        keys = distinct(items * len(users) + rows)
        # All keys of pairs that are among them, found by their places: a few in many.
        places = np.searchsorted(keys, pairs.keys)
        targets = places[keys.take(places, mode="clip") == pairs.keys] if len(keys) else places[:0]
        return np.delete(keys, targets)

    def _record(self, pairs: "_Pairs", counts: "_Counts", broken: Tensor, seen: Int64) -> None:
        tally = self.tally
        np.add.at(tally.ranked, pairs.places, 1)
        tally.broken[pairs.places] |= broken.cpu().numpy()
        tally.seen[pairs.places] += seen
        for name in ("greater", "equal", "greater_seen", "equal_seen"):
            getattr(tally, name)[pairs.pair] += getattr(counts, name).cpu().numpy()[pairs.row, pairs.slot]

    def _record_list(self, place: int, top: TopK) -> None:
        for row, k in enumerate(self.cutoffs):
            items = top.items[:, :k].flatten().cpu().numpy()
            self.tally.listed[place, row] += np.bincount(items[items > 0], minlength=self.store.num_items + 1)


@dataclass(frozen=True)
class _Pairs:
    """The (user, target) pairs of a batch, by (item, row)."""

    places: Int64  # [B] where the users stand in `Targets`
    pair: Int64  # [N] number of the pair in `Targets`
    row: Int64  # [N] the user's row in the batch
    slot: Int64  # [N] the target's place among its user's own, from 0
    keys: Int64  # [N] item * B + row, ascending

    @classmethod
    def of(cls, targets: Targets, users: Int64) -> Self:
        """The pairs of the users at these store rows."""
        places = np.searchsorted(targets.users, users)
        if not np.array_equal(targets.users.take(places, mode="clip"), users):
            raise ValueError("A batch holds users that are not to be evaluated")
        row, pair = _ranges(targets.offsets[places], targets.offsets[places + 1])
        slot = pair - targets.offsets[places][row]
        keys = targets.items[pair] * len(users) + row
        order = np.argsort(keys)
        return cls(places, pair[order], row[order], slot[order], keys[order])

    def table(self, scores: Tensor) -> Tensor:
        """[N] -> [B, M], NaN where a user has fewer targets."""
        table = scores.new_full((len(self.places), int(self.slot.max()) + 1), math.nan)
        table[torch.from_numpy(self.row), torch.from_numpy(self.slot)] = scores
        return table

    def slots(self, device: torch.device) -> list[slice | Tensor]:
        """For each of the M slots the rows that fill it; a slice where all do, so that no tile is copied."""
        counts = np.bincount(self.row)
        return [
            slice(None) if slot < counts.min() else torch.from_numpy(np.flatnonzero(counts > slot)).to(device)
            for slot in range(counts.max())
        ]


class _Counts:
    """How many items score higher than, or the same as, each target of a batch: int64 [B, M] each."""

    def __init__(self, scores: Tensor, slots: list[slice | Tensor]) -> None:
        self.scores, self.slots = scores, slots
        self.greater, self.equal, self.greater_seen, self.equal_seen = (
            torch.zeros(scores.shape, dtype=torch.int64, device=scores.device) for _ in range(4)
        )
        self.equal -= 1  # a target is not its own rival

    def add(self, tile: Tensor) -> None:
        """Count the items of a tile [B, W]."""
        for slot, rows in enumerate(self.slots):
            # Comparisons written as numbers are summed six times as fast as booleans, and exactly: W is less than 2^24.
            scores, target = tile[rows], self.scores[rows, slot, None]
            held = torch.empty_like(scores)
            self.greater[rows, slot] += torch.gt(scores, target, out=held).sum(1).long()
            self.equal[rows, slot] += torch.eq(scores, target, out=held).sum(1).long()

    def add_seen(self, rows: Tensor, scores: Tensor) -> None:
        """Count seen items: the row and the score of each, [S]."""
        for slot in range(len(self.slots)):
            target = self.scores[:, slot].index_select(0, rows)
            self.greater_seen[:, slot].index_add_(0, rows, (scores > target).long())
            self.equal_seen[:, slot].index_add_(0, rows, (scores == target).long())


def _events(store: Store, starts: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """The row (0..N - 1) and the item of every event in N spans."""
    rows, positions = _ranges(starts, ends)
    return rows, store.histories.items[positions].astype(np.int64)


def _ranges(starts: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """starts[i]..ends[i] - 1 for every i, one after the other, each with its i."""
    lengths = ends - starts
    rows = np.repeat(np.arange(len(starts)), lengths)
    return rows, np.arange(len(rows)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
