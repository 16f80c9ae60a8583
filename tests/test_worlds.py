"""Stores as one log in time: what training has seen of them, events without times, and windows that overlap."""

import numpy as np
import pytest

from stores import store_of
from turborec.checkup import sampled_events
from turborec.data.schema import UNKNOWN_TIME
from turborec.errors import UserError
from turborec.worlds import Window, joined, of_store

DAY = 86_400


def test_what_is_held_before_was_never_trained_on_however_the_store_is_split(tmp_path):
    """Leave one out: the events before the seam that others were trained on lie after those that some were validated on."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 12, 60)
    starts = generator.integers(0, 300, 60) * DAY
    histories = [generator.integers(1, 20, n).tolist() for n in lengths]
    times = [(10**9 + start + DAY * np.arange(n)).tolist() for start, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    first = store_of(tmp_path / "first", histories, items=20, times=times)
    later = [[10**9 + 400 * DAY + DAY * k for k in range(5)] for _ in range(60)]
    second = store_of(tmp_path / "second", [generator.integers(1, 20, 5).tolist() for _ in later], items=20, times=later)
    world = joined(Window(first), [Window(second)])
    assert world.validates < int(max(t[-3] for t in times))  # some are trained on after others are validated on
    (places,) = sampled_events(world, [(world.validates, world.begins)], 1000, 0)
    assert len(places) == 60
    owner = np.searchsorted(world.log.offsets, places, side="right") - 1
    rank = places - world.log.offsets[owner]
    assert (rank >= lengths[owner] - 2).all() and (rank < lengths[owner]).all()


def test_events_without_a_time_are_in_no_gap(tmp_path):
    times = [[DAY * 10, UNKNOWN_TIME, DAY * 13, DAY * 20, DAY * 21], [DAY * 10, DAY * 11, DAY * 12, DAY * 20, DAY * 21]]
    store = store_of(tmp_path / "store", [[1, 2, 3, 2, 4], [1, 2, 3, 4, 5]], times=times, cuts=[(3, 4), (3, 4)])
    world = of_store(store)
    assert world.log.times.tolist() == [t for row in times for t in row if t != UNKNOWN_TIME]
    assert world.log.items.tolist() == [1, 3, 2, 4, 1, 2, 3, 4, 5] and world.trained.tolist() == [2, 3]
    assert any("1 events" in one and "no time" in one for one in world.remarks)


def test_events_are_not_counted_twice(tmp_path):
    one, other = (
        store_of(tmp_path / name, [[1, 2, 3, 1], [2, 3, 1, 2]], times=[[begin + DAY * k for k in range(4)]] * 2)
        for name, begin in (("one", 0), ("other", 100 * DAY))
    )
    later = Window(other)
    for windows in ([later, later], [Window(other, None, 102 * DAY), Window(other, 101 * DAY, None)]):
        with pytest.raises(UserError, match="named twice with --current"):
            joined(Window(one), windows)
    joined(Window(one), [Window(other, None, 102 * DAY), Window(other, 102 * DAY, None)])
