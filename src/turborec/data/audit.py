"""What a prepared store is like where a run could go wrong: its structure, its times, and what its split lets through.

Letters: U users, E events, V items. Everything is read in blocks; only the times of the test part are held together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import BLOCK, PARTS, Int64, Part, Store


@dataclass(frozen=True)
class Times:
    """Events by what is known of their times."""

    events: int
    unknown: int
    tied: int  # at the same moment as the event before it in the same history
    backwards: int  # before the event before it in the same history
    future: int  # after the moment of the audit
    first: int | None  # of the known, in ticks
    last: int | None


@dataclass(frozen=True)
class Split:
    """What the parts have of one another."""

    users: dict[Part, int]
    begins: dict[Part, int | None]  # the first known time of a part, in ticks
    ends: dict[Part, int | None]  # and the last
    cold_targets: float  # the share of test events whose items training never sees
    hindsight: float | None  # the share of known training events that are later than half of the known test events


def faults(store: Store) -> list[str]:
    """Where the arrays contradict one another: nothing that `prepare` writes does, whatever the sums of the files say."""
    offsets, cuts = store.histories.offsets, store.cuts
    found = []
    if offsets[0] or offsets[-1] != len(store.histories.items) or (np.diff(offsets) < 0).any():
        found.append("the histories do not cover the events")
    elif (cuts[:, 0] < offsets[:-1]).any() or (cuts[:, 1] < cuts[:, 0]).any() or (offsets[1:] < cuts[:, 1]).any():
        found.append("a cut between the parts lies outside its user's history")
    if len(store.histories.times) != len(store.histories.items):
        found.append("there are not as many times as events")
    lowest, highest = _extremes(store.histories.items)
    if len(store.histories.items) and not (lowest >= 1 and highest <= store.num_items):
        found.append(f"items run from {lowest} to {highest}, not from 1 to {store.num_items}")
    return found


def times(store: Store, now: float) -> Times:
    """Count events by what is known of their times; `now` in seconds since 1970."""
    unknown = tied = backwards = future = 0
    offsets, every = store.histories.offsets, store.histories.times
    bounds: list[tuple[int, int]] = []
    for begin, end in _blocks(len(every)):
        block = every[max(0, begin - 1) : end]
        known = block != UNKNOWN_TIME
        step = np.diff(block)  # nonsense where a time is unknown
        inside = known[1:] & known[:-1]
        heads = offsets[np.searchsorted(offsets, max(1, begin)) : np.searchsorted(offsets, end)]
        inside[heads - max(0, begin - 1) - 1] = False  # a user's first event follows nobody's
        tied += int((inside & (step == 0)).sum())
        backwards += int((inside & (step < 0)).sum())
        own = block[len(block) - (end - begin) :]
        there = own[own != UNKNOWN_TIME]
        unknown += len(own) - len(there)
        future += int((there > now * store.ticks).sum())
        if len(there):
            bounds.append((int(there.min()), int(there.max())))
    first = min((low for low, _ in bounds), default=None)
    return Times(len(every), unknown, tied, backwards, future, first, max((high for _, high in bounds), default=None))


def split(store: Store) -> Split:
    """What can be told of the parts without knowing how the store was cut."""
    begins: dict[Part, int | None] = {}
    ends: dict[Part, int | None] = {}
    for part in PARTS:
        bounds = [_extremes(known) for known in _known(store, part) if len(known)]
        begins[part] = min((low for low, _ in bounds), default=None)
        ends[part] = max((high for _, high in bounds), default=None)
    trained = store.item_counts() > 0
    tested = cold = 0
    for begin, end in _blocks(len(store.histories.items)):
        items = store.histories.items[begin:end][store.within("test", begin, end)]
        tested, cold = tested + len(items), cold + int((~trained[items]).sum())
    return Split(
        {part: len(store.users_of(part)) for part in PARTS},
        begins,
        ends,
        cold / max(1, tested),
        _hindsight(store),
    )


def _hindsight(store: Store) -> float | None:
    test = np.concatenate([*_known(store, "test"), np.zeros(0, np.int64)])
    if not len(test):
        return None
    half = np.median(test)
    counts = [(len(known), int((known > half).sum())) for known in _known(store, "train")]
    events = sum(number for number, _ in counts)
    return sum(later for _, later in counts) / events if events else None


def _known(store: Store, part: Part) -> Iterator[Int64]:
    """The known times of a part, block by block."""
    for begin, end in _blocks(len(store.histories.times)):
        found = store.histories.times[begin:end][store.within(part, begin, end)]
        yield found[found != UNKNOWN_TIME]


def _extremes(values: NDArray[Any]) -> tuple[int, int]:
    found = [(int(values[b:e].min()), int(values[b:e].max())) for b, e in _blocks(len(values))]
    return min((low for low, _ in found), default=0), max((high for _, high in found), default=0)


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    yield from ((begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))
