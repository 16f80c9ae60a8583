"""Categories: which attribute tells them, which item is of which, and how their events are counted."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import DAY, DAYS, world

from turborec.drift import categories
from turborec.drift.counts import count
from turborec.drift.moved import moved
from turborec.drift.periods import Periods
from turborec.drift.statistics import STATISTICS
from turborec.errors import UserError

PERIODS = Periods(np.arange(20, DAYS + 1, 10) * DAY, 1)


def test_the_obvious_attribute_is_chosen_and_any_other_when_asked_for():
    assert categories.chosen([["title", "genres", "year"]], None) == ("genres", "")
    assert categories.chosen([["title", "genres"], ["genres"]], "genres") == ("genres", "")
    for columns, why in (
        ([[]], "no attributes"),
        ([["title"], []], "no attributes"),
        ([["title", "year"]], "Name one with --category: title, year"),
        ([["genre", "category"]], "genre and category could tell them"),
    ):
        column, told = categories.chosen(columns, None)
        assert column is None and why in told
    with pytest.raises(UserError, match=r"no column 'genre'.*did you mean 'genres'.*they have title, genres"):
        categories.chosen([["title", "genres"]], "genre")
    with pytest.raises(UserError, match="the source describes no items"):
        categories.chosen([["genres"], []], "genres")


def test_entries_of_a_text_are_categories_in_the_order_of_their_events():
    found = categories.of_texts("genres", ["b|a", None, " a | a||c"], "|", np.array([0, 5, 9, 2]))
    assert found.names == ("a", "b", "c")
    rows = [found.codes[begin:end].tolist() for begin, end in zip(found.starts[:-1], found.starts[1:], strict=True)]
    assert rows == [[], [1, 0], [], [0, 2]]  # no item has the number 0


def test_the_rarest_of_too_many_are_one():
    texts = [f"c{n}" for n in range(300)] + ["c298|c299|c0"]
    found = categories.of_texts("category", texts, "|", np.arange(302)[::-1])
    assert len(found.names) == categories.MOST and found.names[-1] == "other" and "c0" in found.names
    assert len(found.codes) == 302 and (found.codes == categories.MOST - 1).sum() == 46


def described(log, draw, shift=0.0):
    """Items of one or two of five categories; `shift` of the events from day 90 on are of the first category's items."""
    texts = ["|".join(f"c{n}" for n in draw.choice(5, draw.integers(1, 3), replace=False)) for _ in range(log.num_items)]
    first = np.flatnonzero(["c0" in text for text in texts]) + 1
    items = log.items.copy()
    late = (log.times >= 90 * DAY) & (draw.random(len(items)) < shift)
    items[late] = draw.choice(first, late.sum())
    events = np.bincount(items, minlength=log.num_items + 1)
    return replace(log, items=items, categories=categories.of_texts("genre", texts, "|", events)), texts


def test_events_count_once_for_each_category_whatever_the_blocks(monkeypatch):
    log, texts = described(world(0, users=60), np.random.default_rng(0))
    counted = count(log, PERIODS)
    period = PERIODS.of(log.times)
    for p in range(len(PERIODS)):
        shown = [name for item in log.items[period == p] for name in texts[item - 1].split("|")]
        assert counted.tables["categories"][p].sum(0).tolist() == [shown.count(name) for name in log.categories.names]
    monkeypatch.setattr("turborec.drift.counts.BLOCK", 50)
    assert np.array_equal(count(log, PERIODS).tables["categories"], counted.tables["categories"])


@pytest.mark.parametrize(("seed", "shift", "expected"), [(1, 0.3, True), (2, 0.3, True), (3, 0.0, False), (4, 0.0, False)])
def test_another_mix_is_found_and_one_that_stays_is_not(seed, shift, expected):
    log, _ = described(world(seed), np.random.default_rng(seed), shift)
    counted = count(log, PERIODS)
    statistics = [one for one in STATISTICS if one.table in counted.tables]
    found = moved(counted, range(6), range(6, 10), statistics)
    row = [one.name for one in statistics].index("categories")
    assert statistics[row].cause == "preference"
    assert found.beyond[row].tolist() == [False, expected, expected, expected]
