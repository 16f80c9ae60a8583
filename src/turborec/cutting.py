"""A log in time cut into periods: which of them are looked at, and which they are held against.

Letters: P periods.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turborec.data.schema import UNKNOWN_TIME
from turborec.drift.counts import BLOCK
from turborec.drift.moved import FEWEST_PERIODS
from turborec.drift.periods import Every, Periods, calendar, instant, of_equal_counts, span
from turborec.errors import UserError
from turborec.worlds import World

Int64 = NDArray[np.int64]

MOST_REFERENCE = 12
"""Periods of the reference: the last so many before what is looked at."""
LEAST = 0.05
"""Events of a period, as a share of the reference's median, below which it is a hole in the log: too few to say anything of."""
WHOLE = 0.9
"""Of a calendar period, what the log must have of it: a day of a month may lack, none of a week."""


@dataclass(frozen=True)
class Plan:
    """Which periods are held against which."""

    periods: Periods
    reference: list[int]
    current: list[int]
    events: Int64  # [P]
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the periods that are looked at."""
        names = self.periods.names
        return [names[p] for p in self.current]


def plan(world: World, every: Every | int) -> Plan:
    """Calendar periods, or so many with about as many events each; and periods like them before, whose first third is history.

    A period that the log does not have the whole of, at its ends or on one side of the seam, is left out.
    """
    times = world.log.times
    periods, begins, end = _equal(world, every) if isinstance(every, int) else _calendar(world, every)
    events = np.zeros(len(periods) + 2, np.int64)  # before, in, and after them
    for begin in range(0, len(times), BLOCK):
        events += np.bincount(periods.of(times[begin : begin + BLOCK]) + 1, minlength=len(events))
    events, edges = events[1:-1], periods.edges
    before = np.flatnonzero((edges[:-1] >= begins) & (edges[1:] <= world.begins))
    after = np.flatnonzero((edges[:-1] >= world.begins) & (edges[1:] <= end))
    # At the beginning of a log everything is new, whatever is normal; and a hole in it is none of its periods.
    whole_ones = [int(p) for p in before[events[before] >= LEAST * np.median(events[before])]] if len(before) else []
    reference = whole_ones[-(-len(whole_ones) // 3) :][-MOST_REFERENCE:] or whole_ones
    enough = LEAST * np.median(events[reference]) if reference else 0
    current = [int(p) for p in after if events[p] and events[p] >= enough]
    parts = _parts(world, periods, set(after.tolist()))
    if not current or not reference:
        side = "after" if not current else "before"
        raise UserError(
            f"There is no whole period of {every} {side} {instant(world.begins, world.ticks):%Y-%m-%d} with enough "
            f"events in it ({LEAST:.0%} of what is usual): choose shorter ones.{' '.join(['', *parts])}"
        )
    remarks = [*parts, *_holes(periods.names, [int(p) for p in after if p not in current], events)]
    if len(reference) < FEWEST_PERIODS:
        remarks.append(
            f"The reference has {len(reference)} whole period{'s' * (len(reference) > 1)} of this length: what is usual from "
            f"one to the next, such as seasons, is not known of fewer than {FEWEST_PERIODS}. Choose shorter ones."
        )
    first, last = reference[0], current[-1] + 1
    return Plan(
        periods.some(first, last),
        [p - first for p in reference],
        [p - first for p in current],
        events[first:last],
        tuple(remarks),
    )


def _equal(world: World, number: int) -> tuple[Periods, int, int]:
    """So many periods from the seam on, as many events in each as in the earlier ones; the log has all of them."""
    times = np.asarray(world.log.times)
    late, earlier = times[times >= world.begins], times[(times < world.begins) & (times != UNKNOWN_TIME)]
    cut = of_equal_counts(late, number, world.ticks).edges
    cut[0] = world.begins
    before = min(max(1, round(len(earlier) / max(1, len(late) / number))), 4 * MOST_REFERENCE)
    past = of_equal_counts(earlier, before, world.ticks).edges[:-1] if len(earlier) else cut[:0]
    edges = np.concatenate([past, cut])
    return Periods(edges, world.ticks), int(edges[0]), int(edges[-1])


def _calendar(world: World, every: Every) -> tuple[Periods, int, int]:
    """The calendar's periods, and from when to when the log has them, which is told to the day, or of days to the hour.

    An edge that is so near to the seam or to an end that the log has `WHOLE` of the period between is moved there.
    """
    times, day = world.log.times, 86_400 * world.ticks
    known = times != UNKNOWN_TIME
    dated = not (times[known] % day).any()  # nothing but days is known
    unit = day if dated or every != "day" else day // 24
    first, last = span(times[known])
    begins, end = first - first % unit, last + unit - last % unit
    periods = calendar(first, last, every, world.ticks)
    edges, most = periods.edges.copy(), (1 - WHOLE) * np.diff(periods.edges)
    for at in (begins, world.begins, end):
        p = min(int(periods.of(np.asarray(at))), len(most) - 1)
        for edge in (p, p + 1):
            if abs(int(periods.edges[edge]) - at) <= most[p]:
                edges[edge] = at
    return Periods(edges, world.ticks), begins, end


def _parts(world: World, periods: Periods, whole: set[int]) -> list[str]:
    """A remark on the events after the seam that are in no whole period."""
    late = np.asarray(world.log.times[world.log.times >= world.begins])
    number = np.bincount(np.clip(periods.of(late), 0, len(periods) - 1), minlength=len(periods))
    parts = [f"{periods.names[p]} ({number[p]:,} events)" for p in np.flatnonzero(number).tolist() if p not in whole]
    begins = f"{instant(world.begins, world.ticks):%Y-%m-%d}"
    return [f"Not whole, and left out: {', '.join(parts)}; what is looked at begins with {begins}."] * bool(parts)


def _holes(names: list[str], left_out: list[int], events: Int64) -> list[str]:
    """What to say of the periods after the seam that are too empty to be looked at."""
    empty, few = ([names[p] for p in left_out if bool(events[p]) is some] for some in (False, True))
    remarks = [f"Nothing happened in {', '.join(empty)}: there is nothing to say of it."] * bool(empty)
    told = f"{', '.join(few)}: fewer events than {LEAST:.0%} of what a period of the reference has, too few to say anything of."
    return remarks + [told] * bool(few)


def events_of(world: World, chosen: Plan) -> list[tuple[str, int]]:
    """Each period that is looked at, as `instants` reads it, and its events."""
    edges = chosen.periods.edges
    spans = [
        "..".join(f"{instant(int(edge), world.ticks):%Y-%m-%dT%H:%M:%S}".removesuffix("T00:00:00") for edge in edges[p : p + 2])
        for p in chosen.current
    ]
    return [(span, int(chosen.events[p])) for span, p in zip(spans, chosen.current, strict=True)]
