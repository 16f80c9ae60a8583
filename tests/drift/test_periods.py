"""Periods of the calendar and of equal counts."""

from datetime import UTC, datetime

import numpy as np
import pytest

from turborec.drift.periods import Periods, calendar, of_equal_counts
from turborec.errors import UserError


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("every", "begins"),
    [
        ("day", ["2023-12-30", "2023-12-31", "2024-01-01", "2024-01-02", "2024-01-03"]),
        ("week", ["2023-12-25", "2024-01-01", "2024-01-08"]),
        ("month", ["2023-12-01", "2024-01-01", "2024-02-01"]),
        ("year", ["2023-01-01", "2024-01-01", "2025-01-01"]),
    ],
)
@pytest.mark.parametrize("ticks", [1, 1000])
def test_the_calendar(every, begins, ticks):
    found = calendar(at("2023-12-30T10:00") * ticks, at("2024-01-02T23:59") * ticks, every, ticks)
    assert found.edges.tolist() == [at(day) * ticks for day in begins]
    assert found.names[0] == f"{begins[0]} to {begins[1]}"


def test_as_many_events_in_each():
    times = np.random.default_rng(0).permutation(1000)
    found = of_equal_counts(times, 4, 1)
    assert np.bincount(found.of(times)).tolist() == [250] * 4
    with pytest.raises(UserError, match="too many events have one time"):
        of_equal_counts(np.full(100, 7), 3, 1)


def test_which_period_a_time_is_in():
    periods = Periods(np.array([10, 20, 30]), 1)
    assert periods.of(np.array([9, 10, 19, 20, 29, 30])).tolist() == [-1, 0, 0, 1, 1, 2]


def test_times_of_another_unit_are_told():
    with pytest.raises(UserError, match="time_format"):
        calendar(10**15, 10**15 + 1, "year", 1)
    with pytest.raises(UserError, match="more than 400"):
        calendar(0, 10**9, "day", 1)
