"""What is counted of the events of each period, by groups of users: all that the statistics of drift are made of.

Letters: U users, E events, V items, P periods, G groups of users, K bins.

Users are dealt to groups by chance, so that a sample of groups is a sample of users; the counts of a group are added up once,
and a resample costs a product of matrices, however many events there are.

What grows with the length of a period, as the events of a user in it and the share of what is new do, is counted in stretches
of it that are as long as the shortest period, so that months, and periods of as many events each, can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.drift.categories import Categories
from turborec.drift.periods import Periods

Int64 = NDArray[np.int64]
Counts = NDArray[np.float32]

BLOCK = 2**22
"""Events looked at together, which bounds the memory of it."""
ROOM = 2**27
"""Numbers in the counts of items at most, which bounds the groups."""
MOST_GROUPS, FEWEST_GROUPS = 256, 16

DECILES = 10
GAP_BINS, GAP_STEP = 96, 0.25  # of logarithms of 1 + seconds: up to e^24 seconds
LENGTH_BINS, LENGTH_STEP = 64, 0.25  # of logarithms to base 2 of counts

HOUR, DAY, WEEK = 3600, 86_400, 7 * 86_400


@dataclass(frozen=True)
class Log:
    """Events in the order of users and, of each, of time."""

    offsets: Int64  # [U + 1]
    items: NDArray[Any]  # [E]: 1..V
    times: Int64  # [E]
    num_items: int
    values: NDArray[np.float32] | None = None  # [E]: the ratings, NaN where nobody knows; None where they are not kept
    categories: Categories | None = None


@dataclass(frozen=True)
class Counted:
    """The counts of every period and group: float32 [P, G, K] by what is counted."""

    tables: dict[str, Counts]
    events: Int64  # [P]
    users: Int64  # [P]: with an event in the period


def count(log: Log, periods: Periods, seed: int = 0, levels: NDArray[np.float32] | None = None) -> Counted:
    """Count the events of each period. Items and users are new in a stretch if the log has nothing of them before it.

    Ratings are counted where there are `levels` of them (`ratings.levels`), categories where the log has them.
    """
    groups = int(np.clip(ROOM // (len(periods) * (log.num_items + 1)), FEWEST_GROUPS, MOST_GROUPS))
    first = _first_seen(log)
    sizes = {"items": log.num_items + 1, "new items": 2, "new users": 2, "gap": GAP_BINS, "hour": 24, "weekday": 7}
    sizes |= {"activity": LENGTH_BINS}
    sizes |= {"ratings": 2 * len(levels) + 1} if levels is not None else {}
    sizes |= {"categories": max(1, len(log.categories.names))} if log.categories else {}
    tables = {name: np.zeros((len(periods), groups, size), np.float32) for name, size in sizes.items()}
    events, users = np.zeros(len(periods), np.int64), np.zeros(len(periods), np.int64)
    group_of = np.random.default_rng(seed).integers(0, groups, len(log.offsets) - 1)
    for block in _blocks(log, periods, levels):
        block.add(tables, events, users, group_of, first, periods)
        if log.categories:
            block.add_categories(tables["categories"], group_of, log.categories)
    shortest = int(np.diff(periods.edges).min())
    if shortest >= WEEK * periods.ticks:
        # A month has five of some days and four of others.
        tables["weekday"] /= np.maximum(_weekdays(periods), 1e-9)[:, None].astype(np.float32)
    else:
        del tables["weekday"]
    if shortest < DAY * periods.ticks:
        del tables["hour"]
    return Counted(tables, events, users)


def _weekdays(periods: Periods) -> NDArray[np.float64]:
    """How many Mondays, Tuesdays, … each period has: [P, 7]."""
    found = np.zeros((len(periods), 7))
    for row, (begin, end) in zip(found, pairwise((periods.edges / (DAY * periods.ticks)).tolist()), strict=True):
        days = np.arange(int(begin // 1), int(-(-end // 1)))
        np.add.at(row, (days + 3) % 7, np.minimum(days + 1, end) - np.maximum(days, begin))
    return found


@dataclass(frozen=True)
class _Block:
    """The events of consecutive users that lie in a period."""

    users: Int64  # [N]
    items: Int64
    times: Int64
    period: Int64
    gap: Int64  # ticks since the event before; -1 for a user's first
    rating: Int64 | None  # its bin; -1 where nobody knows
    begins: Int64  # [U]: each user's first time, of the block's users
    first_user: int

    def add(
        self,
        tables: dict[str, Counts],
        events: Int64,
        users: Int64,
        group_of: Int64,
        first: Int64,
        periods: Periods,
    ) -> None:
        """Add the counts of these events."""
        cell = self.period * tables["items"].shape[1] + group_of[self.users]
        lengths = np.diff(periods.edges)
        stretch = (self.times - periods.edges[self.period]) // lengths.min()
        whole = stretch < (lengths // lengths.min())[self.period]  # what is left over of a period is no stretch
        starts = periods.edges[self.period] + stretch * lengths.min()
        new = first[self.items] >= starts
        seconds = self.times // periods.ticks

        def put(name: str, bins: Int64, chosen: Any = slice(None)) -> None:
            table = tables[name]
            np.add.at(table.reshape(-1), cell[chosen] * table.shape[2] + bins[chosen], 1)

        put("items", self.items, ~new)
        put("new items", new.astype(np.int64), whole)
        put("new users", (self.begins[self.users - self.first_user] >= starts).astype(np.int64), whole)
        put("gap", _bins(np.log1p(np.maximum(self.gap, 0) / periods.ticks), GAP_STEP, GAP_BINS), self.gap >= 0)
        put("hour", seconds // HOUR % 24)
        put("weekday", (seconds // DAY + 3) % 7)  # the first of January 1970 was a Thursday
        if self.rating is not None:
            put("ratings", self.rating, self.rating >= 0)
        events += np.bincount(self.period, minlength=len(periods))
        other = np.diff(self.users, prepend=-1) != 0
        lead = np.flatnonzero(other | (np.diff(starts, prepend=-1) != 0))  # of each user's events in one stretch
        activity = np.zeros(len(cell), np.int64)
        activity[lead] = np.diff(lead, append=len(cell))
        put("activity", _bins(np.log2(np.maximum(activity, 1)), LENGTH_STEP, LENGTH_BINS), whole & (activity > 0))
        users += np.bincount(self.period[other | (np.diff(self.period, prepend=-1) != 0)], minlength=len(periods))

    def add_categories(self, table: Counts, group_of: Int64, categories: Categories) -> None:
        """Count each event once for each of its item's categories: the first of all, the second of all, and so on."""
        cell = self.period * table.shape[1] + group_of[self.users]
        starts, number = categories.starts[self.items], np.diff(categories.starts)[self.items]
        for place in range(int(number.max(initial=0))):
            some = np.flatnonzero(number > place)
            np.add.at(table.reshape(-1), cell[some] * table.shape[2] + categories.codes[starts[some] + place], 1)


def ranges(offsets: Int64) -> Iterator[tuple[int, int]]:
    """Ranges of users with about `BLOCK` events each."""
    inner = np.searchsorted(offsets, np.arange(BLOCK, offsets[-1], BLOCK))
    yield from pairwise(np.unique(np.concatenate([[0], inner, [len(offsets) - 1]])).tolist())


def _blocks(log: Log, periods: Periods, levels: NDArray[np.float32] | None) -> Iterator[_Block]:
    """The events of each range of users that lie in a period."""
    offsets = log.offsets
    for lo, hi in ranges(offsets):
        begin, end = int(offsets[lo]), int(offsets[hi])
        times, lengths = np.asarray(log.times[begin:end]), np.diff(offsets[lo : hi + 1])
        users = np.repeat(np.arange(lo, hi), lengths)
        starts = np.repeat(offsets[lo:hi] - begin, lengths)
        place = np.arange(end - begin) - starts
        gap = np.where(place > 0, np.maximum(np.diff(times, prepend=times[:1]), 0), -1)
        begins = np.full(hi - lo, np.iinfo(np.int64).max)
        some = lengths > 0
        begins[some] = times[(offsets[lo:hi] - begin)[some]]
        period = periods.of(times)
        kept = (period >= 0) & (period < len(periods))
        items = np.asarray(log.items[begin:end])[kept].astype(np.int64)
        rating = None if levels is None else _rated(np.asarray(log.values)[begin:end][kept], levels)
        yield _Block(users[kept], items, times[kept], period[kept], gap[kept], rating, begins, lo)


def _rated(values: NDArray[np.float32], levels: NDArray[np.float32]) -> Int64:
    """The bin of each rating among 2 L + 1: odd ones are the levels, even ones lie between them; -1 where nobody knows."""
    bins = np.searchsorted(levels, values, side="left") + np.searchsorted(levels, values, side="right")
    return np.where(np.isnan(values), -1, bins).astype(np.int64)


def _first_seen(log: Log) -> Int64:
    """The time of each item's first event: int64 [V + 1]."""
    first = np.full(log.num_items + 1, np.iinfo(np.int64).max)
    for begin in range(0, len(log.items), BLOCK):
        np.minimum.at(first, log.items[begin : begin + BLOCK], log.times[begin : begin + BLOCK])
    return first


def _bins(values: NDArray[np.float64], step: float, bins: int) -> Int64:
    return np.minimum((values / step).astype(np.int64), bins - 1)
