"""Time in consecutive periods: calendar days, weeks, months or years, or as many events in each.

Letters: P periods. Instants are whole numbers in the unit of a store's times, `ticks` of them in a second.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from turborec.errors import UserError

Int64 = NDArray[np.int64]

Every = Literal["day", "week", "month", "year"]
MOST = 400
"""Periods at most: more say nothing that fewer would not."""


@dataclass(frozen=True)
class Periods:
    """Consecutive periods: period p holds the times from edges[p] on that are below edges[p + 1]."""

    edges: Int64  # [P + 1]
    ticks: int

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def names(self) -> list[str]:
        """Where each period begins and ends, in UTC; days where it is their beginning."""
        days = [edge % (86_400 * self.ticks) == 0 for edge in self.edges.tolist()]
        shown = [
            instant(edge, self.ticks).strftime("%Y-%m-%d" if day else "%Y-%m-%d %H:%M")
            for edge, day in zip(self.edges.tolist(), days, strict=True)
        ]
        return [f"{begin} to {end}" for begin, end in pairwise(shown)]

    def of(self, times: Int64) -> Int64:
        """The period of each time: -1 before the first, P after the last."""
        return np.searchsorted(self.edges, times, side="right").astype(np.int64) - 1

    def some(self, first: int, end: int) -> "Periods":
        """Periods first .. end - 1."""
        return Periods(self.edges[first : end + 1], self.ticks)


def calendar(first: int, last: int, every: Every, ticks: int) -> Periods:
    """The whole calendar periods, in UTC, that hold all times from `first` to `last`."""
    at = _floor(instant(first, ticks), every)
    edges: list[int] = []
    while not edges or edges[-1] <= last:
        edges.append(int(at.timestamp()) * ticks)
        at = _after(at, every)
        if len(edges) > MOST:
            raise UserError(f"There would be more than {MOST} periods of a {every}: choose longer ones.")
    return Periods(np.asarray(edges, dtype=np.int64), ticks)


def of_equal_counts(times: Int64, number: int, ticks: int) -> Periods:
    """So many periods with about as many of the times in each; `UserError` where too many times are one and the same.

    They begin with a day where all are longer than one: half a day more or less would be another mix of hours.
    """
    if not 1 <= number <= MOST:
        raise UserError(f"The number of periods must be from 1 to {MOST}, got {number}.")
    places = len(times) * np.arange(1, number) // number
    inner = np.partition(times, places)[places] if number > 1 else times[:0]
    edges = np.concatenate([[times.min()], inner, [times.max() + 1]]).astype(np.int64)
    if (np.diff(edges) <= 0).any():
        raise UserError(f"{number} periods of as many events cannot be cut: too many events have one time. Choose fewer.")
    day = 86_400 * ticks
    if (np.diff(edges) >= day).all():
        edges[:-1] -= edges[:-1] % day
        edges[-1] += -edges[-1] % day
    return Periods(edges, ticks)


def span(times: Int64) -> tuple[int, int]:
    """The first and the last."""
    return int(times.min()), int(times.max())


def instant(ticks_since_1970: int, ticks: int) -> datetime:
    """The instant in UTC; `UserError` where no calendar has it, as when milliseconds are taken for seconds."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ticks_since_1970 / ticks)
    except OverflowError as error:
        raise UserError(
            f"{ticks_since_1970} is no time in {'milliseconds' if ticks == 1000 else 'seconds'} since 1970: state "
            "data.source.time_format, and prepare the data again."
        ) from error


def _floor(at: datetime, every: Every) -> datetime:
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if every == "week":
        return day - timedelta(days=day.weekday())
    return {"day": day, "month": day.replace(day=1), "year": day.replace(month=1, day=1)}[every]


def _after(at: datetime, every: Every) -> datetime:
    if every in ("day", "week"):
        return at + timedelta(days=1 if every == "day" else 7)
    if every == "year":
        return at.replace(year=at.year + 1)
    return at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1)
