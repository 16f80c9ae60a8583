"""Changes of known kind and day are found, dated and told apart, and nothing is told of a world that stays as it is."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import DAY, DAYS, world

from turborec.drift.counts import count
from turborec.drift.moved import moved
from turborec.drift.periods import Periods
from turborec.drift.statistics import STATISTICS

PERIODS = Periods(np.arange(20, DAYS + 1, 10) * DAY, 1)
REFERENCE, CURRENT = range(6), range(6, 10)  # days 20 to 80, and the four periods from day 80 on


def judged(kind, seed, day=90):
    counted = count(world(seed, kind, day), PERIODS)
    statistics = [one for one in STATISTICS if one.table in counted.tables]
    return moved(counted, REFERENCE, CURRENT, statistics)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("kind", "cause"), [("items", "items"), ("preference", "preference"), ("activity", "activity")])
def test_a_change_is_found_in_its_period_and_called_by_its_cause(kind, cause, seed):
    found = judged(kind, seed)
    assert found.first() == 1  # day 90 is the beginning of the second period
    told = {one.cause for one, beyond in zip(found.statistics, found.beyond, strict=True) if beyond[1]}
    assert told == {cause}


def test_a_change_in_the_middle_of_a_period_is_dated_to_it():
    assert judged("preference", 5, day=103).first() == 2


@pytest.mark.parametrize("seed", range(100, 104))
def test_nothing_is_told_of_a_world_that_stays_as_it_is(seed):
    assert judged("none", seed).first() is None


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    """Of a hundred worlds at a level of 5 %, with whatever binomial chance adds to that."""
    alarms = sum(judged("none", seed).first() is not None for seed in range(100, 200))
    assert alarms <= 5, alarms


def test_counts_are_those_of_a_loop():
    log = world(0, users=60)
    counted = count(log, PERIODS)
    owner = np.repeat(np.arange(len(log.offsets) - 1), np.diff(log.offsets))
    period = PERIODS.of(log.times)
    inside = (period >= 0) & (period < len(PERIODS))
    first_seen = {}
    for item, when in zip(log.items.tolist(), log.times.tolist(), strict=True):
        first_seen[item] = min(first_seen.get(item, when), when)
    for p in range(len(PERIODS)):
        places = np.flatnonzero(period == p)
        assert counted.events[p] == len(places) and counted.users[p] == len(np.unique(owner[places]))
        new = [first_seen[int(log.items[e])] >= PERIODS.edges[p] for e in places]
        assert counted.tables["new items"][p].sum(0).tolist() == [len(new) - sum(new), sum(new)]
        hours = np.bincount(log.times[places] // 3600 % 24, minlength=24)
        assert counted.tables["hour"][p].sum(0).tolist() == hours.tolist()
        begins = [log.times[log.offsets[owner[e]]] >= PERIODS.edges[p] for e in places]
        assert counted.tables["new users"][p].sum(0)[1] == sum(begins)
        preceded = [e for e in places if e > log.offsets[owner[e]]]
        assert counted.tables["gap"][p].sum() == len(preceded)
        assert counted.tables["activity"][p].sum() == counted.users[p]
    old = sum(first_seen[int(log.items[e])] < PERIODS.edges[period[e]] for e in np.flatnonzero(inside))
    assert counted.tables["items"].sum() == old


def test_periods_of_other_lengths_are_counted_in_stretches_of_one():
    """A period of 25 days has two stretches of ten, and what comes after them has no part in what grows with time."""
    log = world(0, users=400)
    long, short = (count(log, Periods(np.asarray(edges) * DAY, 1)).tables for edges in ([50, 75, 85], [50, 60, 70, 75, 85]))
    for name in ("activity", "new users", "new items"):
        stretches = count(log, Periods(np.array([50, 60, 70]) * DAY, 1)).tables[name]
        assert long[name][0].sum(0).tolist() == stretches.sum((0, 1)).tolist()
    assert long["gap"][0].sum() == short["gap"][:3].sum()


def test_what_too_few_or_too_different_periods_cannot_tell_is_said():
    counted = count(world(1), PERIODS)
    statistics = [one for one in STATISTICS if one.table in counted.tables]
    few = moved(counted, range(2), CURRENT, statistics)
    assert few.untold.all() and not few.beyond.any()
    found = moved(counted, REFERENCE, CURRENT, statistics)
    assert not found.untold.any() and np.isfinite(found.thresholds).all()
    counted.tables["items"][0] = np.roll(counted.tables["items"][0], 100, axis=1)  # other items than all after it
    apart = moved(counted, range(3), CURRENT, statistics)
    told = {one.name for one, untold in zip(statistics, apart.untold, strict=True) if untold.all()}
    assert told >= {"item mix", "items left"} and not apart.beyond[apart.untold].any()


def test_a_share_that_the_reference_has_none_of_may_be_a_few_events():
    """Nothing new in 40,000 events: of 400 some are no news, though every sample of the reference has none."""
    log = world(1)
    counted = count(replace(log, items=np.ones_like(log.items)), PERIODS)
    statistics = [one for one in STATISTICS if one.name == "new items"]
    thresholds = moved(counted, REFERENCE, CURRENT, statistics).thresholds[0]
    events = counted.tables["new items"][6:].sum((1, 2))
    assert ((thresholds * events > 0.99) & (thresholds < 0.01)).all()


def test_blocks_of_users_change_nothing(monkeypatch):
    log = world(0, users=60)
    whole = count(log, PERIODS)
    monkeypatch.setattr("turborec.drift.counts.BLOCK", 50)
    parts = count(log, PERIODS)
    assert all(np.array_equal(table, parts.tables[name]) for name, table in whole.tables.items())
    assert np.array_equal(whole.events, parts.events) and np.array_equal(whole.users, parts.users)
