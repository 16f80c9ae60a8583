"""Ratings: which levels there are, in which bin each one is counted, and what a shift of them does."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import DAY, DAYS, world

from turborec.drift import ratings
from turborec.drift.counts import count
from turborec.drift.moved import moved
from turborec.drift.periods import Periods
from turborec.drift.statistics import STATISTICS

PERIODS = Periods(np.arange(20, DAYS + 1, 10) * DAY, 1)
REFERENCE, CURRENT = range(6), range(6, 10)


def rated(log, values):
    return replace(log, values=np.asarray(values, np.float32))


def scored(seed, shift=0.0, day=90):
    """A still world whose ratings, 1 to 5, are higher by `shift` of their events from `day` on."""
    log = world(seed)
    draw = np.random.default_rng(seed)
    values = draw.integers(1, 6, len(log.items)).astype(np.float32)
    up = (log.times >= day * DAY) & (draw.random(len(values)) < shift)
    values[up] = np.minimum(values[up] + 1, 5)
    values[draw.random(len(values)) < 0.1] = np.nan
    return rated(log, values)


def test_levels_are_what_the_reference_has():
    log = world(0, users=60)
    period = PERIODS.of(log.times)
    values = np.where(np.isin(period, REFERENCE), log.items % 3, 9.5)
    values[np.flatnonzero(np.isin(period, REFERENCE))[:5]] = np.nan
    assert ratings.levels(rated(log, values), PERIODS, REFERENCE).tolist() == [0, 1, 2]
    assert len(ratings.levels(rated(log, values * np.nan), PERIODS, REFERENCE)) == 0


def test_of_many_levels_quantiles_are_taken_whatever_the_blocks(monkeypatch):
    log = rated(world(0, users=60), np.arange(len(world(0, users=60).items)))
    whole = ratings.levels(log, PERIODS, REFERENCE)
    inside = np.sort(log.values[np.isin(PERIODS.of(log.times), REFERENCE)])
    assert len(whole) == ratings.MOST and np.isin(whole, inside).all()
    below = np.searchsorted(inside, whole) / len(inside)
    np.testing.assert_allclose(below, np.arange(1, 32) / 32, atol=1 / len(inside) + 1e-9)
    monkeypatch.setattr("turborec.drift.counts.BLOCK", 50)
    assert np.array_equal(ratings.levels(log, PERIODS, REFERENCE), whole)


def test_each_rating_is_counted_in_its_bin_and_unknown_ones_in_none():
    log = world(0, users=60)
    values = np.resize([0.5, 1, 1.5, 2, 2.5, np.nan], len(log.items))
    levels = np.asarray([1, 2], np.float32)
    found = count(rated(log, values), PERIODS, levels=levels).tables["ratings"].sum((0, 1))
    inside = np.isin(PERIODS.of(log.times), range(len(PERIODS)))
    assert found.tolist() == [int((values[inside] == one).sum()) for one in (0.5, 1, 1.5, 2, 2.5)]
    assert ratings.names(levels) == ["below 1", "1", "between 1 and 2", "2", "above 2"]
    assert ratings.names(levels[:0]) == ["any"]


def judged(log):
    levels = ratings.levels(log, PERIODS, REFERENCE)
    counted = count(log, PERIODS, levels=levels)
    return moved(counted, REFERENCE, CURRENT, [one for one in STATISTICS if one.table in counted.tables])


@pytest.mark.parametrize("seed", [1, 2])
def test_higher_ratings_are_found_in_their_period_and_laid_to_preference(seed):
    found = judged(scored(seed, shift=0.4))
    assert found.first() == 1
    told = {one.name for one, beyond in zip(found.statistics, found.beyond, strict=True) if beyond.any()}
    assert told <= {"ratings", "rating levels"} and told
    assert {one.cause for one in found.statistics if one.name in told} == {"preference"}


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_nothing_is_told_of_ratings_that_stay_as_they_are(seed):
    assert judged(scored(seed)).first() is None


def test_a_period_without_ratings_has_not_moved_by_that():
    log = scored(1)
    values = np.where(log.times >= 110 * DAY, np.nan, log.values)
    found = judged(rated(log, values))
    row = [one.name for one in found.statistics].index("ratings")
    assert found.values[row, -1] == 0
